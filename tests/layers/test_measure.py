"""Synaptic operations spike by spike, rates, the penalty, mismatch; a monitor records what layers did, and goes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same, dyadic
from networks import Net, block, seen_by, shortcut
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import freeze, measure
from tandem_snn.measure import Monitor


def reached_by_each_spike(layer, spikes):
    """Σ over spikes of the synapses each reaches, by putting every spike alone into the convolution."""
    total = 0
    ones = torch.ones_like(layer.weight)
    conv = F.conv1d if layer.weight.dim() == 3 else F.conv2d
    for where in spikes.nonzero():  # t, b, c, *space
        alone = torch.zeros(1, *spikes.shape[2:])
        alone[(0, *where[2:])] = 1
        total += int(conv(alone, ones, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum())
    return total


@pytest.mark.parametrize("layer", [
    tnn.Conv1d(4, 6, 3, stride=2, padding=1), tnn.Conv2d(4, 6, 3, padding=1), tnn.Conv2d(4, 6, 3, stride=2),
    tnn.Conv2d(4, 6, 3, stride=(2, 1), padding=(0, 2), groups=2), tnn.Conv2d(4, 6, 2, padding="same", dilation=3),
    tnn.Conv2d(4, 6, (4, 3), padding="same", groups=2),
], ids=str)  # fmt: skip
def test_synops_of_a_convolution_are_counted_at_borders_strides_and_groups(layer):
    space = (7,) if isinstance(layer, tnn.Conv1d) else (7, 6)
    spikes = (torch.rand(3, 2, 4, *space) < 0.2).float()
    ops = measure.synops(nn.Sequential(layer), te.SpikeTrain.from_dense(spikes)).layers["0"]
    assert ops.acs == reached_by_each_spike(layer, spikes) / 2  # per sample
    assert ops.macs == 0
    outputs = layer(te.SpikeTrain.from_dense(spikes)).shape[1:].numel()
    assert ops.ann_macs == layer.weight[0].numel() * outputs


def test_synops_of_a_whole_network():
    net, x = block(), torch.randn(2, 1, 4, 4)
    result = measure.synops(net, x)
    assert net.training  # measured in evaluation mode, and put back
    assert all(module._forward_hooks_with_kwargs == {} for module in net.modules())
    given = {name: x for name, (x, _) in seen_by(net.eval(), x).items()}
    spikes = {name: x.counts.sum().item() / 2 for name, x in given.items() if isinstance(x, te.SpikeTrain)}
    ops = result.layers
    assert (ops["1"].macs, ops["1"].acs) == (9 * 64, 0)  # direct encoding: the ANN's MACs, once
    assert ops["2.body"].ann_macs == 36 * 64 + 64  # the identity is one synapse per neuron
    assert ops["2.body"].acs > spikes["2.body"]
    assert ops["3.body"].acs == ops["3.shortcut"].acs == 6 * spikes["3.body"]
    assert ops["4"].acs == spikes["4"]
    assert ops["6"].acs == 5 * spikes["6"]
    assert ops["7"].acs == 3 * spikes["7"]
    assert result.snn == sum(layer.macs + layer.acs for layer in ops.values())
    assert result.ann == 9 * 64 + 36 * 64 + 64 + 2 * 4 * 96 + 4 * 24 + 120 + 15
    assert result.ratio == result.snn / result.ann
    energy, acs = measure.energy(result), result.snn - 9 * 64
    assert (energy.ann, energy.snn) == (pytest.approx(4.6 * result.ann), pytest.approx(4.6 * 9 * 64 + 0.9 * acs))
    assert energy.ratio == energy.snn / energy.ann
    assert measure.energy(result, mac=1.0, ac=1.0).ratio == pytest.approx(result.ratio)
    with pytest.raises(TypeError, match=r"ops: expected the SynOps of synops\(\), got float"):
        measure.energy(result.snn)
    with pytest.raises(TypeError, match=r"mac: expected picojoules, a float, got '4.6' \(str\)"):
        measure.energy(result, mac="4.6")
    with pytest.raises(ValueError, match="ac: expected picojoules of at least 0, got -1"):
        measure.energy(result, ac=-1)
    layers = tnn.Conv2d(1, 4, 3), tnn.AvgPool2d(2, spiking=False), tnn.Flatten(), tnn.Readout(4, 2)
    net = nn.Sequential(tnn.Encoder(8), *layers)
    result = measure.synops(net, torch.rand(3, 1, 4, 4))
    assert list(result.layers) == ["1", "4"]
    assert result.layers["4"] == measure.LayerOps(ann_macs=8, macs=8, acs=0)  # mean counts are real numbers
    for function in measure.synops, measure.firing_rates, measure.mismatch, measure.activations:
        with pytest.raises(ValueError, match="x: expected at least one sample, got an empty batch"):
            function(net, torch.rand(0, 1, 4, 4))


def test_synops_of_frames_are_moves_times_the_synapses_they_reach():
    torch.manual_seed(0)
    first = tnn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2, timing="window")
    body = nn.Sequential(tnn.Conv2d(6, 6, 3, padding=1, groups=6, timing="window"))
    net = nn.Sequential(tnn.Encoder(8), first, tnn.Residual(body), tnn.AvgPool2d(2, timing="window"),
                        tnn.Flatten(), tnn.Linear(24, 5, timing="window"), tnn.Readout(5, 3)).eval()  # fmt: skip
    frozen, frames = freeze(net), torch.randn(3, 2, 2, 8, 8)
    frames[1], frames[2, 0] = frames[0], frames[0, 0]
    ops = measure.synops(frozen, frames)
    assert ops[1:].flatten()[:3].tolist() == [0, 0, 0]
    macs, expected = measure.synops(net, frames[0]).layers["1"].macs, torch.zeros(2, dtype=torch.float64)
    for _, moves in frozen.follow(frames[0]):
        spikes = {name: move.abs().double() for name, move in moves.items()}
        for name, layer, each in (("1", body[0], 1), ("2.body.0", net[3], 1)):
            expected += each * (spikes[name].sum(1) * measure.fan_out(layer, spikes[name].shape[2:])).sum((1, 2))
        expected += spikes["1"].sum((1, 2, 3)) + 5 * spikes["3"].sum((1, 2, 3)) + 3 * spikes["5"].sum(1)
    assert ops[0].tolist() == (macs + expected).tolist()
    again = measure.synops(frozen, [frames[0], frames[0].to(memory_format=torch.channels_last)])
    assert again[1].tolist() == [macs, macs]  # torch may round the same image otherwise in another layout
    with pytest.raises(ValueError, match="at least one frame"):
        measure.synops(frozen, [])


@pytest.mark.parametrize(
    "function", [measure.synops, measure.firing_rates, measure.mismatch, lambda net, x: Monitor(net)]
)
def test_an_ann_is_refused(function):
    with pytest.raises(ValueError, match=r"expected a network of layers of tandem_snn\.nn, found none"):
        function(nn.Linear(3, 2), torch.rand(1, 3))
    frozen = freeze(nn.Sequential(tnn.Encoder(8), tnn.Linear(3, 2), tnn.Readout(2, 2)))
    with pytest.raises(ValueError, match="net: a frozen network runs as one call"):
        function(frozen, torch.rand(1, 3))


class Mixing(nn.Module):
    """A layer of a user's own, by functions: ``fc``, and neurons."""

    def __init__(self, n):
        super().__init__()
        self.fc = nn.Linear(n, n, bias=False)

    def forward(self, x):
        with torch.no_grad():
            train = te.functional.if_scan(self.fc(x.to_dense()))
        return te.functional.couple(train, self.fc(x.counts))


