"""A layer's own T: the number of steps in which its neurons fire, with timing "window"."""

import copy
import dataclasses

import pytest
import torch
from networks import Net, at_the_counts, check_frozen, seen_by, trained
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

WINDOW = {"timing": "window"}


def sequence(*windows, T=8, norm=True):
    """Layers with these T, their encoder's first."""
    sizes = [20, 30, 24, 12, 9]
    layers = [tnn.Linear(a, b, norm=norm, T=T, **WINDOW) for a, b, T in zip(sizes, sizes[1:], windows, strict=False)]
    return nn.Sequential(tnn.Encoder(T), *layers, tnn.Readout(sizes[len(windows)], 5))


def test_the_default_is_that_of_the_network():
    net = sequence(16, None, 3, None)
    trains = [y for _, y in seen_by(net, torch.rand(64, 20)).values() if isinstance(y, te.SpikeTrain)]
    assert [train.T for train in trains] == [16, 8, 3, 8]
    assert [train.network_T for train in trains] == [8] * 4
    assert [train.gain for train in trains] == [tnn.default_threshold(train.T, "window") for train in trains]
    assert trains[0].to_dense().shape == (16, 64, 30)
    assert trains[0].counts.max() > 8
    train = dataclasses.replace(trains[0], counts=trains[0].counts)
    assert (train.T, train.network_T) == (16, 8)
    copied = torch.utils._pytree.tree_map(lambda t: t, trains[0])
    assert (copied.T, copied.network_T, copied[:2].network_T, copied.detach().network_T) == (16, 8, 8, 8)


@pytest.mark.parametrize("T", [1, 2, 8, 31])
def test_a_count_is_z_at_the_real_counts_rounded(T):
    """With numbers whose sums are exact; batch norm's, too. A bias is that of the window, whatever T."""
    torch.manual_seed(T)
    net = nn.Sequential(tnn.Encoder(T), *(
        tnn.Linear(20, 20, threshold=2.0**-k, T=own, norm=k == 2, **WINDOW) for k, own in enumerate([5, None, 40, 2])
    )).double().eval()  # fmt: skip
    for p in net.parameters():
        p.data.copy_((p * 64).round() / 64)
    net[3].norm.running_var.fill_(1 - net[3].norm.eps)
    for name, (x, y) in list(seen_by(net, torch.randint(-64, 64, (6, 20)).double() / 16).items())[1:-1]:
        layer, own = net[int(name)], y.T
        z = layer.preactivation(x)
        assert torch.equal(y.counts, (z / layer.threshold + 0.5).floor().clamp(0, own)), name
        assert y.counts.max() > 0


def test_the_limit_is_the_ann():
    torch.manual_seed(0)
    net, x = trained(sequence(16, None, 12, None), torch.rand(64, 20)), torch.rand(64, 20)
    errors, expected = [], ts.to_ann(net)(x)
    for T in (8, 64, 120):
        ts.calibrate(tnn.set_T(net, T), [x], percentile=100)
        errors.append(((net(x) - expected).norm() / expected.norm()).item())
    assert net[1].T == 240
    assert errors[2] < 0.02
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_are_the_ann_s_at_the_counts(norm):
    net = sequence(16, None, 3, 40, norm=norm).double()
    for layer in net[1:-1]:
        layer.gate = "relu"
    x, target = torch.rand(32, 20).double(), torch.randn(32, 5).double()
    net(x), net(x)
    answers = net(x), at_the_counts(net, x)
    torch.testing.assert_close(*answers)
    torch.testing.assert_close(*(torch.autograd.grad((y * target).sum(), [*net.parameters()]) for y in answers))


def test_the_gate_closes_where_the_counts_end():
    layer = tnn.Linear(1, 3, bias=False, threshold=1.0, T=16, **WINDOW)
    layer.weight.data.copy_(torch.tensor([[15.0], [16.0], [-1.0]]))
    (gradient,) = torch.autograd.grad(layer(te.ImpulseInput(torch.ones(1, 1), 4)).counts.sum(), layer.weight)
    assert gradient.flatten().tolist() == [1, 0, 0]


