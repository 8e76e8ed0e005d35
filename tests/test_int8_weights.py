"""int8 weights: exact sums of integers, by a scale what a unit is worth; no gradient of the weight, all others."""

import pytest
import torch
from cases import assert_same, dyadic, train, train_with_edge

import tandem_ext as te

f, ref = te.functional, te.reference
LAYERS = {
    "linear_if": ((33,), (40, 33), {}),
    "conv1d_if": ((6, 9), (16, 3, 4), {"groups": 2, "stride": 2, "padding": 1}),
    "conv2d_if": ((16, 7, 6), (24, 16, 3, 3), {"padding": 1}),
}


def integers(*shape, device):
    return torch.randint(-128, 128, shape, dtype=torch.int8, device=device)


@pytest.mark.parametrize("T", [1, 8, 20])
@pytest.mark.parametrize("name", LAYERS)
def test_they_are_the_reference(name, T, device):
    x_shape, w_shape, window = LAYERS[name]
    x, weight = train(T, 9, *x_shape, gain=0.5, device=device), integers(*w_shape, device=device)
    shape, N = getattr(ref, name)(x, weight, **window).shape, w_shape[0]
    arguments = {
        **window, "bias": dyadic(N, device=device), "scale": 2.0 ** -torch.arange(N, device=device) / 8,
        "residual": train(T, *shape, device=device), "gate": "clip", "return_v": True,
    }  # fmt: skip
    expected = getattr(ref, name)(x, weight, **arguments)
    assert expected[0].counts.sum() > 0
    assert_same(getattr(f, name)(x, weight, **arguments), expected)
    assert_same(getattr(f, name)(x, weight.float(), **arguments), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_reference(name, device):
    x_shape, w_shape, window = LAYERS[name]
    x, weight = train_with_edge(8, 5, *x_shape, device=device), integers(*w_shape, device=device) // 16  # exact sums
    scale = (2.0 ** -(torch.arange(w_shape[0], device=device) % 4)).requires_grad_()
    bias, grads = dyadic(w_shape[0], device=device).requires_grad_(), []
    for rule in (f, ref):
        counts = getattr(rule, name)(x, weight, bias, scale=scale, **window).counts
        grads.append(torch.autograd.grad(counts.sum(), [x.counts, scale, bias]))
    for got, want in zip(*grads, strict=True):
        assert torch.equal(got, want)
        assert want.any()


@pytest.mark.parametrize("train_mode", [False, True])
def test_types(train_mode, device):
    x, scale = train(8, 3, 7, device=device), torch.full((9,), 0.01, device=device, requires_grad=train_mode)
    with torch.autocast(device.type, torch.bfloat16):
        y, v = f.linear_if(x, integers(9, 7, device=device), scale=scale, return_v=True)
    assert (y.counts.dtype, v.dtype) == (torch.float32, torch.float32)


def test_long_sums(device):
    """The largest sum for which float32 has every integer."""
    K = 2**17 - 1
    x = te.SpikeTrain.from_dense(torch.ones(1, 1, K, device=device))
    weight = torch.full((8, K), -128, dtype=torch.int8, device=device)
    weight[1::2] = 127
    _, v = f.linear_if(x, weight, threshold=3e38, return_v=True)
    assert v[0].tolist() == [-128.0 * K, 127.0 * K] * 4


def test_what_takes_none(device):
    weight, x = integers(4, 3, device=device), train(8, 2, 3, device=device)
    with pytest.raises(TypeError, match="weight: int8 weights multiply spikes"):
        f.linear_if(te.ConstantInput(torch.ones(2, 3, device=device), 8), weight)
    with pytest.raises(TypeError, match="weight: expected a float32, bfloat16, float16 or float64 tensor, got a"):
        f.linear_bn_if(x, weight)


def test_batch_norm_takes_exact_integers(device):
    """The op normalises integer sums; gain says what a unit of each output is worth."""
    weight, x = integers(4, 3, device=device), train(8, 2, 3, device=device)
    gain = torch.tensor([0.5, 0.25, 2.0, 1.0], device=device)
    neuron = None, None, None, 8, 1.0, 1.0, "relu", True
    got, want = (
        torch.ops.tandem.linear_bn_if(x.planes, 8, w, "highest", gain, None, None, 1e-5, *neuron)
        for w in (weight, weight.float())
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_smallest_integer_in_a_dense_product(device):
    """-128 is no digit of the matrix unit that is one byte and symmetric."""
    x, weight = train(8, 128, 256, device=device), integers(64, 256, device=device)
    weight[:, ::7] = -128
    assert_same(f.linear_if(x, weight, threshold=100.0), ref.linear_if(x, weight, threshold=100.0))