class Flipped(nn.Module):
    def forward(self, x):
        return x.map(lambda t: t.flip(-1) if t.dim() else t)


def test_a_layer_of_ones_own_is_measured_or_named():
    """Its spikes are recorded as those of the same layer of the package; its synapses cannot be counted."""
    own, x = Mixing(12), torch.rand(5, 6)
    first, last = (tnn.Encoder(T=8), tnn.Linear(6, 12, gain=1.0)), tnn.Readout(12, 3)
    same = tnn.Linear(12, 12, bias=False, threshold=1.0)
    same.weight.data = own.fc.weight.data = dyadic(12, 12)
    nets = [nn.Sequential(*first, layer, last) for layer in (own, same)]
    assert torch.equal(*(net(x) for net in nets))
    assert measure.firing_rates(nets[0], x) == measure.firing_rates(nets[1], x)
    with Monitor(nets[0], "2", potentials=True) as monitor:
        nets[0](x)
    assert monitor["2"].potentials is None
    with pytest.raises(ValueError, match=r"net: '2' \(Mixing\) has neurons of its own, whose synapses"):
        measure.synops(nets[0], x)
    assert not {**own._forward_hooks, **own._forward_pre_hooks}
    without, flipped = (nn.Sequential(*first, *layers, last) for layers in ([], [Flipped()]))
    assert list(measure.synops(flipped, x).layers) == ["1", "3"]
    assert measure.synops(flipped, x).snn == measure.synops(without, x).snn


