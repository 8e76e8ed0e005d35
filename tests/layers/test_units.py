"""Layers compute in the units of the ANN; with a threshold and a gain of 1 they are the networks of before."""

import hashlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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


@pytest.mark.kernels
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


@pytest.mark.parametrize("norm", [False, True])
def test_a_default_threshold_with_its_gain_takes_no_further_operator_in_training(norm, timing):
    """Small layers cost what their operators cost. Without batch norm the gradient of the bias is divided."""
    calls = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            calls.append(op)
            return op(*args, **(kwargs or {}))

    unit, counts = tnn.default_threshold(8, timing), torch.randint(0, 9, (6, 3)).float()
    for options, gain in (({"threshold": 1.0}, unit if norm else 1.0), ({}, unit)):
        layer = tnn.Linear(3, 5, norm=norm, timing=timing, **options)
        train = te.SpikeTrain.from_counts(counts.clone().requires_grad_(), 8, gain)
        x = train if timing == "window" else te.SpikeTrain(train.planes, 8, train.counts, gain)
        calls.append(None)
        with Counting():
            layer(x).counts.sum().backward()
    end = len(calls) - calls[::-1].index(None) - 1
    plain, default = calls[1:end], calls[end + 1 :]
    assert default == plain if norm else [op for op in default if op != torch.ops.aten.div.Tensor] == plain


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


def precise(kind, T):
    """A network at T: with default thresholds, given ones, learned ones in one layer, or converted; and its input."""
    torch.manual_seed(0)
    x = torch.rand(40, 2, 8, 8)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 9), nn.ReLU6(),
        nn.Linear(9, 3),
    )  # fmt: skip
    if kind == "converted":
        return ts.convert(net, T, data=[x]).eval(), x
    given = {"given": {"threshold": 0.5, "gain": 1.0, "v_init": 0.125}, "default": {"v_init": 0.25}}.get(kind, {})
    shared = {"threshold": nn.Parameter(torch.tensor(0.375))} if kind == "learned" else given
    window = {"timing": "window"}
    return nn.Sequential(
        tnn.Encoder(T, gain=3.0), tnn.Conv2d(2, 6, 3, norm=True, **window, **shared),
        tnn.AvgPool2d(2, **window), tnn.Residual(tnn.Conv2d(6, 6, 1, **window, **given)), tnn.Flatten(),
        tnn.Linear(54, 9, **window, **shared), tnn.Readout(9, 3),
    ).eval(), x  # fmt: skip


@pytest.mark.parametrize("kind", ["default", "given", "learned", "converted"])
def test_T_is_a_precision(kind):
    """The range of activations stays; more steps come closer to the ANN's, and back at the first T all bits are."""
    net, x = precise(kind, 8)
    trained, state = net(x), net.state_dict().keys()
    fine = tnn.set_T(net, 255)(x)
    assert tnn.set_T(net, 64) is net
    assert (net(x) - fine).abs().max() < (trained - fine).abs().max() / 4
    assert torch.equal(ts.freeze(net)(x), net(x))
    assert net.state_dict().keys() == state
    other = tnn.set_T(precise(kind, 8)[0], 64)
    other.load_state_dict({name: t + 0.125 if t.is_floating_point() else t for name, t in net.state_dict().items()})
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert {m.T for m in net.modules() if isinstance(m, tnn.Encoder)} == {64}
    net = tnn.set_T(tnn.set_T(precise(kind, 8)[0], 2), 16)
    for layer, before in zip(net.modules(), precise(kind, 8)[0].modules(), strict=True):
        if isinstance(layer, tnn.SpikingLayer):
            for value in "threshold_for", "spike_value":
                new, old = (torch.as_tensor(getattr(m, value)(T)) for m, T in ((layer, 16), (before, 8)))
                assert torch.equal(2 * new, old)
    assert torch.equal(tnn.set_T(net, 8)(x), trained)


def test_a_gradient_from_before_set_T_is_refused():
    """Learned thresholds change in place: what was computed with the old ones has no gradient any more."""
    net, x = precise("learned", 8)
    before = net(x).sum()
    tnn.set_T(net, 16)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()
    net(x).sum().backward()


@pytest.mark.parametrize("change", [lambda: tnn.default_threshold(256, "window"), lambda: tnn.Encoder(256, "pixels")])
def test_default_thresholds_and_pixels_need_a_T_of_window_timing(change):
    with pytest.raises(ValueError, match=r"T: expected an int from 1 to 255.*, got 256"):
        change()


def settings(net):
    return [str(getattr(m, name, None)) for m in net.modules() for name in ("T", "gain", "threshold", "v_init")]


SHARED = nn.Parameter(torch.tensor(0.3))


@pytest.mark.parametrize(("net", "T", "words"), [
    (nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3, threshold=SHARED, T=3, timing="window"),
                   tnn.Linear(3, 3, threshold=SHARED, timing="window")), 4, "T: layer '2' shares its threshold with"),
    (nn.Sequential(tnn.Linear(4, 3, timing="window")), 4, "T: it is that of the recordings.*: give it 4 steps"),
    (nn.Sequential(tnn.Encoder(8, "events"), tnn.Linear(4, 3, timing="window")), 4, "T: it is that of the recordings"),
    (nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3)), 4, "T: layer '1' has step timing"),
    (nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3, timing="window")), 256, "T: expected an int from 1 to 255"),
    (nn.Sequential(tnn.Encoder(8), tnn.Encoder(4), tnn.Linear(4, 3, timing="window")), 2, r"one T, got \[4, 8\]"),
    (ts.freeze(nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3), tnn.Readout(3, 2))), 4, "pass the original network"),
    (nn.Sequential(nn.Linear(4, 3)), 4, "net: expected a network of layers of tandem_snn.nn"),
])  # fmt: skip
def test_T_that_is_no_precision(net, T, words):
    before = settings(net)
    with pytest.raises(ValueError, match=words):
        tnn.set_T(net, T)
    assert settings(net) == before
