"""Pooling, flatten, dropout and residual, on every kind of input."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import assert_same, dyadic_, train, train_with_edge
from networks import at_the_counts
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import freeze, load
from tandem_snn.nn.signals import effective_counts

pytestmark = pytest.mark.usefixtures("on_device")
F64 = torch.float64
DIRECT = (te.ConstantInput, te.ImpulseInput)
POOLS = [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (2, 3), "stride": (1, 2)}]


def channels_last(x):
    stored = x.stored.movedim(2, -1).contiguous().movedim(-1, 2)
    return x.replace(stored=stored, counts=x.counts.contiguous(memory_format=torch.channels_last))


def values_of(kernel):
    return kernel * kernel if isinstance(kernel, int) else math.prod(kernel)


def assert_same_gradients(y, expected, counts):
    w = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad((each * w).sum(), counts)[0] for each in (y, expected)))


@pytest.mark.parametrize("options", POOLS)
def test_avg_pool_is_a_layer_of_if_neurons(options):
    x, pool = train_with_edge(8, 2, 3, 8, 8, rate=0.05, gain=0.5), nn.AvgPool2d(**options)
    pooled, values = tnn.AvgPool2d(**options)(x), values_of(options["kernel_size"])
    currents = torch.stack([(values * pool(s)).round() for s in x.to_dense()])
    assert torch.equal(pooled.planes, te.reference.if_scan(currents, threshold=float(values)).planes)
    assert pooled.gain == 0.5
    assert (pool(x.counts) == 0).any()  # its gradient passes there too
    assert_same_gradients(pooled.counts, pool(x.counts), x.counts)


@pytest.mark.parametrize("v_init", [None, 0.0, 0.5])
@pytest.mark.parametrize(("kernel", "T"), [(2, 32), (3, 32), ((2, 3), 32), (5, 32), (6, 32), (7, 32), (17, 255)])
def test_average_pooling_is_integer_arithmetic(kernel, T, timing, v_init, tmp_path):
    """Nothing is rounded, for any kernel: layers in all types, frozen networks, files."""
    k2, spikes = values_of(kernel), []
    given = torch.rand(T, 2, 3, *[17 if kernel == 17 else 14] * 2) < 0.4
    sums = (k2 * F.avg_pool2d(given.double().flatten(0, 1), kernel)).round().long().unflatten(0, (T, 2))
    half = k2 * (v_init == 0.5 or (v_init is None and timing == "window"))
    v = half + (2 * sums.sum(0) if timing == "window" else 0)  # in units of half a spike
    for sum_ in sums:
        v = v + (2 * sum_ if timing == "step" else 0)
        spikes.append(v >= 2 * k2)
        v = v - 2 * k2 * spikes[-1]
    expected, pool = torch.stack(spikes), tnn.AvgPool2d(kernel, v_init=v_init, timing=timing)
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        x = te.SpikeTrain.from_dense(given.to(dtype))
        assert torch.equal(pool(x).to_dense(torch.bool), expected), dtype
        assert (pool(x).timing, pool(x).counts.dtype) == (timing, dtype)
        assert tnn.AdaptiveAvgPool2d(1)(pool(x)).dtype == dtype
    assert torch.equal(pool.potentials(x)[-1], v / 2)
    if timing == "window":
        assert torch.equal(pool(te.SpikeTrain.from_counts(x.counts, T)).to_dense(torch.bool), expected)
    net = nn.Sequential(pool, tnn.Flatten(), tnn.Readout(expected[0, 0].numel(), 5))
    freeze(net).save(tmp_path / "net.tandem")
    for network in (net, freeze(net), load(tmp_path / "net.tandem")):
        assert torch.equal(network(x), net[2](te.SpikeTrain.from_dense(expected.flatten(2).float())))


@pytest.mark.parametrize(("layer", "function"), [
    (tnn.AvgPool2d(2), lambda x: F.avg_pool2d(x, 2)), (tnn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2)),
    (tnn.Flatten(), lambda x: x.flatten(1)),
])  # fmt: skip
def test_tensors_and_direct_inputs_pass_as_through_torchs_layer(layer, function):
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x), function(x))
    for kind in DIRECT:
        out = layer(kind(x, 8, 0.5))
        assert (type(out), out.T, out.gain) == (kind, 8, 0.5)
        assert torch.equal(out.x, function(x))
    assert not layer.state_dict()


@pytest.mark.parametrize("layer", [tnn.AvgPool2d(2, spiking=False), tnn.AdaptiveAvgPool2d(1)])
def test_means_are_those_of_what_counts_are_worth(layer):
    mean = nn.AvgPool2d(2) if isinstance(layer, tnn.AvgPool2d) else nn.AdaptiveAvgPool2d(1)
    x, image = train_with_edge(8, 2, 3, 5, 4, gain=0.5), torch.randn(2, 3, 5, 4)
    assert torch.equal(layer(image), mean(image))
    for signal in (x, *(kind(image, 8, 0.5) for kind in DIRECT)):
        torch.testing.assert_close(layer(signal), mean(0.5 * signal.counts))
    assert_same_gradients(layer(x), mean(0.5 * x.counts), x.counts)


@pytest.mark.parametrize("layout", [lambda x: x, channels_last])
@pytest.mark.parametrize("T", [3, 8, 17])
@pytest.mark.parametrize("options", [
    *POOLS,
    {"kernel_size": 2, "dilation": 2},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "ceil_mode": True},
])  # fmt: skip
def test_max_pool_is_the_or_of_the_window_with_torchs_gradient_on_the_counts(options, T, layout, timing):
    leaf = train_with_edge(T, 2, 3, 8, 7, rate=0.2, gain=0.5, dtype=F64)
    if timing == "window":
        leaf = te.SpikeTrain.from_counts(torch.randint(T + 1, (2, 3, 8, 7), dtype=F64).requires_grad_(), T, 0.5)
    x = layout(leaf)
    expected = torch.stack([F.max_pool2d(s, **options) for s in x.to_dense()])
    torch_s = F.max_pool2d(leaf.counts, **options)
    for pooled in tnn.MaxPool2d(**options)(x.detach()), tnn.MaxPool2d(**options)(x):
        assert torch.equal(pooled.to_dense(), expected)
        assert torch.equal(pooled.counts, expected.sum(0).double())
        assert (pooled.gain, pooled.T, pooled.timing) == (0.5, T, timing)
        assert timing == "step" or torch.equal(pooled.counts, torch_s)
        te.SpikeTrain(pooled.planes, T)  # no high bit
    assert_same_gradients(pooled.counts, torch_s, leaf.counts)


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
    flat = train(8, 2, 3)
    assert torch.equal(tnn.Flatten()(flat).planes, flat.planes)


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


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("train_mode", [True, False])
def test_projection_residual_feeds_one_neuron(norm, train_mode, timing):
    """Its gradients are the twin's at the network's own counts."""
    options = {"norm": norm, "dtype": F64, "timing": timing, "gate": "relu"}
    body = nn.Sequential(tnn.Conv2d(4, 4, 3, padding=1, **options), tnn.Conv2d(4, 6, 3, 2, 1, **options))
    first, block = tnn.Conv2d(2, 4, 3, **options), tnn.Residual(body, tnn.Conv2d(4, 6, 1, 2, **options))
    net = nn.Sequential(tnn.Encoder(8), first, block).train(train_mode)
    x, w = torch.randn(3, 2, 8, 8, dtype=F64), torch.randn(3, 6, 3, 3, dtype=F64)
    values = effective_counts(net(x)), at_the_counts(net, x)
    torch.testing.assert_close(*(torch.autograd.grad((y * w).sum(), [*net.parameters()]) for y in values))
    spikes = first(net[0](x))
    torch.testing.assert_close(block.shortcut(spikes).total, block.shortcut.preactivation(spikes))


@pytest.mark.parametrize("kind", DIRECT)
def test_projection_of_a_direct_input(kind):
    x = kind(torch.randn(3, 4, 6, 6), 8)
    shortcut = tnn.Conv2d(4, 4, 1, neurons=False)
    currents = shortcut(x).residual("step")
    per_step = [F.conv2d(x.x * (t == 0 or kind is te.ConstantInput), shortcut.weight) for t in range(8)]
    expected = torch.stack(per_step) + shortcut.bias.view(-1, 1, 1) / 8
    torch.testing.assert_close(currents, expected)
    assert tnn.Residual(tnn.Conv2d(4, 4, 3, padding=1), shortcut)(x).shape == (3, 4, 6, 6)


def test_a_gain_per_channel_is_passed_on():
    gain = 2.0 ** torch.randint(-3, 3, (4,))
    x = train(11, 3, 4, 6, 6, rate=0.4, gain=gain)
    expected = x.counts * gain.view(-1, 1, 1)
    for passed, worth in (
        (x, expected), (x[1:], expected[1:]), (tnn.Flatten()(x), expected.flatten(1)),
        (tnn.Flatten(2)(x), expected.flatten(2)), (te.cat([x, x], 1), torch.cat([expected, expected], 1)),
        (te.cat([x, x]), torch.cat([expected, expected])),
    ):  # fmt: skip
        assert torch.equal(effective_counts(passed), worth)
    assert torch.equal(tnn.AdaptiveAvgPool2d(1)(x), F.adaptive_avg_pool2d(expected, 1))
    assert torch.equal(tnn.AvgPool2d(2)(x).gain, gain)
    dropped = tnn.Dropout(0.5)(x)
    assert set((effective_counts(dropped) / expected).nan_to_num().unique().tolist()) <= {0.0, 2.0}
    readout = tnn.Readout(4 * 36, 5)
    torch.testing.assert_close(readout(tnn.Flatten()(x)), F.linear(expected.flatten(1), readout.weight, readout.bias))
    body = dyadic_(tnn.Conv2d(4, 4, 3, padding=1, threshold=1.0, gain=1.0))
    z = F.conv2d(expected, body.weight, body.bias, padding=1) + expected
    torch.testing.assert_close(body.preactivation(x, x), z)
    assert_same(tnn.Residual(body)(x), te.reference.conv2d_if(x, body.weight, body.bias, padding=1, residual=x))