def test_synops_penalty_has_the_gradient_of_the_counts():
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 6, bias=False), tnn.Readout(6, 2))
    penalty = measure.synops_penalty(net)
    x = torch.rand(50, 4)
    net(x)
    (grad,) = torch.autograd.grad(penalty(), net[1].weight)
    open_ = net[1].preactivation(net[0](x)) > 0
    per_unit = 2 / measure.synops(net, x).ann / tnn.default_threshold(8)
    torch.testing.assert_close(grad, per_unit * open_.float().T @ x / 50)
    with pytest.raises(RuntimeError, match="forward"):
        penalty()
    penalty.remove()
    net(x)
    with pytest.raises(RuntimeError, match="forward"):
        penalty()
    with pytest.raises(ValueError, match=r"tandem_snn\.nn"):
        measure.synops_penalty(nn.Linear(2, 2))


def once_and_twice():
    layer, readout = tnn.Linear(6, 6, threshold=0.25), tnn.Readout(6, 3)
    return [nn.Sequential(tnn.Encoder(8), layer, second, readout) for second in (layer, copy.deepcopy(layer))]


def by_name_and_without():
    nets = [shortcut(named) for named in (True, False)]
    nets[1].load_state_dict(nets[0].state_dict())
    return nets


@pytest.mark.parametrize("make", [once_and_twice, by_name_and_without])
def test_two_ways_to_write_a_network_count_the_same(make):
    """A layer that is used twice counts twice, and a residual whether it is given by name or not."""
    found, x = [], torch.rand(20, 6)
    for net in make():
        penalty, ops = measure.synops_penalty(net), measure.synops(net, x)
        net(x)
        net(x)  # the last pass counts
        found.append((penalty().item(), ops.snn, ops.ann, list(measure.mismatch(net, x).values())))
    assert found[0] == found[1]
    assert make is by_name_and_without or list(measure.mismatch(make()[0], x)) == ["1", "1_again"]


def test_synops_penalty_counts_like_synops_in_every_layer():
    """Whatever inference there is between the pass and the penalty."""
    net = nn.Sequential(
        tnn.Encoder(8), tnn.Conv2d(2, 8, 3, padding=1), tnn.Conv2d(8, 8, 3, stride=2, dilation=2, groups=4),
        tnn.AvgPool2d(2), tnn.Residual(nn.Sequential(tnn.Conv2d(8, 8, 3, padding=1))), tnn.Flatten(),
        tnn.Readout(32, 3),
    )  # fmt: skip
    x = torch.rand(5, 2, 12, 12)
    penalty = measure.synops_penalty(net)
    net(x)
    with torch.inference_mode():
        net(x[:1])
        ops = measure.synops(net, x)
    (value := penalty()).backward()
    assert value.item() == pytest.approx((ops.snn - ops.layers["1"].macs) / ops.ann)
    assert net[1].weight.grad is not None
    freeze(net)(x)


