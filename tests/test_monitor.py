"""The monitor: what it records is what the layers did, and nothing of it remains."""

import pytest
import torch
from cases import assert_same, dyadic
from networks import block
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn.measure import Monitor, firing_rates


@pytest.mark.parametrize("neuron", [
    {}, {"threshold": 0.5, "leak": 0.75, "v_init": 0.25}, {"threshold": torch.tensor(2.0), "gain": "threshold"},
], ids=["default", "leaky", "tensor"])  # fmt: skip
def test_trains_counts_and_potentials(neuron):
    net = block(**neuron).eval()
    x = torch.rand(3, 1, 4, 4)
    seen = {}
    for name, layer in net.named_modules():
        layer.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    with Monitor(net, potentials=True) as monitor:
        answer = net(x)
    assert torch.equal(answer, net(x))
    assert list(monitor) == ["1", "2.body", "3.body", "4", "6"]
    for name, recording in monitor.items():
        train = seen[name]
        assert_same(recording.train, te.SpikeTrain(train.planes, 8))
        assert torch.equal(recording.counts, train.counts)
        torch.testing.assert_close(recording.rates, train.to_dense(torch.float64).mean((0, 1)))
        v, spikes = recording.potentials, train.to_dense()
        assert v.shape == spikes.shape
        if name == "6":  # the gate silences trains at the window's end, not the potentials
            continue
        threshold, leak = (4.0, 1.0) if name == "4" else (neuron.get("threshold", 1.0), neuron.get("leak", 1.0))
        charged = (v + threshold * spikes) / leak  # the potential that met the threshold, up to rounding
        sure = (charged - threshold).abs() > 1e-5
        assert torch.equal((charged >= threshold)[sure], spikes.bool()[sure])


@pytest.mark.parametrize("threshold", [1.0, 0.5, torch.tensor([0.5, 2.0, 1.0, 4.0, 0.25])], ids=["1", "half", "tensor"])
@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_potentials_are_those_of_the_rule(threshold, leak):
    layer = tnn.Linear(6, 5, threshold=threshold, leak=leak, v_init=0.25)
    with torch.no_grad():
        layer.weight.copy_(dyadic(5, 6, unit=8))
        layer.bias.copy_(dyadic(5, unit=8))
    x = te.SpikeTrain.from_dense((torch.rand(8, 3, 6) < 0.4).float(), gain=0.5)
    residual = dyadic(8, 3, 5, unit=8)
    v = torch.full((3, 5), 0.25)
    expected, fired = [], []
    for s_in, more in zip(x.to_dense(), residual, strict=True):
        v = v + 0.5 * s_in @ layer.weight.T + layer.bias / 8 + more
        s = (v >= threshold).float()
        v = leak * v - threshold * s
        expected.append(v)
        fired.append(s)
    assert torch.equal(layer.potentials(x, residual), torch.stack(expected))
    assert torch.equal(layer(x, residual).to_dense(), torch.stack(fired))


def test_only_the_chosen_layers_and_only_while_entered():
    net = create(tnn, "8C3-8C3-FC16", (1, 6, 6), 3, 4).eval()
    x = torch.rand(5, 1, 6, 6)
    monitor = Monitor(net, ["conv*", "fc1"])
    net(x)
    assert len(monitor) == 0
    with monitor:
        net(x)
    net(x)
    assert list(monitor) == ["conv1", "conv2", "fc1"]
    assert monitor["fc1"].samples == 5
    assert monitor["fc1"].potentials is None
    assert all(not m._forward_hooks for m in net.modules())
    with Monitor(net, "conv2") as one:
        net(x)
    assert list(one) == ["conv2"]
    one.clear()
    assert len(one) == 0


def test_hooks_go_when_the_network_fails():
    net = create(tnn, "mlp", (4,), 3, 4)
    with pytest.raises(ValueError, match="4"), Monitor(net):
        net(torch.rand(2, 5))
    assert all(not m._forward_hooks for m in net.modules())


def test_memory_is_bounded_and_rates_are_of_all():
    net = create(tnn, "FC8", (4,), 3, 9).eval()
    batches = [torch.rand(7, 4) * 3 for _ in range(4)]
    with Monitor(net, samples=10, potentials=True) as monitor:
        for x in batches:
            net(x)
    whole = net.fc1(net.encoder(torch.cat(batches)))
    recording = monitor["fc1"]
    assert recording.samples == 28
    assert_same(recording.train, te.SpikeTrain(whole.planes, 9)[slice(18, None)])
    assert recording.train.planes.untyped_storage().nbytes() == 2 * 10 * 8
    assert recording.potentials.untyped_storage().nbytes() == 4 * 9 * 10 * 8
    torch.testing.assert_close(recording.rates, whole.to_dense(torch.float64).mean((0, 1)))


def test_calls_of_one_pass_are_recorded_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.layer, self.readout = tnn.Encoder(8), tnn.Linear(4, 4), tnn.Readout(4, 2)

        def forward(self, x):
            return self.readout(self.layer(self.layer(self.encoder(x))))

    net, x = Twice().eval(), torch.rand(5, 4)
    with torch.no_grad(), Monitor(net, potentials=True) as monitor:
        net(x)
        net(x)
        alone = net.layer(te.ConstantInput(x, 8))
    second = net.layer(alone)
    assert list(monitor) == ["layer", "layer:2"]
    assert (monitor["layer"].samples, monitor["layer:2"].samples) == (15, 10)
    assert torch.equal(monitor["layer"].train.planes, torch.cat([alone.planes] * 3, 1))
    assert torch.equal(monitor["layer:2"].train.planes, torch.cat([second.planes] * 2, 1))
    assert list(firing_rates(net, x)) == ["layer", "layer:2"]


def test_another_window_begins_anew():
    net = nn.Sequential(tnn.Linear(4, 3))
    with Monitor(net) as monitor:
        net(te.SpikeTrain.from_dense(torch.ones(8, 2, 4)))
        net(te.SpikeTrain.from_dense(torch.ones(5, 1, 4)))
    assert (monitor["0"].samples, monitor["0"].train.T) == (1, 5)


def test_training_is_not_disturbed():
    results = []
    for watched in False, True:
        torch.manual_seed(0)
        net = create(tnn, "FC8-D0.5", (4,), 3, 4)
        x = torch.rand(6, 4)
        with Monitor(net, samples=4) if watched else torch.enable_grad():
            net(x).square().sum().backward()
        results.append([*net.state_dict().values(), *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_mistakes():
    net = create(tnn, "mlp", (4,), 3, 4)
    with pytest.raises(ValueError, match=r"layers: 'conv\*' matches none of the layers with neurons: fc1, fc2"):
        Monitor(net, "conv*")
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        Monitor(net, samples=0)
    with pytest.raises(ValueError, match="evaluation mode"), Monitor(net, potentials=True):
        net.train()(torch.rand(2, 4))
    with Monitor(net) as monitor, pytest.raises(RuntimeError, match="already entered"), monitor:
        pass