def branches(kind, T=8):
    """Two branches of different T, joined, added, or one of them a residual."""
    options = {"norm": True, **WINDOW}
    conv = {"padding": 1, **options}
    layers = {"encoder": tnn.Encoder(T), "a": tnn.Conv2d(2, 6, 3, T=16, **conv), "b": tnn.Conv2d(2, 6, 3, T=4, **conv)}
    if kind == "cat":
        layers |= {"pool": tnn.MaxPool2d(3, 1, 1), "average": tnn.AvgPool2d(3, 1, 1, timing="window")}
        layers |= {"last": tnn.Conv2d(12, 6, 1, **options)}
        join = lambda m, a, b: m.last(m.average(te.cat([m.pool(b), a], 1)))  # noqa: E731
    elif kind == "sum":
        layers |= {"current": tnn.Conv2d(6, 6, 3, neurons=False, **conv), "last": tnn.Neurons(6, T=20, **options)}
        layers |= {"average": tnn.AvgPool2d(3, 1, 1, spiking=False)}
        join = lambda m, a, b: m.last(m.average(m.current(a) + b) * 0.5 + a)  # noqa: E731
    else:
        layers |= {"pool": tnn.AvgPool2d(3, 1, 1, timing="window"), "last": tnn.Conv2d(6, 6, 3, T=33, **conv)}
        join = lambda m, a, b: m.last(m.pool(a), b)  # noqa: E731

    def forward(m, x):
        x = m.encoder(x)
        return m.readout(join(m, m.a(x), m.b(x)))

    return Net(forward, **layers, readout=tnn.ReadoutConv2d(6, 3, 1))


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", ["cat", "sum", "residual"])
def test_branches_of_different_T(kind, bits, tmp_path):
    net, x = branches(kind), torch.rand(4, 2, 9, 7)
    for layer in net.modules():
        if bits is not None and isinstance(layer, (tnn.Conv2d, tnn.ReadoutConv2d)):
            layer.weight_bits = bits
    check_frozen(trained(net, x), x, tmp_path, "window")
    for layer in net.modules():
        if isinstance(layer, tnn.SpikingLayer):
            layer.gate = "relu"
    if bits is None:
        net, x = net.double(), x.double()
        answers = net(x), at_the_counts(net, x)
        torch.testing.assert_close(*answers)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), [*net.parameters()]) for y in answers))


def test_trains_that_are_joined_have_the_largest_T():
    a, b = (te.SpikeTrain.from_counts(torch.full((2, n), T), T, gain=g) for n, T, g in ((3, 4, 0.5), (2, 8, 2.0)))
    joined = te.cat([a, b], 1)
    assert joined.T == joined.network_T == 8
    assert joined.counts.tolist() == joined.to_dense().sum(0).tolist() == [[4, 4, 4, 8, 8]] * 2
    assert joined.gain.tolist() == [0.5] * 3 + [2.0] * 2
    assert te.collate([a, a.replace(T=9)]).T == 9
    with pytest.raises(ValueError, match="signals: expected the same gain"):
        te.cat([b, te.SpikeTrain.from_counts(torch.ones(2, 2), 4)])
    steps = te.SpikeTrain.from_dense(torch.ones(4, 2, 2), gain=2.0)
    for pair in ([steps, b], [b, steps]):
        with pytest.raises(ValueError, match="only trains with timing 'window' may have different ones"):
            te.cat(pair, 1)