def test_mismatch_is_none_in_one_step_and_spurious_spikes_later():
    """At T = 1 the count is exactly 1[z ≥ ϑ]; later there are over- and underfiring."""
    net = nn.Sequential(tnn.Encoder(1), tnn.Linear(16, 64), tnn.Linear(64, 64, threshold=torch.full((64,), 0.5)))
    for layer in net[1:]:
        nn.init.normal_(layer.weight)
    for result in measure.mismatch(net, torch.randn(50, 16)).values():
        assert (result.exact, result.over, result.under, result.spurious) == (1.0, 0.0, 0.0, 0.0)
        assert 0.7 < result.cosine < 1
    net = nn.Sequential(tnn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    early_excitation = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # fires at step 0, though z = 0
    late_current = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    spikes = torch.stack([early_excitation, late_current], dim=1)
    result = measure.mismatch(net, te.SpikeTrain.from_dense(spikes))["0"]
    assert (result.exact, result.over, result.under, result.spurious) == (0.5, 0.5, 0.0, 0.5)


@pytest.mark.parametrize("v_init", [None, 0.0, torch.tensor([0.0, 0.125, 0.25, 0.5])])
def test_with_window_timing_every_count_is_that_of_an_ideal_neuron(v_init):
    """It rounds at v_init; the numbers are of few bits, so that all sums are exact."""
    layer = tnn.Conv2d(2, 4, 3, threshold=0.25, v_init=v_init, timing="window")
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-8, 9, layer.weight.shape) / 16)
        layer.bias.copy_(torch.randint(-8, 9, (4,)) / 16)
    result = measure.mismatch(nn.Sequential(tnn.Encoder(8), layer), torch.randint(0, 4, (5, 2, 9, 9)) / 4)["1"]
    assert (result.exact, result.over, result.under) == (1.0, 0.0, 0.0)


def test_correlation_is_that_of_the_products_of_the_next_layer():
    net = nn.Sequential(
        tnn.Encoder(8), tnn.Conv2d(1, 4, 3, norm=True), tnn.MaxPool2d(2), tnn.Dropout(0.5), tnn.Flatten(),
        tnn.Linear(36, 20, threshold=0.5, norm=True), tnn.Readout(20, 3),
    )  # fmt: skip
    x = torch.randn(30, 1, 8, 8)
    net(x)
    net.eval()
    result = measure.mismatch(net, x)
    with torch.no_grad():
        train = net[1](net[0](x))
        a = net[1].preactivation(net[0](x)).relu()
        pooled = net[2](train).counts.flatten(1), F.max_pool2d(a, 2).flatten(1)
        hidden = net[5](net[4](net[2](train)))
        last = hidden.counts, net[5].preactivation(net[4](net[2](train))).relu() / 0.5
    for name, pair, weight in ("1", pooled, net[5].weight), ("5", last, net[6].weight):
        products = torch.stack([(values @ weight.T).flatten() for values in pair])
        assert result[name].correlation == pytest.approx(torch.corrcoef(products)[0, 1].item(), abs=1e-5)


