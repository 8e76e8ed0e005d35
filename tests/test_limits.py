"""Geometry at every limit of the kernels: beside it and on it, everything else drawn at random, against the reference.
The unit of an output's weights depends on no order: neither their layout in memory nor the way of adding them.

A product lists its spikes in 16-bit entries, each eight times an input's number: 8,191 inputs, or taps of a
convolution, are one block and 8,192 are two. A launch on a GPU has at most 65,535 rows of blocks. Indices into tensors
may exceed 31 bits; such tensors are looked at without memory.
"""

import pytest
import torch
from any_layer import neurons
from cases import WINDOWS, assert_same, compute_dtype, dyadic, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import freeze

f, ref = te.functional, te.reference
BLOCK = (8190, 8191, 8192, 8193)
ROWS = (65535, 65536, 65537)
SHORT = st.sampled_from([T for T in WINDOWS if T <= 9])
PRODUCTS = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])


def both(name, *arguments, **keywords):
    assert_same(*(getattr(module, name)(*arguments, **keywords) for module in (f, ref)))


@pytest.mark.parametrize("inputs", BLOCK)
@given(random=st.randoms(), T=SHORT, dtype=PRODUCTS)
@settings(max_examples=6)
def test_linear(inputs, random, T, dtype):
    batch, outputs = random.choice([0, 1, 3]), random.choice([1, 5, 17])
    x, shape = train(T, batch, inputs, rate=random.choice([0.02, 0.3, 1.0])), (batch, outputs)
    both("linear_if", x, dyadic(outputs, inputs, dtype=dtype), **neurons(random, T, shape, dtype))


