"""linear_if against the reference."""

import pytest
import torch
from cases import (
    DTYPES,
    assert_same,
    compute_dtype,
    dtypes,
    dyadic,
    neurons,
    seeds,
    train,
    train_with_edge,
    views,
    windows,
)
from hypothesis import given
from hypothesis import strategies as st

import tandem_ext as te

f, ref = te.functional, te.reference
sizes = st.integers(0, 70)


@given(data=st.data(), T=windows, B=st.integers(0, 5), K=sizes, N=sizes, dtype=dtypes, seed=seeds,
       rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]))  # fmt: skip
def test_linear_is_the_reference(data, T, B, K, N, dtype, seed, rate, device):
    torch.manual_seed(seed)
    x = train(T, B, K, rate=rate, gain=data.draw(st.sampled_from([1.0, 0.5])), device=device)
    weight, bias = dyadic(N, K, dtype=dtype, device=device), dyadic(N, dtype=dtype, device=device)
    arguments = data.draw(neurons(T, (B, N), dtype, device)) | {"bias": data.draw(st.sampled_from([None, bias]))}
    expected = ref.linear_if(x, weight, **arguments)
    assert_same(f.linear_if(x, weight, **arguments), expected)
    assert_same(f.linear_if(x, weight.requires_grad_(), **arguments), expected)


@pytest.mark.parametrize(("K", "N"), [(784, 800), (1000, 33), (1, 1), (16, 1024)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_of_real_layers(K, N, dtype, device):
    x = train(8, 12, K, rate=0.15, device=device)
    weight = dyadic(N, K, dtype=dtype, device=device)
    assert_same(f.linear_if(x, weight, return_v=True), ref.linear_if(x, weight, return_v=True))


@given(data=st.data(), T=windows, dtype=dtypes, seed=seeds, cls=st.sampled_from([te.ConstantInput, te.ImpulseInput]))
def test_direct_input_is_the_reference(data, T, dtype, seed, cls, device):
    torch.manual_seed(seed)
    x = cls(dyadic(3, 7, dtype=dtype, device=device), T, gain=0.5)
    weight, bias = dyadic(9, 7, dtype=dtype, device=device), dyadic(9, device=device)
    arguments = data.draw(neurons(T, (3, 9), dtype, device))
    assert_same(f.linear_if(x, weight, bias, **arguments), ref.linear_if(x, weight, bias, **arguments))


@pytest.mark.parametrize("threshold", [torch.tensor(0.7), torch.rand(9) + 0.1], ids=["one", "per channel"])
@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_tensor_threshold_is_the_reference(threshold, leak, device):
    x, weight, bias = train(8, 3, 7, device=device), dyadic(9, 7, device=device), dyadic(9, device=device)
    for v_init in (0.0, 0.5, dyadic(9, device=device), dyadic(3, 9, device=device)):
        arguments = {
            "threshold": threshold.to(device), "leak": leak, "v_init": v_init, "scale": dyadic(9, device=device),
            "residual": train(8, 3, 9, gain=0.5, device=device), "gate": "clip", "return_v": True,
        }  # fmt: skip
        assert_same(f.linear_if(x, weight, bias, **arguments), ref.linear_if(x, weight, bias, **arguments))


def test_tensor_gain_is_a_float_gain(device):
    weight = dyadic(9, 7, device=device)
    x, y = train(8, 3, 7, gain=0.5, device=device), train(8, 3, 9, gain=0.25, device=device)
    a = te.SpikeTrain(x.planes, 8, gain=torch.tensor(0.5, device=device))
    b = te.SpikeTrain(y.planes, 8, gain=torch.tensor(0.25, device=device))
    assert_same(f.linear_if(a, weight, residual=b), f.linear_if(x, weight, residual=y))


def test_views(device):
    x, weight = train(9, 3, 33, device=device), dyadic(17, 33, device=device)
    expected = ref.linear_if(x, weight)
    for planes in views(x.planes):
        assert_same(f.linear_if(te.SpikeTrain(planes, 9), weight), expected)
    for w in (weight.t().contiguous().t(), torch.cat([weight, weight])[17:], weight.repeat_interleave(2, 1)[:, ::2]):
        assert_same(f.linear_if(x, w), expected)
    shift = dyadic(17, device=device)
    expected = ref.linear_if(x, weight, shift=shift)
    assert_same(f.linear_if(x, weight, shift=shift.repeat_interleave(2)[::2]), expected)


def test_an_answer_does_not_depend_on_batch_mates(device):
    x, weight = train(8, 33, 50, device=device), torch.randn(40, 50, device=device)
    y = f.linear_if(x, weight)
    for i in (0, 7, 32):
        assert_same(f.linear_if(x[i], weight), y[i])


@pytest.mark.parametrize(("B", "K", "N"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty(B, K, N, device):
    x = train_with_edge(8, B, K, device=device)
    weight = dyadic(N, K, device=device).requires_grad_()
    y = f.linear_if(x, weight, dyadic(N, device=device))
    assert y.shape == (B, N)
    y.counts.sum().backward()
    assert weight.grad.shape == (N, K)
    assert x.counts.grad.shape == (B, K)


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_have_the_type_of_the_weight(dtype, device):
    x, weight = train(8, 3, 7, device=device), dyadic(9, 7, dtype=dtype, device=device)
    y, v = f.linear_if(x, weight, return_v=True)
    z, _ = f.linear_if(x, weight.requires_grad_(), return_v=True)
    assert (y.counts.dtype, z.counts.dtype, v.dtype) == (dtype, dtype, compute_dtype(dtype))


def test_autocast(device):
    x, image = train(8, 3, 7, device=device), te.ConstantInput(dyadic(3, 7, device=device), 8)
    weight = torch.randn(9, 7, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        y, v = f.linear_if(x, weight, return_v=True)
        z = f.linear_if(image, weight)
    assert (y.counts.dtype, z.counts.dtype, v.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert_same(y, f.linear_if(x, weight.bfloat16()))
    (y.counts.sum() + z.counts.sum()).backward()
    assert weight.grad.dtype == torch.float32
    double = torch.randn(9, 7, dtype=torch.float64, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert f.linear_if(x, double).counts.dtype == torch.float64


def test_a_change_of_the_weights_by_any_route_is_seen(device):
    """Nothing of a weight is remembered from call to call, its address and version least of all."""
    x, weight = train(8, 4, 40, device=device), dyadic(33, 40, device=device)

    def by_numpy():
        weight.numpy()[:] *= -1

    def by_another_tensor():
        weight.data = dyadic(33, 40, device=device)

    def by_its_data():
        weight.data.copy_(dyadic(33, 40, device=device))

    def in_place():
        weight.neg_()

    routes = [in_place, by_its_data, by_another_tensor, *([by_numpy] if device.type == "cpu" else [])]
    for change in routes:
        before = f.linear_if(x, weight).planes
        change()
        after = f.linear_if(x, weight)
        assert_same(after, ref.linear_if(x, weight))
        assert not torch.equal(after.planes, before), change.__name__
