"""if_scan, constant_if and impulse_if against the reference and against the neuron's laws."""

import pytest
import torch
from cases import (
    DTYPES,
    assert_same,
    compute_dtype,
    dtypes,
    dyadic,
    is_channels_last,
    neurons,
    seeds,
    train,
    views,
    windows,
)
from hypothesis import given
from hypothesis import strategies as st

import tandem_ext as te

f, ref = te.functional, te.reference

shapes = st.tuples(st.integers(0, 3)) | st.tuples(st.integers(0, 3), st.integers(0, 300)) | st.tuples(
    st.integers(1, 3), st.integers(1, 19), st.integers(1, 5)
) | st.tuples(st.integers(1, 2), st.integers(1, 19), st.integers(1, 4), st.integers(1, 5))  # fmt: skip


@given(data=st.data(), T=windows, shape=shapes, dtype=dtypes, seed=seeds)
def test_scan_is_the_reference(data, T, shape, dtype, seed, device):
    torch.manual_seed(seed)
    currents = dyadic(T, *shape, dtype=dtype, device=device)
    arguments = data.draw(neurons(T, shape, dtype, device))
    expected = ref.if_scan(currents.requires_grad_(), **arguments)
    actual = f.if_scan(currents, **arguments)
    assert_same(actual, expected)
    assert_same(f.if_scan(currents.detach(), **arguments), expected)
    gates = [torch.autograd.grad(y.counts.sum(), currents)[0] != 0 for y, _ in (actual, expected)]
    assert torch.equal(*gates)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", ["relu", "clip", "resu"])
def test_gates_at_their_borders(gate, dtype, device):
    """In every lane of a vector: z below, at and above 0 and θT, and NaN."""
    z = torch.tensor([-1.0, 0.0, 0.125, 1.875, 2.0, 8.0, float("nan")], dtype=dtype, device=device).repeat(37)
    currents = (z / 4).expand(4, 1, -1).clone().requires_grad_()
    f.if_scan(currents, gate=gate, threshold=0.5).counts.sum().backward()
    open_ = (z > 0) & (z < 2) if gate == "clip" else z > 0
    assert torch.equal(currents.grad[0, 0], open_ / 0.5)


@given(data=st.data(), T=windows, shape=shapes, dtype=dtypes, seed=seeds,
       cls=st.sampled_from([te.ConstantInput, te.ImpulseInput]))  # fmt: skip
def test_direct_scan_is_the_reference(data, T, shape, dtype, seed, cls, device):
    torch.manual_seed(seed)
    x = cls(dyadic(*shape, dtype=dtype, device=device), T, gain=0.5)
    arguments = data.draw(neurons(T, shape, dtype, device))
    assert_same(f.if_scan(x, **arguments), ref.if_scan(x, **arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("train_mode", [False, True])
def test_scan_of_any_numbers_is_the_reference(dtype, train_mode, device):
    """The scan only adds in step order, so it is exact on numbers that are not dyadic as well."""
    currents = torch.randn(16, 5, 37, 3, dtype=dtype, device=device).requires_grad_(train_mode)
    C = compute_dtype(dtype)
    arguments = {
        "threshold": 0.7, "leak": 0.9, "v_init": 0.1, "scale": torch.randn(37, dtype=C, device=device),
        "shift": torch.randn(37, dtype=C, device=device), "residual": train(16, 5, 37, 3, gain=0.3, device=device),
        "return_v": True,
    }  # fmt: skip
    assert_same(f.if_scan(currents, **arguments), ref.if_scan(currents, **arguments))


@pytest.mark.parametrize("shape", [(3, 5), (2, 33, 6), (2, 17, 4, 6)])
def test_views(shape, device):
    currents, r = dyadic(9, *shape, device=device), dyadic(9, *shape, device=device)
    v_init = dyadic(*shape, device=device)
    expected = ref.if_scan(currents, residual=r, v_init=v_init, return_v=True)
    for a, b in zip(views(currents), views(r), strict=True):
        assert_same(f.if_scan(a, residual=b, v_init=v_init, return_v=True), expected)
    for a in views(v_init):
        assert_same(f.if_scan(currents, residual=r, v_init=a, return_v=True), expected)
    spikes = train(9, *shape, device=device)
    expected = ref.if_scan(currents, residual=spikes)
    for planes in views(spikes.planes):
        assert_same(f.if_scan(currents, residual=te.SpikeTrain(planes, 9)), expected)


@pytest.mark.parametrize("shape", [(2, 5), (2, 33, 6), (2, 17, 4, 6)])
def test_what_comes_out_is_channels_last(shape, device):
    y, v = f.if_scan(dyadic(9, *shape, device=device).requires_grad_(), return_v=True)
    assert is_channels_last(y.planes, batch=1)
    assert is_channels_last(y.counts, batch=0)
    assert is_channels_last(v, batch=0)


@given(seed=seeds, T=st.integers(2, 40), dtype=dtypes, leak=st.sampled_from([1.0, 0.5]))
def test_a_window_in_two_pieces(seed, T, dtype, leak):
    torch.manual_seed(seed)
    currents, shift, cut = dyadic(T, 3, 21, dtype=dtype), dyadic(21), 1 + seed % (T - 1)
    arguments = {"leak": leak, "shift": shift, "steps": 16, "return_v": True}
    whole, v = f.if_scan(currents, **arguments)
    first, carried = f.if_scan(currents[:cut], **arguments)
    second, last = f.if_scan(currents[cut:], v_init=carried, **arguments)
    assert torch.equal(torch.cat([first.to_dense(), second.to_dense()]), whole.to_dense())
    assert torch.equal(last, v)


def test_nan_and_infinity(device):
    currents = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0], device=device).expand(4, 1, 4)
    for gate in ("relu", "clip", "resu"):
        y = f.if_scan(currents.clone().requires_grad_(), gate=gate, return_v=True)
        expected = ref.if_scan(currents, gate=gate, return_v=True)
        assert torch.equal(y[0].planes, expected[0].planes)
        assert torch.equal(y[1].nan_to_num(7), expected[1].nan_to_num(7))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 5, 4, 4), (2, 5, 0, 4), (0,)])
def test_empty(shape, device):
    currents = torch.zeros(8, *shape, device=device, requires_grad=True)
    y, v = f.if_scan(currents, return_v=True)
    assert y.shape == shape
    assert v.shape == shape
    y.counts.sum().backward()
    assert currents.grad.shape == currents.shape


def test_results_share_no_memory_with_arguments(device):
    v_init = dyadic(3, 5, device=device)
    _, v = f.if_scan(torch.zeros(8, 3, 5, device=device), v_init=v_init, threshold=9.0, return_v=True)
    assert torch.equal(v, v_init)
    assert v.data_ptr() != v_init.data_ptr()
