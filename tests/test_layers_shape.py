"""Pooling, flatten, dropout and residual, on every kind of input."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import dyadic, train, train_with_edge
from test_convert import at_the_counts
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import freeze, load

pytestmark = pytest.mark.usefixtures("on_device")
F64 = torch.float64
DIRECT = (te.ConstantInput, te.ImpulseInput)
POOLS = [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (2, 3), "stride": (1, 2)}]


def channels_last(x):
    """The same train, as convolutions give it."""
    planes = x.planes.movedim(2, -1).contiguous().movedim(-1, 2)
    return te.SpikeTrain(planes, x.T, x.counts.contiguous(memory_format=torch.channels_last), x.gain)


@pytest.mark.parametrize("options", POOLS)
def test_avg_pool_is_a_layer_of_if_neurons(options):
    x = train_with_edge(8, 2, 3, 8, 8, gain=0.5)
    pooled = tnn.AvgPool2d(**options)(x)
    pool = nn.AvgPool2d(**options)
    values = values_of(options["kernel_size"])
    currents = torch.stack([(values * pool(s)).round() for s in x.to_dense()])
    expected = te.reference.if_scan(currents, threshold=float(values))
    assert pooled.gain == 0.5
    assert torch.equal(pooled.planes, expected.planes)
    w = torch.randn(pooled.shape)
    (got,) = torch.autograd.grad((pooled.counts * w).sum(), x.counts)
    counts = x.counts.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((F.relu(pool(counts)) * w).sum(), counts)
    torch.testing.assert_close(got, expected)


def values_of(kernel):
    return kernel * kernel if isinstance(kernel, int) else math.prod(kernel)


@pytest.mark.parametrize("v_init", [None, 0.0, 0.5])
@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("kernel", [2, 3, (2, 3), 5, 6, 7])
def test_average_pooling_is_integer_arithmetic(kernel, timing, v_init, tmp_path):
    """Nothing is rounded, for any kernel: layers in all types, frozen networks, files."""
    T, k2, spikes = 32, values_of(kernel), []
    given = torch.rand(T, 2, 3, 14, 14) < 0.4
    sums = (k2 * F.avg_pool2d(given.double().flatten(0, 1), kernel)).round().long().unflatten(0, (T, 2))
    half = k2 * (v_init == 0.5 or (v_init is None and timing == "window"))
    v = half + (2 * sums.sum(0) if timing == "window" else 0)  # in units of half a spike
    for sum_ in sums:
        v = v + (2 * sum_ if timing == "step" else 0)
        spikes.append(v >= 2 * k2)
        v = v - 2 * k2 * spikes[-1]
    expected, pool = torch.stack(spikes), tnn.AvgPool2d(kernel, v_init=v_init, timing=timing)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = te.SpikeTrain.from_dense(given.to(dtype))
        assert torch.equal(pool(x).to_dense(torch.bool), expected), dtype
    assert torch.equal(pool.potentials(x)[-1], v / 2)
    net = nn.Sequential(pool, tnn.Flatten(), tnn.Readout(expected[0, 0].numel(), 5))
    freeze(net).save(tmp_path / "net.tandem")
    x = te.SpikeTrain.from_dense(given)
    for network in (net, freeze(net), load(tmp_path / "net.tandem")):
        assert torch.equal(network(x), net[2](expected.sum(0).flatten(1).float()))


@pytest.mark.parametrize("spiking", [True, False])
def test_avg_pool_on_other_inputs(spiking):
    pool = tnn.AvgPool2d(2, spiking=spiking)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(pool(x), F.avg_pool2d(x, 2))
    for kind in DIRECT:
        out = pool(kind(x, 8, 0.5))
        counts = out.counts * out.gain if spiking else out
        torch.testing.assert_close(counts, 0.5 * F.avg_pool2d(kind(x, 8).counts, 2))
        assert isinstance(out, kind) == spiking
    spikes = train_with_edge(8, 2, 3, 4, 4, gain=0.5)
    if not spiking:
        torch.testing.assert_close(pool(spikes), 0.5 * F.avg_pool2d(spikes.counts, 2))
    assert not list(pool.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_avg_pool_keeps_the_type_of_counts(dtype):
    layers = tnn.Conv2d(1, 2, 3, padding=1), tnn.AvgPool2d(2), tnn.AdaptiveAvgPool2d(1), tnn.Flatten()
    net = nn.Sequential(tnn.Encoder(T=4), *layers, tnn.Readout(2, 3)).to(dtype)
    x = torch.rand(2, 1, 8, 8, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(net(x), net.eval()(x))
    assert net(x).dtype == dtype


def test_adaptive_avg_pool_gives_mean_counts():
    pool = tnn.AdaptiveAvgPool2d(1)
    x = train_with_edge(8, 2, 3, 5, 4, gain=0.5)
    out = pool(x)
    torch.testing.assert_close(out, 0.5 * x.counts.mean((2, 3), keepdim=True))
    (grad,) = torch.autograd.grad(out.sum(), x.counts)
    torch.testing.assert_close(grad, torch.full_like(grad, 0.5 / 20))
    y = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(pool(te.ConstantInput(y, 8)), 8 * pool(y))
    torch.testing.assert_close(pool(te.ImpulseInput(y, 8)), pool(y))


MAX_POOLS = [
    *POOLS,
    {"kernel_size": 2, "dilation": 2},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True},
]


@pytest.mark.parametrize("layout", [lambda x: x, channels_last])
@pytest.mark.parametrize("T", [3, 8, 17])
@pytest.mark.parametrize("options", MAX_POOLS)
def test_max_pool_is_the_or_of_the_window(options, T, layout):
    x = layout(train(T, 2, 3, 8, 7, rate=0.2, gain=0.5))
    pooled = tnn.MaxPool2d(**options)(x)
    expected = torch.stack([F.max_pool2d(s, **options) for s in x.to_dense()])
    assert torch.equal(pooled.to_dense(), expected)
    assert torch.equal(pooled.counts, expected.sum(0))
    assert pooled.gain == 0.5
    te.SpikeTrain(pooled.planes, T)  # no high bit


@pytest.mark.parametrize("layout", [lambda x: x, channels_last])
@pytest.mark.parametrize("options", MAX_POOLS)
def test_max_pool_has_torchs_gradient_on_the_counts(options, layout):
    leaf = train_with_edge(8, 2, 3, 8, 7, dtype=F64)
    x = layout(leaf)
    pooled = tnn.MaxPool2d(**options)(x)
    assert torch.equal(pooled.counts, pooled.detach().to_dense(F64).sum(0))
    w = torch.randn(pooled.shape, dtype=F64)
    (got,) = torch.autograd.grad((pooled.counts * w).sum(), leaf.counts)
    counts = leaf.counts.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((F.max_pool2d(counts, **options) * w).sum(), counts)
    torch.testing.assert_close(got, expected)


def test_max_pool_on_other_inputs():
    pool, x = tnn.MaxPool2d(2), torch.randn(2, 3, 4, 4)
    assert torch.equal(pool(x), F.max_pool2d(x, 2))
    for kind in DIRECT:
        out = pool(kind(x, 8, 0.5))
        assert isinstance(out, kind)
        assert torch.equal(out.x, F.max_pool2d(x, 2))
        assert (out.T, out.gain) == (8, 0.5)


@pytest.mark.parametrize("layout", [lambda x: x, channels_last])
def test_flatten_keeps_the_order_of_channels_and_space(layout):
    x = layout(train_with_edge(9, 2, 3, 4, 5, gain=0.5))
    flat = tnn.Flatten()(x)
    assert torch.equal(flat.to_dense(), x.to_dense().flatten(2))
    assert torch.equal(flat.counts, x.counts.flatten(1))
    assert flat.counts.requires_grad
    assert flat.gain == 0.5
    assert tnn.Flatten(2)(x).shape == (2, 3, 20)
    assert tnn.Flatten(-3, -2)(x).shape == (2, 12, 5)


def test_flatten_on_other_inputs():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(tnn.Flatten()(x), x.flatten(1))
    for kind in DIRECT:
        assert torch.equal(tnn.Flatten()(kind(x, 8)).x, x.flatten(1))
    flat = train(8, 2, 3)
    assert torch.equal(tnn.Flatten()(flat).planes, flat.planes)
    with pytest.raises(ValueError, match="batch"):
        tnn.Flatten(0)
    with pytest.raises(TypeError, match="list"):
        tnn.Flatten()([1])


@pytest.mark.parametrize("layout", [lambda x: x, channels_last])
def test_dropout_silences_whole_trains(layout):
    leaf = train_with_edge(20, 4, 8, 5, 5, rate=0.9, gain=0.5)
    x = layout(leaf)
    out = tnn.Dropout(0.4)(x)
    kept = out.counts > 0
    assert 0.5 < kept.double().mean() < 0.7
    assert torch.equal(out.to_dense(), x.to_dense() * kept)  # one mask for all steps
    assert torch.equal(out.counts, x.counts * kept)
    assert out.gain == pytest.approx(0.5 / 0.6)
    assert not torch.equal(kept[0], kept[1])
    (grad,) = torch.autograd.grad(out.counts.sum(), leaf.counts)
    assert torch.equal(grad, kept.float())


def test_dropout_reaches_the_next_layer_as_torchs_does():
    x, layer = train(8, 64, 100), tnn.Linear(100, 5, bias=False, dtype=F64)
    dropped = tnn.Dropout(0.5)(x)
    torch.testing.assert_close(layer.preactivation(dropped), 2 * F.linear(dropped.counts.double(), layer.weight))


def test_dropout_is_off_in_evaluation_and_on_other_inputs_scales_what_they_are_worth():
    dropout, x = tnn.Dropout(0.5), torch.ones(200, 10)
    assert set(dropout(x).unique().tolist()) == {0.0, 2.0}
    for kind in DIRECT:
        out = dropout(kind(x, 8, 0.25))
        assert out.gain == 0.5
        assert set(out.x.unique().tolist()) == {0.0, 1.0}
    spikes = train(8, 3, 4)
    assert dropout.eval()(spikes) is spikes
    assert tnn.Dropout(0.0)(spikes) is spikes
    assert tnn.Dropout(1.0)(spikes).counts.sum() == 0
    assert tnn.Dropout(1.0)(spikes).gain == 1.0
    with pytest.raises(ValueError, match="dropout probability"):
        tnn.Dropout(1.5)


def test_identity_residual_adds_what_the_spikes_are_worth():
    x = train(8, 2, 4, 6, 6, gain=0.5)
    body = tnn.Conv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        body.weight.copy_(dyadic(*body.weight.shape))
        body.bias.copy_(dyadic(4))
    out = tnn.Residual(body)(x)
    currents = torch.stack([F.conv2d(0.5 * s, body.weight, padding=1) + 0.5 * s for s in x.to_dense()])
    currents += body.bias.view(-1, 1, 1) / 8
    assert torch.equal(out.planes, te.reference.if_scan(currents).planes)
    assert out.gain == 1.0


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("train_mode", [True, False])
def test_projection_residual_feeds_one_neuron(norm, train_mode, timing):
    """Its gradients are the twin's at the network's own counts."""
    options = {"norm": norm, "dtype": F64, "timing": timing}
    body = nn.Sequential(tnn.Conv2d(4, 4, 3, padding=1, **options), tnn.Conv2d(4, 6, 3, 2, 1, **options))
    first, block = tnn.Conv2d(2, 4, 3, **options), tnn.Residual(body, tnn.Conv2d(4, 6, 1, 2, **options))
    net = nn.Sequential(tnn.Encoder(8), first, block).train(train_mode)
    x, w = torch.randn(3, 2, 8, 8, dtype=F64), torch.randn(3, 6, 3, 3, dtype=F64)
    parameters = [*net.parameters()]
    found, expected = (torch.autograd.grad((y * w).sum(), parameters) for y in (net(x).counts, at_the_counts(net, x)))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)
    spikes = first(net[0](x))
    torch.testing.assert_close(block.shortcut(spikes, fire=False).sum(0), block.shortcut.preactivation(spikes))


@pytest.mark.parametrize("kind", DIRECT)
def test_projection_of_a_direct_input(kind):
    x = kind(torch.randn(3, 4, 6, 6), 8)
    shortcut = tnn.Conv2d(4, 4, 1)
    currents = shortcut(x, fire=False)
    per_step = [F.conv2d(x.x * (t == 0 or kind is te.ConstantInput), shortcut.weight) for t in range(8)]
    expected = torch.stack(per_step) + shortcut.bias.view(-1, 1, 1) / 8
    torch.testing.assert_close(currents, expected)
    assert tnn.Residual(tnn.Conv2d(4, 4, 3, padding=1), shortcut)(x).shape == (3, 4, 6, 6)


def test_residual_refuses_what_cannot_be_added():
    with pytest.raises(TypeError, match=r"body.*Flatten"):
        tnn.Residual(nn.Sequential(tnn.Linear(4, 4), tnn.Flatten()))
    with pytest.raises(TypeError, match=r"shortcut.*Identity"):
        tnn.Residual(tnn.Linear(4, 4), nn.Identity())
    with pytest.raises(TypeError, match="residual"):
        tnn.Residual(tnn.Linear(4, 4))(te.ConstantInput(torch.randn(2, 4), 8))
    with pytest.raises(ValueError, match="residual"):
        tnn.Residual(tnn.Linear(4, 3))(train(8, 2, 4))
    for timings in ("window", "step"), ("step", "window"):
        body, shortcut = (tnn.Linear(4, 3, timing=timing) for timing in timings)
        with pytest.raises(ValueError, match="timing: both paths need the same"):
            tnn.Residual(body, shortcut)(train(8, 2, 4))
