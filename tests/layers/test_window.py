"""Timing "window": laws, layers and networks. With any arguments: test_functional.py; in steps: test_following.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same, bursts, dyadic, dyadic_, train
from hypothesis import given
from hypothesis import strategies as st
from test_layers import LAYERS
from test_layers_shape import assert_same_gradients
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.measure import Monitor, firing_rates, mismatch, synops
from tandem_snn.nn import general, maximum

f, ref = te.functional, te.reference


def test_what_is_not_a_number_does_not_fire():
    counts = f.if_scan(te.ImpulseInput(torch.tensor([[float("nan"), float("inf"), -float("inf")]]), 8), timing="window")
    assert counts.stored.tolist() == [[[0, 8, 0]]]
    assert counts.counts.isnan().all()


@given(T=st.integers(1, 255), seed=st.integers(0, 2**16), threshold=st.sampled_from([0.5, 1.0, 1.25]))
def test_charge_is_conserved_and_counts_are_rounded_down(T, seed, threshold):
    torch.manual_seed(seed)
    v_init = 0.5 * (seed % 2)
    z = dyadic(1, 50, low=-8 * T, high=64 * T + 64)
    y, v = f.if_scan(te.ImpulseInput(z, T), threshold=threshold, v_init=float(v_init), timing="window", return_v=True)
    assert torch.equal(threshold * y.counts + v, v_init + z)
    assert torch.equal(y.counts, ((v_init + z) / threshold).floor().clamp(0, T))
    te.SpikeTrain(y.planes, T, timing="window")  # which are bursts without a high bit


@pytest.mark.parametrize("threshold", [0.3, torch.tensor(0.3), torch.rand(9) + 0.5], ids=["number", "0-dim", "[C]"])
@pytest.mark.parametrize("timing", ["window", "step"])
def test_by_default_counts_are_rounded_to_nearest_and_steps_start_at_zero(timing, threshold):
    x, y = te.ImpulseInput(dyadic(5, 9, high=64), 8), train(8, 5, 9)
    options = {"threshold": threshold, "timing": timing}
    start = threshold / 2 if timing == "window" else 0.0
    for function in (f.if_scan, ref.if_scan):
        explicit = function(x, v_init=start, return_v=True, **options)
        assert_same(function(x, return_v=True, **options), explicit)
        assert_same(function(x, v_init=None, return_v=True, **options), explicit)
    layer, same = (tnn.Linear(9, 9, **options, **given) for given in ({}, {"v_init": start}))
    same.load_state_dict(layer.state_dict(), strict=False)
    assert torch.equal(layer(y).stored, same(y).stored)
    assert torch.equal(layer.potentials(y), same.potentials(y))
    general_, same_ = (tnn.Neurons(9, **options, **given) for given in ({}, {"v_init": start}))
    assert torch.equal(general_(y).stored, same_(y).stored)
    nets = [nn.Sequential(tnn.Encoder(8, "events"), each, tnn.Readout(9, 2)).eval() for each in (layer, same)]
    nets[1].load_state_dict(nets[0].state_dict(), strict=False)
    assert torch.equal(ts.freeze(nets[0])(y), nets[1](y))
    assert layer.v_init is None
    assert "v_init" not in repr(layer)


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d same", "conv2d valid"])
@pytest.mark.parametrize("options", [
    {}, {"threshold": 0.75, "v_init": 0.25, "gate": "clip"}, {"weight_bits": 4}, {"threshold": torch.tensor(0.5)},
    {"gain": 1.0, "threshold": 0.5}, {"norm": True}, {"norm": True, "bn_stats": "running"},
])  # fmt: skip
def test_counts_are_those_of_the_ann_rounded(name, options):
    """The layer's whole meaning, beside torch's own product: c = clip(⌊(z + v_init)/ϑ⌋, 0, T)."""
    cls, _, sizes, geometry, features = LAYERS[name]
    layer, shape = dyadic_(cls(*sizes, **geometry, timing="window", **options)), (5, *features)
    for x in (train(8, *shape, gain=0.5), bursts(8, *shape), te.ConstantInput(dyadic(*shape), 8)):
        with torch.no_grad():
            twin = copy.deepcopy(layer)
            y, z = layer(x), twin.preactivation(x).double()
            z = twin.eval().preactivation(x).double() if layer.bn_stats == "running" else z
        theta, v_init = float(layer.threshold_for(8)), float(layer.unit(8) * layer.initial_potential)
        exact = (z + v_init) / theta
        near = (exact - exact.round()).abs() < 1e-4  # where rounding decides
        counts = exact.floor().clamp(0, 8)
        assert (y.timing, y.gain) == ("window", options.get("gain", theta))
        assert torch.equal(y.counts.double()[~near], counts[~near])
        assert 0 < counts.mean() < 8
        if layer.norm is not None and layer.bn_stats == "batch":
            torch.testing.assert_close(layer.norm.running_var, twin.norm.running_var)


@pytest.mark.parametrize("name", ["residual", "projection"])
@pytest.mark.parametrize("x", [train, bursts])
def test_a_residual_adds_its_counts_to_the_sum(name, x):
    shortcut = tnn.Conv2d(4, 4, 1, timing="window") if name == "projection" else None
    body = nn.Sequential(*(tnn.Conv2d(4, 4, 3, padding=1, timing="window", threshold=1.0) for _ in range(2)))
    block, x = dyadic_(tnn.Residual(body, shortcut)), x(8, 3, 4, 6, 6, gain=0.5)
    hidden = body[0](x)
    direct = 0.5 * x.counts if shortcut is None else shortcut.preactivation(x)
    z = body[1].preactivation(hidden) + direct
    assert torch.equal(block(x).counts, (z + 0.5).floor().clamp(0, 8))
    assert block(x).gain == 1.0


@pytest.mark.parametrize("T", [3, 8, 20])
def test_maximum_pooling_the_general_way_is_the_largest_count(T):
    counts = torch.randint(T + 1, (3, 4, 9, 7)).float().requires_grad_()
    for each in counts.detach(), counts:
        y = maximum.MaxPool("max_pool2d", 3, 2, 1)(te.SpikeTrain.from_counts(each, T))
        assert (y.timing, y.T) == ("window", T)
        assert torch.equal(y.counts, F.max_pool2d(counts, 3, 2, 1))
        assert torch.equal(y.count_bytes[0], y.counts.to(torch.uint8))
    assert_same_gradients(y.counts, F.max_pool2d(counts, 3, 2, 1), counts)


def test_dropout_flatten_and_join_keep_the_form():
    x = bursts(8, 4, 3, 5, 5)
    kept, both = tnn.Dropout(0.5)(x), general.rearranged("cat", True, [x, train(8, 4, 3, 5, 5)], 1)
    for y in (kept, tnn.Flatten()(x), general.rearranged("cat", True, [x, x], 1)):
        assert y.timing == "window"
    assert set((kept.counts[x.counts > 0] / x.counts[x.counts > 0]).tolist()) == {0.0, 1.0}
    assert both.timing == "step"
    assert torch.equal(both.to_dense()[:, :, :3], x.to_dense())


@pytest.mark.parametrize("T", [3, 8, 11])
def test_neurons_on_currents_are_the_fused_layer(T):
    """As the fused layer, and as many products as the ANN: the steps' currents are never asked for."""
    x, linear = bursts(T, 5, 12), dyadic_(nn.Linear(12, 9))
    u = general.linear_map(linear, x)
    u._steps = None
    neurons = tnn.Neurons(9, threshold=torch.tensor(0.5), v_init=0.25, timing="window")
    fused = tnn.Linear(12, 9, threshold=torch.tensor(0.5), v_init=0.25, timing="window")
    fused.load_state_dict(linear.state_dict() | {"threshold": torch.tensor(0.5)})
    assert_same(neurons(u), fused(x))
    trace = neurons.potentials(general.linear_map(linear, x))
    torch.testing.assert_close(trace[-1], fused.potentials(x)[-1])
    neurons.threshold, neurons.gain = 0.25, 2.0
    fused.threshold, fused.gain = 0.25, 2.0
    assert_same(neurons(general.linear_map(linear, x)), fused(x))