class Attention(nn.Module):
    """q (kᵀ v) on counts, as a custom layer of tokens [B, D, N]; o is silent."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o, self.up = (tnn.Conv1d(8, 8, 1, timing="window", norm=True) for _ in range(5))
        nn.init.constant_(self.o.norm.bias, -1e6)

    def forward(self, x):
        q, k, v = (layer(x).counts for layer in (self.q, self.k, self.v))
        return self.up(self.o(te.ConstantInput(v @ k.mT @ q / 8, x.T)))


def test_a_layer_without_correlation_says_why():
    net = nn.Sequential(tnn.Encoder(8), tnn.Conv1d(4, 8, 1, timing="window", norm=True), Attention())
    found = measure.mismatch(net, torch.rand(5, 4, 6))
    unread = "no layer of tandem_snn.nn reads the counts"
    silent = "constant: W c and W a of the next layer; no neuron fires"
    assert {name: one.note for name, one in found.items()} == {
        "1": "", "2.q": unread, "2.k": unread, "2.v": unread, "2.o": silent, "2.up": unread,
    }  # fmt: skip
    assert all(math.isnan(one.correlation) == bool(one.note) for one in found.values())


def test_what_was_published_of_random_layers():
    """1024 -> 1024, weights of N(0, 1/1024), inputs of rate 0.2, T = 8: cosine 0.975, correlation 0.976."""
    layers = [tnn.Linear(1024, 1024, bias=False, threshold=1.0) for _ in range(2)]
    net = nn.Sequential(*layers, tnn.Readout(1024, 2))
    for layer in layers:
        nn.init.normal_(layer.weight, std=1 / 32)
    x = te.SpikeTrain.from_dense((torch.rand(8, 50, 1024) < 0.2).float())
    result = measure.mismatch(net, x)["0"]
    assert result.cosine == pytest.approx(0.975, abs=0.01)
    assert result.correlation == pytest.approx(0.976, abs=0.01)
    assert result.exact == pytest.approx(0.930, abs=0.02)
    assert result.over == pytest.approx(0.068, abs=0.02)


@pytest.mark.parametrize("neuron", [
    {}, {"threshold": 0.5, "leak": 0.75, "v_init": 0.25}, {"threshold": torch.tensor(2.0)}, {"gain": 2.0},
], ids=["default", "leaky", "tensor", "gain"])  # fmt: skip
def test_trains_counts_and_potentials(neuron):
    net, x = block(**neuron).eval(), torch.rand(3, 1, 4, 4)
    with Monitor(net, potentials=True) as monitor:
        answer = net(x)
    assert torch.equal(answer, net(x))
    assert list(monitor) == ["1", "2.body", "3.body", "4", "6"]
    seen = seen_by(net, x)
    for name, recording in monitor.items():
        given, train = seen[name]
        assert_same(recording.train, te.SpikeTrain(train.planes, 8))
        assert torch.equal(recording.counts, train.counts)
        torch.testing.assert_close(recording.rates, train.to_dense(torch.float64).mean((0, 1)))
        if name in ("1", "4", "6"):  # others have shortcuts
            assert torch.equal(recording.potentials, net.get_submodule(name).potentials(given))
        assert recording.potentials.shape == (8, *train.shape)


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
    net, x = create(tnn, "8C3-8C3-FC16", (1, 6, 6), 3, 4).eval(), torch.rand(5, 1, 6, 6)
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
        assert (one["conv2"].samples, one["conv2"].train.T) == (5, 4)
        net.encoder.T = 5  # another window begins anew
        net(x[:1])
    assert (one["conv2"].samples, one["conv2"].train.T) == (1, 5)
    assert list(one) == ["conv2"]
    one.clear()
    assert len(one) == 0
    net = create(tnn, "mlp", (4,), 3, 4)
    with pytest.raises(ValueError, match=r"layers: 'conv\*' matches no layer with neurons, of fc1, fc2"):
        Monitor(net, "conv*")
    for layers in (3, ["fc1", 3]):
        with pytest.raises(TypeError, match="layers: expected names of layers or patterns, got 3"):
            Monitor(net, layers)
    with pytest.raises(ValueError, match="samples: expected a positive int, got 0"):
        Monitor(net, samples=0)
    with pytest.raises(ValueError, match="evaluation mode"), Monitor(net, potentials=True):
        net.train()(torch.rand(2, 4))
    with Monitor(net) as monitor, pytest.raises(RuntimeError, match="cannot be entered twice"), monitor:
        pass
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


def test_with_window_timing_currents_arrive_at_once_and_may_have_no_steps():
    """Those of pixels, of a layer with its own T, and of attention have none; each potential ends as the counts say."""
    w = {"timing": "window"}
    currents = tnn.Linear(24, 16, neurons=False, **w)
    body = nn.Sequential(tnn.Linear(16, 24, T=33, **w), tnn.Linear(24, 16, **w))
    pixels = torch.randint(256, (5, 24), dtype=torch.uint8)
    for x, layers, expected in (
        (pixels, [tnn.Encoder(4, "pixels"), currents, tnn.Neurons(**w)], {"2": 8}),
        (torch.rand(5, 12), [tnn.Encoder(4), tnn.Linear(12, 24, T=9, **w), currents, tnn.Neurons(**w)],
         {"1": 13, "3": 8}),
        (torch.rand(5, 12), [tnn.Encoder(6), tnn.Linear(12, 16, **w), tnn.Residual(body, tnn.Linear(16, 16, **w))],
         {"1": 12, "2.body.0": 39, "2.body.1": 39}),
        (torch.rand(5, 3, 16), [tnn.Encoder(4), tnn.SelfAttention(16, 2), tnn.Neurons(**w)],
         {"1.qkv": 8, "1.fire": 8, "2": 8}),
    ):  # fmt: skip
        net = nn.Sequential(*layers).eval()
        with torch.no_grad(), Monitor(net, potentials=True) as monitor:
            net(x)
        assert {name: len(record.potentials) for name, record in monitor.items()} == expected
        for name, record in monitor.items():
            layer, v = net.get_submodule(name), record.potentials
            before = len(v) - record.train.T
            torch.testing.assert_close(v[before - 1] - v[-1], record.counts)  # in thresholds
            if isinstance(layer, tnn.Neurons):
                assert torch.equal(v[:before], v[:1].expand(before, *v.shape[1:]))


def test_potentials_take_time_that_grows_with_T(timing):
    """Each step of currents is made once, and those of the layers before it, too."""
    made, T = [], 40
    currents = torch.rand(T, 5, 16)

    def steps(start, stop):
        made.extend(range(start, stop))
        return currents[start:stop]

    neurons = tnn.Neurons(timing=timing)
    neurons.potentials(tnn.Currents(currents.sum(0), steps, T) * 0.5)
    assert made == (list(range(T)) if timing == "step" else [])


def test_calls_of_one_pass_are_recorded_apart():
    layers = {"encoder": tnn.Encoder(8), "layer": tnn.Linear(4, 4), "readout": tnn.Readout(4, 2)}
    net, x = Net(lambda m, x: m.readout(m.layer(m.layer(m.encoder(x)))), **layers).eval(), torch.rand(5, 4)
    with torch.no_grad(), Monitor(net, potentials=True) as monitor:
        net(x)
        net(x)
        alone = net.layer(net.encoder(x))
    second = net.layer(alone)
    assert list(monitor) == ["layer", "layer:2"]
    assert (monitor["layer"].samples, monitor["layer:2"].samples) == (15, 10)
    assert torch.equal(monitor["layer"].train.planes, torch.cat([alone.planes] * 3, 1))
    assert torch.equal(monitor["layer:2"].train.planes, torch.cat([second.planes] * 2, 1))
    assert list(measure.firing_rates(net, x)) == ["layer", "layer:2"]


def test_a_monitor_does_not_disturb_training():
    results = []
    for watched in False, True:
        torch.manual_seed(0)
        net, x = create(tnn, "FC8-D0.5", (4,), 3, 4), torch.rand(6, 4)
        with Monitor(net, samples=4) if watched else torch.enable_grad():
            net(x).square().sum().backward()
        results.append([*net.state_dict().values(), *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