def test_step_timing_has_the_steps_of_the_network():
    with pytest.raises(ValueError, match="T: with timing='step' neurons fire in the network's steps, expected None"):
        tnn.Linear(3, 5, T=4)
    layer = tnn.Linear(20, 5, T=4, **WINDOW)
    with pytest.raises(ValueError, match="T: with timing='step'"):
        layer.timing = "step"
    for T, error in ((0, ValueError), (256, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="T: expected an int from 1 to 255 with timing='window'"):
            layer.T = T
    layer.T = None
    layer.timing = "step"
    spikes = tnn.Linear(20, 20, T=16, **WINDOW)(te.ConstantInput(torch.rand(2, 20), 8))
    own = "timing: neurons with timing 'step' read the steps of their network, T=8, got the spikes of a layer with its "
    for reader in (layer, tnn.Neurons()):
        with pytest.raises(ValueError, match=own):
            reader(spikes)
    with pytest.raises(ValueError, match="residual: expected a train of T=8 steps as x has, got T=16"):
        tnn.Linear(20, 20)(te.ConstantInput(torch.rand(2, 20), 8), spikes)


@pytest.mark.kernels
def test_a_program_has_one_number_of_steps():
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(20, 20, T=16, **WINDOW), tnn.Linear(20, 5), tnn.Readout(5, 3))
    with pytest.warns(UserWarning, match="2: it reads step by step the spikes of a layer with its own T=16"):
        ts.freeze(net)


def test_set_T_changes_each_in_proportion():
    net = sequence(16, None, 3, 1)
    net[3].threshold, net[3].v_init, net[4].gain = torch.tensor(0.25), 0.125, 0.5
    before = copy.deepcopy(net)
    assert [layer.T for layer in tnn.set_T(net, 4)[1:-1]] == [8, None, 2, 1]  # 1.5 becomes 2, 0.5 at least 1
    scaled = 3 / 2
    assert (net[3].threshold.item(), net[3].v_init, net[4].gain) == (0.25 * scaled, 0.125 * scaled, 0.5)
    for layer, old in zip(net[1:-1], before[1:-1], strict=True):
        ceilings = (float(each.threshold_for(T)) * each.own_T(T) for each, T in ((layer, 4), (old, 8)))
        assert next(ceilings) == pytest.approx(next(ceilings))
    with pytest.raises(ValueError, match="T of layer '1': expected an int from 1 to 255"):
        tnn.set_T(net, 128)
    assert net[0].T == 4


def test_measures_are_of_the_steps_of_each_layer():
    torch.manual_seed(0)
    net, x = sequence(16, None, 3, 200, norm=False).eval(), 5 * torch.rand(8, 20)
    with ts.measure.Monitor(net, potentials=True) as monitor:
        net(x)
    assert [len(record.potentials) for record in monitor.values()] == [8 + 16, 16 + 8, 8 + 3, 3 + 200]
    for name, record in monitor.items():
        layer = net[int(name)]
        last = record.potentials[-1], record.potentials[-len(record.train.to_dense()) - 1]
        torch.testing.assert_close(last[1] - last[0], record.counts)  # in thresholds
        assert 0 < record.rates.max() <= 1
        assert layer.own_T(8) == record.train.T
    rates = ts.measure.firing_rates(net, x)
    assert rates == {name: pytest.approx(r.counts.mean().item() / r.train.T) for name, r in monitor.items()}
    assert all(result.exact > 0.3 for result in ts.measure.mismatch(net, x).values())
    assert ts.measure.synops(net, x).layers["2"].acs == monitor["1"].counts.sum().item() * 24 / 8


@pytest.mark.parametrize("how", [torch.compile, torch.export.export])
def test_graphs(how):
    net, x = trained(sequence(16, None, 3), torch.rand(50, 20)), torch.rand(8, 20)
    torch._dynamo.reset()
    graph = torch.compile(net, backend="aot_eager") if how is torch.compile else how(net, (x,)).module()
    assert torch.equal(graph(x), net(x))


def test_nir_names_the_layer(tmp_path):
    pytest.importorskip("nir")
    with pytest.raises(ValueError, match="1: it has its own T=16, but a NIR graph has one, here 8"):
        ts.to_nir(sequence(16, None).eval(), torch.rand(1, 20), window=True)