@pytest.mark.parametrize("make", [
    lambda: train(6, 4, 12), lambda: bursts(6, 4, 12), lambda: te.ConstantInput(dyadic(4, 12), 6),
    lambda: te.ImpulseInput(dyadic(4, 12), 6),
])  # fmt: skip
def test_potentials_integrate_for_a_window_and_fire_in_the_next(make):
    T, x, residual = 6, make(), train(6, 4, 9)
    layer = dyadic_(tnn.Linear(12, 9, timing="window", v_init=0.5, threshold=1.0))
    for options in ({}, {"residual": residual}):
        v, y = layer.potentials(x, **options), layer(x, **options)
        assert v.shape == (2 * T, 4, 9)
        assert torch.equal(v[T - 1], 0.5 + layer.preactivation(x, **options))
        fired = (v[T - 1 : -1] - v[T:]).bool()  # ϑ is 1
        assert torch.equal(fired, y.to_dense().bool())
    pool, image = tnn.AvgPool2d(2, timing="window"), bursts(6, 2, 3, 4, 4)
    v = pool.potentials(image)
    assert torch.equal((v[5:-1] - v[6:]).bool(), pool(image).to_dense().bool())


def test_measures_are_of_windows():
    windows = {"timing": "window", "v_init": 0.0}
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(12, 20, **windows), tnn.Linear(20, 9, **windows),
                        tnn.Linear(9, 8), tnn.Readout(8, 3)).eval()  # fmt: skip
    x = torch.rand(7, 12)
    with Monitor(net, potentials=True) as monitor:
        net(x)
        net(x)
    train_ = monitor["1"].train
    assert (train_.timing, len(train_), monitor["2"].potentials.shape) == ("window", 14, (16, 14, 9))
    rates, operations = firing_rates(net, x), synops(net, x)
    assert rates["1"] == pytest.approx(monitor["1"].rates.mean().item())
    assert operations.layers["2"].acs == pytest.approx(9 * train_.counts[:7].sum().item() / 7)
    assert mismatch(net, x)["2"].over == 0  # no neuron fires too early
