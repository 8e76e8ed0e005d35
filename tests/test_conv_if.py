"""conv1d_if and conv2d_if against the reference."""

import pytest
import torch
from cases import DTYPES, assert_same, dtypes, dyadic, is_channels_last, neurons, seeds, train, train_with_edge, views
from hypothesis import assume, given
from hypothesis import strategies as st

import tandem_ext as te

f, ref = te.functional, te.reference
LAYERS = {1: (f.conv1d_if, ref.conv1d_if), 2: (f.conv2d_if, ref.conv2d_if)}


@given(data=st.data(), dims=st.sampled_from([1, 2]), T=st.sampled_from([1, 2, 7, 8, 9, 16, 33]), dtype=dtypes,
       seed=seeds, rate=st.sampled_from([0.0, 0.2, 1.0]))  # fmt: skip
def test_conv_is_the_reference(data, dims, T, dtype, seed, rate, device):
    torch.manual_seed(seed)
    small = lambda least, most: [data.draw(st.integers(least, most)) for _ in range(dims)]  # noqa: E731
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    K, N = (groups * data.draw(st.integers(1, 12)) for _ in range(2))
    space, kernel, stride, padding, dilation = small(1, 9), small(1, 4), small(1, 3), small(0, 3), small(1, 2)
    assume(all(n + 2 * p > d * (k - 1) for n, k, p, d in zip(space, kernel, padding, dilation, strict=True)))

    x = train(T, 2, K, *space, rate=rate, device=device)
    weight, bias = dyadic(N, K // groups, *kernel, dtype=dtype, device=device), dyadic(N, device=device)
    conv = {k: tuple(v) for k, v in (("stride", stride), ("padding", padding), ("dilation", dilation))}
    layer, expected_layer = LAYERS[dims]
    shape = expected_layer(x, weight, groups=groups, **conv).shape
    arguments = {"groups": groups, "bias": bias, **conv, **data.draw(neurons(T, shape, dtype, device))}
    expected = expected_layer(x, weight, **arguments)
    assert_same(layer(x, weight, **arguments), expected)
    assert_same(layer(x, weight.requires_grad_(), **arguments), expected)


@pytest.mark.parametrize("T", [1, 8, 20])
@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride", "dilation"), [(64, 1, 3, 1, (2, 1)), (128, 2, 3, 2, 1), (20, 1, 1, 1, 1)]
)
def test_short_lines_are_the_reference(T, channels, groups, kernel, stride, dilation, device):
    """So dense that every input is multiplied, where the processor can: rows of several lines then share a tile."""
    x = train(T, 5, channels, 7, 9, rate=0.6, device=device)
    weight = dyadic(48 * groups, channels // groups, kernel, kernel, device=device)
    arguments = {"stride": stride, "padding": kernel // 2, "dilation": dilation, "groups": groups}
    assert_same(f.conv2d_if(x, weight, **arguments), ref.conv2d_if(x, weight, **arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 5)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding(kernel, padding, dtype, device):
    x = train_with_edge(8, 2, 3, 7, 6, dtype=dtype, device=device)
    weight = dyadic(4, 3, *kernel, dtype=dtype, device=device)
    arguments = {"padding": padding, "dilation": (1, 1)}
    y, expected = (rule.conv2d_if(x, weight, **arguments) for rule in (f, ref))
    assert_same(y, expected)
    (gradient,) = torch.autograd.grad(y.counts.sum(), x.counts)
    (expected_gradient,) = torch.autograd.grad(expected.counts.sum(), x.counts)
    assert torch.equal(gradient, expected_gradient)
    image = te.ConstantInput(dyadic(2, 3, 7, 6, dtype=dtype, device=device), 8)
    assert_same(f.conv2d_if(image, weight, **arguments), ref.conv2d_if(image, weight, **arguments))


@pytest.mark.parametrize("cls", [te.ConstantInput, te.ImpulseInput])
@pytest.mark.parametrize("dims", [1, 2])
def test_direct_input_is_the_reference(cls, dims, device):
    x = cls(dyadic(2, 3, *[9, 7][:dims], device=device), 8, gain=0.5)
    weight, bias = dyadic(5, 3, *[3] * dims, device=device), dyadic(5, device=device)
    layer, expected_layer = LAYERS[dims]
    arguments = {"stride": 2, "padding": 1, "leak": 0.5, "return_v": True}
    assert_same(layer(x, weight, bias, **arguments), expected_layer(x, weight, bias, **arguments))


@pytest.mark.parametrize("shape", [(2, 17, 9), (2, 17, 6, 5)])
def test_views(shape, device):
    x = train(9, *shape, device=device)
    weight = dyadic(6, 17, *[3] * (len(shape) - 2), device=device)
    layer, expected_layer = LAYERS[len(shape) - 2]
    expected = expected_layer(x, weight, padding=1)
    for planes in views(x.planes):
        assert_same(layer(te.SpikeTrain(planes, 9), weight, padding=1), expected)
    for w in (weight.movedim(1, -1).contiguous().movedim(-1, 1), torch.cat([weight, weight])[6:]):
        assert_same(layer(x, w, padding=1), expected)


def test_what_comes_out_is_channels_last(device):
    x, weight = train_with_edge(9, 2, 3, 6, 5, device=device), dyadic(4, 3, 3, 3, device=device).requires_grad_()
    y, v = f.conv2d_if(x, weight, return_v=True)
    assert is_channels_last(y.planes, batch=1)
    assert is_channels_last(y.counts, batch=0)
    assert is_channels_last(v, batch=0)


def test_tensor_threshold_is_the_reference(device):
    x, weight = train(8, 2, 3, 6, 5, device=device), dyadic(4, 3, 3, 3, device=device)
    for v_init in (0.5, dyadic(4, 4, 3, device=device), dyadic(2, 4, 4, 3, device=device)):
        arguments = {
            "threshold": torch.rand(4, device=device) + 0.1, "v_init": v_init, "return_v": True,
            "residual": train(8, 2, 4, 4, 3, device=device),
        }  # fmt: skip
        assert_same(f.conv2d_if(x, weight, **arguments), ref.conv2d_if(x, weight, **arguments))


def test_one_by_one_is_linear_and_1d_is_a_row_of_2d(device):
    x, weight = train(8, 2, 13, 1, 9, device=device), dyadic(5, 13, 1, 3, device=device)
    y = f.conv2d_if(x, weight, padding=(0, 1))
    row = te.SpikeTrain(x.planes.squeeze(3), 8)
    assert torch.equal(f.conv1d_if(row, weight.squeeze(2), padding=1).planes, y.planes.squeeze(3))
    point, matrix = train(8, 6, 13, 1, 1, device=device), dyadic(5, 13, device=device)
    flat = te.SpikeTrain(point.planes.flatten(2), 8)
    result = f.conv2d_if(point, matrix.view(5, 13, 1, 1))
    assert torch.equal(result.planes.flatten(2), f.linear_if(flat, matrix).planes)


@pytest.mark.parametrize(("shape", "weight_shape"), [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 3, 5, 5), (0, 3, 3, 3)),
                                                    ((2, 0, 5, 5), (4, 0, 3, 3))])  # fmt: skip
def test_empty(shape, weight_shape, device):
    x = train_with_edge(8, *shape, device=device)
    weight = dyadic(*weight_shape, device=device).requires_grad_()
    y = f.conv2d_if(x, weight, padding=1)
    assert y.shape == (shape[0], weight_shape[0], 5, 5)
    y.counts.sum().backward()
    assert weight.grad.shape == weight_shape
    assert x.counts.grad.shape == shape
