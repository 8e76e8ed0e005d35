"""The unit of an output's weights depends on no order: neither their layout in memory nor the way of adding them."""

import pytest
import torch

import tandem_ext as te

f = te.functional


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
    neuron = None, None, None, 20, 1.0, 1.0, "relu", timing
    window = timing == "window"
    given = x.count_bytes if window else x.planes
    planes, counts, mask, v, u, mean, var = ops.linear_bn_if(
        given, 20, weight, "highest", None, gamma, beta, 1e-5, *neuron, True
    )
    product = ops.window_product(given, 20, weight, "highest", [], [], [], 1, window)
    m, s, scale, shift = ops.bn_statistics(product, 1.0, None, gamma, beta, 1e-5)
    got = ops.linear_if(given, 20, weight, "highest", scale, shift, *neuron, True, True)
    for a, b in zip((product, m, s, *got), (u, mean, var, planes, counts, mask, v), strict=True):
        assert torch.equal(a, b)
