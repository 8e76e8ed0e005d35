"""Networks beside and at every limit of the kernels, of which tests/cpp has the layers; more than 255 steps.

The unit of an output's weights depends on no order: neither their layout in memory nor the way of adding them. Lists of
spikes have 16-bit entries, each eight times an input's number: 8,191 inputs, or taps, are one block and 8,192 are two.
Tensors of more than 31 bits of indices have no memory here.
"""

import pytest
import torch
from cases import assert_reference, compute_dtype, dyadic, spikes, train
from networks import assert_frozen_is
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_ext.functional.layer import window_product
from tandem_ext.functional.products import LINEAR
from tandem_ext.rule import fixed_point

f, ref = te.functional, te.reference
BLOCK = (8190, 8191, 8192, 8193)
HUGE = 2**16
FROZEN = [(lambda n=n: (tnn.Linear(n, 9, norm=True), tnn.Linear(9, 5)), (n,)) for n in BLOCK]


def meta(*shape, dtype=torch.uint8, **options):
    return torch.empty(shape, dtype=dtype, device="meta", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_than_31_bits_of_indices(dtype):
    """Shapes and strides of 2^32 elements and more, on tensors without memory."""
    x = te.SpikeTrain.unchecked(meta(2, HUGE, HUGE), 9)
    assert x.counts.shape == (HUGE, HUGE)
    y, v = f.linear_if(x, meta(HUGE, HUGE, dtype=dtype), return_v=True)
    assert y.planes.shape == (2, HUGE, HUGE)
    assert y.planes.stride() == (HUGE * HUGE, HUGE, 1)
    assert (v.shape, v.dtype) == ((HUGE, HUGE), compute_dtype(dtype))
    image = te.SpikeTrain.unchecked(meta(1, 2**10, 8, 2**10, 2**10), 8)
    conv = f.conv2d_if(image, meta(16, 8, 3, 3, dtype=dtype, requires_grad=True), padding=1)
    assert conv.planes.shape == (1, 2**10, 16, 2**10, 2**10)
    assert conv.planes.stride()[1:] == conv.counts.stride() == (2**24, 1, 2**14, 16)
    assert f.if_scan(meta(8, HUGE, HUGE, dtype=dtype)).counts.shape == (HUGE, HUGE)
    dense = x.to_dense(dtype)
    assert dense.shape == (9, HUGE, HUGE)
    assert te.SpikeTrain.from_dense(dense).planes.shape == x.planes.shape


FROZEN += [(lambda n=n: (tnn.Conv2d(n, 4, 3), tnn.Flatten()), (n, 4, 4)) for n in (910, 911)]
FROZEN += [(lambda n=n: (tnn.Conv1d(4, 4, n), tnn.Flatten()), (4, n + 2)) for n in (*BLOCK, 8200)]
FROZEN += [(lambda: (tnn.MaxPool2d(2, 4, ceil_mode=True), tnn.Flatten()), (3, n, 5)) for n in (2, 4, 5)]


@pytest.mark.parametrize(("layers", "features"), FROZEN, ids=[str(features) for _, features in FROZEN])
def test_frozen_networks_are_the_evaluation(layers, features):
    net, x = nn.Sequential(*layers()), train(8, 2, *features)
    net.append(tnn.Readout(net(x).shape[1], 3))  # the call also gives batch norm its statistics
    assert_frozen_is(net.eval(), x)


def at_the_edge(*shape):
    """Random weights whose magnitudes add up to almost 1, where another order of float sums gives another unit."""
    weight = torch.randn(shape, dtype=torch.float64)
    return (weight / weight.abs().flatten(1).sum(1).view(-1, *[1] * (len(shape) - 1))).float()


def potentials(layer, x, weight, **options):
    _, v = layer(x, weight, threshold=3e38, return_v=True, **options)
    return v


@pytest.mark.kernels
@pytest.mark.parametrize("groups", [1, 4])
def test_neither_layouts_nor_the_order_of_inputs_matter(groups):
    x, weight = train(8, 2, 32, 9, 9, rate=0.2), at_the_edge(64, 32 // groups, 3, 3)
    want = potentials(f.conv2d_if, x, weight, padding=1, groups=groups)
    reversed_ = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for other in (weight.to(memory_format=torch.channels_last), reversed_):
        assert torch.equal(potentials(f.conv2d_if, x, other, padding=1, groups=groups), want)
    x, weight, order = train(8, 40, 300, rate=0.2), at_the_edge(70, 300), torch.randperm(300)
    want, mixed = potentials(f.linear_if, x, weight), te.SpikeTrain(x.planes[:, :, order].contiguous(), 8)
    assert torch.equal(potentials(f.linear_if, x, weight.t().contiguous().t()), want)
    assert torch.equal(potentials(f.linear_if, mixed, weight[:, order]), want)


def test_batch_norm_of_more_taps_than_a_list_can_name():
    assert_reference("bn_if", train(9, 3, 2, 8300, rate=0.2), dyadic(20, 2, 8200), return_v=True)


@pytest.mark.kernels
@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("outlier", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("scale", [1e-21, 1e-17, 1e-9, 1.0, 1e20])
def test_weights_are_rounded_to_a_share_of_their_sum(scale, outlier):
    """The bounds of docs/reliability.md: a unit of at most 2^-27 of the sum, and at least 2^-60."""
    x, weight = train(8, 40, 50), scale * torch.randn(30, 50)
    weight[:, 0] *= outlier
    u = window_product(x, weight, LINEAR).double()
    unit = (weight.double().abs().sum(1) * 2**-27).clamp_min(2**-60)
    assert bool(((u - x.counts.double() @ weight.double().T).abs() <= x.counts.double().sum(1, True) * unit / 2).all())
    if scale * outlier * 5 < 2**-61:
        assert not u.any()


@pytest.mark.parametrize("T", [129, 255, 256])
def test_float64_statistics_are_of_the_product_of_the_counts(T):
    x, weight = train(T, 5, 40), torch.randn(30, 40, dtype=torch.float64)
    norm, neuron = (None, None, None, 1e-5), (T, 1.0, 1.0, "relu", "step")
    product = torch.ops.tandem.bn_if(x.planes, T, weight, [], [], [], 1, *norm, *neuron, False)[4]
    y = nn.functional.linear(x.to_dense(torch.float64), weight).sum(0)
    u = nn.functional.linear(x.counts.double(), weight)
    assert not torch.equal(y, u)
    assert torch.equal(product, u)


def test_the_longest_window():
    T = 65535
    x = te.SpikeTrain.from_dense(torch.ones(T, 1, 2, dtype=torch.uint8))
    assert_reference("linear_if", x, dyadic(3, 2, low=1), gate="clip", threshold=0.5, return_v=True)
    assert f.linear_if(x, torch.ones(1, 2)).counts.item() == T
    assert te.planes.counts(x.planes, torch.float64).unique().item() == T


@pytest.mark.parametrize("leak", [1.0, 0.9])
@pytest.mark.parametrize("T", [256, 300, 1000])
def test_long_windows_frozen_and_in_a_stream(T, leak):
    options = {"gate": "clip", "leak": leak}
    block = tnn.Residual(tnn.Conv2d(6, 6, 3, padding=1, **options))
    net = nn.Sequential(
        tnn.Conv2d(2, 6, 3, padding=1, **options), block, tnn.AvgPool2d(2), tnn.MaxPool2d(2), tnn.Flatten(),
        tnn.Linear(6, 12, norm=True, **options), tnn.Readout(12, 3),
    )  # fmt: skip
    x = train(T, 4, 2, 4, 4, rate=0.05)
    net(x)
    assert_frozen_is(net.eval(), x)


@pytest.mark.parametrize("T", [250, 1000])
def test_silence_of_what_is_not_finite(T):
    x, weight = train(T, 3, 4, rate=0.9), torch.full((2, 4), 1e38)
    x.planes[:, 1] = 0
    assert f.linear_if(x, weight).bad.isnan().tolist() == [True, False, True]
    assert f.linear_if(x, weight.double()).bad.isnan().any().item() is False


@pytest.mark.parametrize(("dtype", "T"), [(torch.bfloat16, 1000), (torch.float16, 6000)])
def test_autocast_does_not_round_counts(dtype, T):
    """Counts, the gradients of weights and the readout are those of float32 for halves of two digits."""
    x, results = te.SpikeTrain.from_dense(spikes(T, 6, 12, rate=0.9)), []
    net = nn.Sequential(tnn.Linear(12, 8), tnn.Linear(8, 7, norm=True), tnn.Readout(7, 5))
    with torch.no_grad():
        for parameter in net.parameters():
            half = parameter.to(dtype)
            parameter.copy_(fixed_point(half) if parameter.dim() > 1 else half)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            hidden = net[0](x)
            normed = net[1](hidden)
            answer = net[2](normed)
        (grad,) = torch.autograd.grad(answer.float().sum(), net[0].weight)
        results.append((hidden.counts, normed.counts, answer, grad))
    (*counts, answer, grad), (*half_counts, half_answer, half_grad) = results
    assert max(c.max() for c in counts) > (256 if dtype == torch.bfloat16 else 2048)
    for c, h in zip(counts, half_counts, strict=True):
        assert c.dtype == torch.float32
        assert torch.equal(c, h)
    assert half_answer.dtype == dtype
    assert torch.equal(answer.to(dtype), half_answer)
    assert torch.equal(half_grad, grad.to(dtype).float())  # rounded once, when it is whole


def test_types_of_counts():
    x = train(1000, 2, 3)
    for dtype in (torch.bfloat16, torch.float16):
        want = torch.float32 if dtype == torch.bfloat16 else dtype
        assert x.to(dtype).counts.dtype == want
        assert f.linear_if(x, torch.ones(2, 3, dtype=dtype)).counts.dtype == want
        dense = x.to_dense(dtype).requires_grad_()
        assert torch.equal(te.SpikeTrain.from_dense(dense).counts, x.counts.to(want))
    assert x.to(torch.bfloat16).counts.equal(x.counts)
    assert train(256, 2, 3).to(torch.bfloat16).counts.dtype == torch.bfloat16