def convolutions(random, taps, groups):
    """(input shape without the batch, weight shape, arguments) of a convolution with that many taps."""
    choices = [(taps, (1, 1)), (taps, (1,)), (1, (taps,)), (1, (taps, 1)), (1, (1, taps))]
    choices += [(taps // (h * w), (h, w)) for h, w in ((1, 2), (3, 3), (2, 5), (13, 7)) if taps % (h * w) == 0]
    channels, kernel = random.choice(choices)
    stride, dilation, padding = random.randint(1, 2), random.randint(1, 2), random.randint(0, 1)
    space = [(k - 1) * dilation + random.randint(1, 3) for k in kernel]
    outputs = groups * random.choice([1, 3])
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (channels * groups, *space), (outputs, channels, *kernel), window


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("taps", [*BLOCK, 9 * 910, 9 * 911])
@given(random=st.randoms(), T=SHORT)
@settings(max_examples=4)
def test_convolution(taps, groups, random, T):
    features, weight, window = convolutions(random, taps, groups)
    x, name = train(T, 1, *features), f"conv{len(features) - 1}d_if"
    shape = tuple(getattr(ref, name)(x, torch.zeros(weight), **window).shape)
    both(name, x, dyadic(*weight), **window, **neurons(random, T, shape))


@pytest.mark.parametrize("rows", ROWS)
def test_rows(rows):
    torch.manual_seed(rows)
    for batch, outputs in (rows, 2), (2, rows):
        both("linear_if", train(3, batch, 3), dyadic(outputs, 3), shift=dyadic(outputs), return_v=True)
    both("if_scan", dyadic(9, rows, 1), return_v=True)
    both("if_scan", dyadic(2, 1, rows), return_v=True)
    both("conv1d_if", train(3, 1, 2, rows), dyadic(2, 2, 1), return_v=True)
    both("conv2d_if", train(3, 1, rows, 1, 1), dyadic(rows, 1, 1, 1), groups=rows, return_v=True)
    x = train(9, rows, 2)
    assert torch.equal(te.pack(x.to_dense()), x.planes)
    assert torch.equal(te.counts(x.planes), x.to_dense().sum(0))


HUGE = 2**16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_than_31_bits_of_indices(dtype):
    """Shapes and strides of 2^32 elements and more, on tensors without memory."""
    planes = torch.empty(2, HUGE, HUGE, dtype=torch.uint8, device="meta")
    x = te.SpikeTrain.unchecked(planes, 9)
    assert x.counts.shape == (HUGE, HUGE)
    y, v = f.linear_if(x, torch.empty(HUGE, HUGE, dtype=dtype, device="meta"), return_v=True)
    assert y.planes.shape == (2, HUGE, HUGE)
    assert y.planes.stride() == (HUGE * HUGE, HUGE, 1)
    assert (v.shape, v.dtype) == ((HUGE, HUGE), compute_dtype(dtype))
    image = te.SpikeTrain.unchecked(torch.empty(1, 2**10, 8, 2**10, 2**10, dtype=torch.uint8, device="meta"), 8)
    conv = f.conv2d_if(image, torch.empty(16, 8, 3, 3, dtype=dtype, device="meta", requires_grad=True), padding=1)
    assert conv.planes.shape == (1, 2**10, 16, 2**10, 2**10)
    assert conv.planes.stride()[1:] == (2**24, 1, 2**14, 16)
    assert conv.counts.stride() == (2**24, 1, 2**14, 16)
    scan = f.if_scan(torch.empty(8, HUGE, HUGE, dtype=dtype, device="meta"))
    assert scan.counts.shape == (HUGE, HUGE)
    dense = x.to_dense(dtype)
    assert dense.shape == (9, HUGE, HUGE)
    assert te.SpikeTrain.from_dense(dense).planes.shape == planes.shape


FROZEN = [(lambda n=n: (tnn.Linear(n, 9, norm=True), tnn.Linear(9, 5)), (n,)) for n in BLOCK]
FROZEN += [(lambda n=n: (tnn.Conv2d(n, 4, 3), tnn.Flatten()), (n, 4, 4)) for n in (910, 911)]
FROZEN += [(lambda n=n: (tnn.Conv1d(4, 4, n), tnn.Flatten()), (4, n + 2)) for n in (*BLOCK, 8200)]


@pytest.mark.parametrize(("layers", "features"), FROZEN, ids=[str(features) for _, features in FROZEN])
def test_frozen(layers, features):
    torch.manual_seed(features[0])
    net, x = nn.Sequential(*layers(), tnn.LazyReadout(3)), train(8, 2, *features)
    net(x)  # sizes the readout and gives batch norm its statistics
    frozen = freeze(net.eval())
    assert torch.equal(frozen(x), net(x))
    assert all(program.refusal is None for program in frozen._programs.values())


def at_the_edge(*shape):
    """Random weights whose magnitudes add up to almost 1, where another order of float sums gives another unit."""
    weight = torch.randn(shape, dtype=torch.float64)
    return (weight / weight.abs().flatten(1).sum(1).view(-1, *[1] * (len(shape) - 1))).float()


def potentials(layer, x, weight, **options):
    _, v = layer(x, weight, threshold=3e38, return_v=True, **options)
    return v


def trains(T, *shape):
    return te.SpikeTrain.from_dense((torch.rand(T, *shape) < 0.2).float())


@pytest.mark.parametrize("groups", [1, 4])
def test_layouts_of_a_convolution(groups):
    x, weight = trains(8, 2, 32, 9, 9), at_the_edge(64, 32 // groups, 3, 3)
    want = potentials(f.conv2d_if, x, weight, padding=1, groups=groups)
    reversed_ = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for other in (weight.to(memory_format=torch.channels_last), reversed_):
        assert torch.equal(potentials(f.conv2d_if, x, other, padding=1, groups=groups), want)


def test_layouts_of_a_linear_layer():
    x, weight = trains(8, 40, 300), at_the_edge(70, 300)
    assert torch.equal(potentials(f.linear_if, x, weight.t().contiguous().t()), potentials(f.linear_if, x, weight))


def test_the_order_of_inputs():
    x, weight, order = trains(8, 40, 300), at_the_edge(70, 300), torch.randperm(300)
    mixed = te.SpikeTrain(x.planes[:, :, order].contiguous(), 8)
    assert torch.equal(potentials(f.linear_if, mixed, weight[:, order]), potentials(f.linear_if, x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("T", [5, 8, 20])
def test_a_sample_alone(dtype, T):
    """Few rows use the weights where they lie, many prepare them."""
    weight = at_the_edge(70, 300)
    weight = (3000 * weight).round().clamp(-127, 127).to(dtype) if dtype == torch.int8 else weight.to(dtype)
    x = trains(T, 40, 300)
    together = potentials(f.linear_if, x, weight)
    assert all(torch.equal(potentials(f.linear_if, x[b], weight)[0], together[b]) for b in range(4))


@pytest.mark.parametrize("scale", [1.0, 127.0])
def test_integers_of_any_size(scale):
    """Small ones are multiplied as bytes, large ones as words; both are the float product of the integers."""
    weight = (scale * torch.randn(70, 900).clamp(-1, 1)).round().to(torch.int8)
    x = trains(20, 40, 900)
    want = x.counts.double() @ weight.double().t()
    assert torch.equal(potentials(f.linear_if, x, weight).double(), want)


def test_more_taps_than_a_list_can_name():
    x, weight = trains(9, 3, 2, 8300), at_the_edge(20, 2, 8200)
    want = torch.nn.functional.conv1d(x.counts.double(), weight.double())
    got = potentials(f.conv1d_if, x, weight)
    assert torch.allclose(got.double(), want, rtol=0, atol=1e-5)
    assert torch.equal(potentials(f.conv1d_if, x[1], weight)[0], got[1])
    train, mean, _ = f.conv1d_bn_if(x, weight)
    assert torch.allclose(mean.double(), want.mean((0, 2)), rtol=0, atol=1e-5)
    assert train.shape == (3, 20, 101)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("timing", ["step", "window"])
def test_the_three_phases_are_the_fused_layer(dtype, batch, timing):
    """window_product, bn_statistics and the layer with their scale and shift have the bits of linear_bn_if."""
    weight, x = at_the_edge(70, 300), trains(20, max(batch, 2), 300)
    weight = (3000 * weight).round().clamp(-127, 127).to(dtype) if dtype == torch.int8 else weight.to(dtype)
    ops = torch.ops.tandem
    gamma, beta = torch.rand(70), torch.rand(70)
    neuron = None, None, None, 20, 1.0, 1.0, "relu"
    window = timing == "window"
    given = x.count_bytes if window else x.planes
    planes, counts, mask, v, u, mean, var, bad = ops.linear_bn_if(
        given, 20, weight, "highest", None, gamma, beta, 1e-5, *neuron, True, timing
    )
    product = ops.window_product(given, 20, weight, "highest", [], [], [], 1, window)
    m, s, scale, shift = ops.bn_statistics(product, 1.0, None, gamma, beta, 1e-5)
    got = ops.linear_if(given, 20, weight, "highest", scale, shift, *neuron, True, True, timing)
    for a, b in zip((product, m, s, *got), (u, mean, var, planes, counts, mask, v, bad), strict=True):
        assert torch.equal(a, b)
