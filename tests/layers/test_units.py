"""Layers compute in the units of the ANN; with a threshold and a gain of 1 they are the networks of before."""

import hashlib

import pytest
import torch
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn import ann
from tandem_snn.frozen.lowering import lower

# Of commit b51504d, where a layer's default was a threshold and a gain of 1, and an Encoder's current x in each step.
RECORDED = {
    ("step", "relu"): "f65e7702f257c3aba6a48c17b11d7fa9b0c6b25882dc15c639250a0a42d326db",
    ("step", "clip"): "2cfe7e9990dcbf3eb784bd221e159dc8a8d44a9394c5641f5b19256c6095e1d6",
    ("window", "relu"): "d3e08c18cd0ee18c606c057671b44fca46e757d9629230aea8d17507505eb3e1",
    ("window", "clip"): "edfb0c65a188438c166e88cdf3a848ef85f90a841e3285e8942176c12f5e6539",
}


def dyadic(*shape):
    """Numbers of a few bits, of which all sums are exact, whatever their order."""
    return torch.randint(-2, 3, shape) / 4


def recorded(encoder, timing, gate):
    """The hash of spikes, statistics, answers and gradients of two networks, with and without batch norm."""
    torch.manual_seed(0)
    options = {"threshold": 1.0, "gain": 1.0, "timing": timing, "gate": gate}
    found = []
    for gamma in None, 2.0:
        norm = {} if gamma is None else {"norm": True, "gamma": gamma}
        net = nn.Sequential(
            encoder, tnn.Conv2d(2, 6, 3, stride=2, padding=1, **options, **norm),
            tnn.Residual(tnn.Conv2d(6, 6, 3, padding=1, **options, **norm)), tnn.MaxPool2d(2), tnn.Flatten(),
            tnn.Linear(24, 10, **options, **norm), tnn.Readout(10, 4),
        )  # fmt: skip
        for name, p in net.named_parameters():
            if "norm.weight" not in name:
                p.data = dyadic(*p.shape)
        x = dyadic(5, 2, 8, 8).abs()
        signals = [x]
        for layer in net:
            signals.append(layer(signals[-1]))
        trains = [signal for signal in signals if isinstance(signal, te.SpikeTrain)]
        found += [train.stored for train in trains] + [signals[-1]]
        (signals[-1] * dyadic(5, 4)).sum().backward()
        if gamma is None:  # else torch sums what is not exact
            found += [p.grad for p in net.parameters()]
        else:
            found += [net[5].norm.weight.grad, net[5].norm.bias.grad]
        net.eval()
        assert torch.equal(ts.freeze(net)(x), net(x))
        found.append(net(x).detach())
    return hashlib.sha256(b"".join(t.flatten().view(torch.uint8).numpy().tobytes() for t in found)).hexdigest()


@pytest.mark.parametrize(("timing", "gate"), RECORDED)
def test_a_threshold_and_a_gain_of_1_give_the_networks_of_before(timing, gate):
    assert recorded(tnn.Encoder(8, gain=8), timing, gate) == RECORDED[timing, gate]


@pytest.mark.parametrize("norm", [False, True])
def test_window_timing_is_the_rounding_of_the_ann(norm):
    """An ANN's checkpoint loads, and at each call ϑ is that of the input's T."""
    torch.manual_seed(0)
    layer, twin = (module.Linear(20, 9, norm=norm, timing="window").eval() for module in (tnn, ann))
    layer.load_state_dict(twin.state_dict())
    x = torch.randn(50, 20)
    for T in 1, 3, 8, 255, 8:
        with torch.no_grad():
            train, unit = layer(tnn.Encoder(T)(x)), tnn.default_threshold(T, "window")
            exact = twin.preactivation(x) / unit + 0.5
        sure = (exact - exact.round()).abs() > 1e-3
        assert train.gain == unit
        assert torch.equal(train.counts[sure], exact.floor().clamp(0, T)[sure])


@pytest.mark.parametrize("options", [{}, {"norm": True}, {"v_init": 0.25}, {"norm": True, "bn_stats": "running"}])
def test_a_default_threshold_is_that_threshold_folded(options, timing):
    """In training, evaluation, as potentials and with a residual; ops, and so files, see neurons that fire at 1."""
    unit = torch.tensor(tnn.default_threshold(8, timing))
    given = options | ({"v_init": 0.25 * float(unit)} if "v_init" in options else {})
    torch.manual_seed(0)
    default, folded = tnn.Linear(30, 20, timing=timing, **options), tnn.Linear(30, 20, timing=timing, **given)
    folded.load_state_dict(default.state_dict())
    folded.threshold = unit
    train = te.SpikeTrain.from_dense(torch.rand(8, 40, 30).lt(0.4).float(), gain=0.5)
    more = te.SpikeTrain.from_dense(torch.rand(8, 40, 20).lt(0.4).float(), gain=0.3)
    for x, residual in (
        (train, None),
        (train, more),
        (train, torch.randn(8, 40, 20)),
        (tnn.Encoder(8)(torch.rand(40, 30)), None),
    ):
        for mode in True, False:
            ours, theirs = default.train(mode)(x, residual), folded.train(mode)(x, residual)
            assert (ours.counts != theirs.counts).float().mean() < 0.01  # rounding
            grads = [
                torch.autograd.grad(y.counts.sum(), layer.weight)[0] for y, layer in ((ours, default), (theirs, folded))
            ]
            assert (grads[0] - grads[1]).norm() <= 0.05 * grads[1].norm()
        v, w = default.potentials(x, residual) * unit, folded.potentials(x, residual)
        assert ((v - w).abs() > 1e-4).float().mean() < 0.02
    net = nn.Sequential(default, tnn.Readout(20, 3)).eval()
    assert lower(net, T=8).stages[0].instruction.threshold == 1.0


def test_events_need_the_T_of_their_default_thresholds():
    torch.manual_seed(0)
    net = nn.Sequential(tnn.Linear(6, 5), tnn.Readout(5, 3)).eval()
    x, longer = (te.SpikeTrain.from_dense(torch.rand(T, 4, 6).lt(0.5).float()) for T in (3, 8))
    with pytest.raises(ValueError, match=r"T: default thresholds depend on it.*freeze\(net, T=...\)"):
        ts.freeze(net)
    frozen = ts.freeze(net, T=3)
    assert torch.equal(frozen(x), net(x))
    assert torch.equal(frozen.readouts(x)[-1], net(x))
    for call in frozen, frozen.readouts, frozen.anytime:
        with pytest.raises(ValueError, match="T=3"):
            call(longer)


def test_steps_of_step_timing_cost_no_more_spikes_than_a_gamma_of_3():
    for T in range(1, 1001):
        assert 1 / tnn.default_threshold(T) <= (2 if T <= 2 else 3)
