"""Attention of counts: exact integers in any order, type and mode of torch, with the ANN's gradients."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tandem_ext as te
from tandem_ext.functional.attention import mean_gain

attention = te.functional.attention
# [M, N, D, E, heads], T of q, k and v, and whether all counts are T
SHAPES = [
    ((64, 64, 128, 128, 4), (4, 4, 4), False),
    ((196, 196, 64, 64, 1), (8, 8, 8), True),
    ((3, 50, 12, 8, 2), (1, 255, 7), False),
    ((7, 2048, 256, 2, 2), (255, 255, 255), True),
    ((1, 4096, 128, 1, 1), (255, 255, 255), True),
    ((5, 1, 1, 3, 1), (255, 2, 3), False),
]


def trains(sizes, steps, most=False, batch=2, grad=False, gains=(0.3, 0.7, 1.1), dtype=torch.float32):
    M, N, D, E, _ = sizes
    found = []
    for shape, T, gain in zip(((M, D), (N, D), (N, E)), steps, gains, strict=True):
        counts = torch.full((batch, *shape), T) if most else torch.randint(T + 1, (batch, *shape))
        found.append(te.SpikeTrain.from_counts(counts.to(dtype).requires_grad_(grad), T, gain))
    return found


def split(x, heads):
    return x.counts.detach().long().unflatten(2, (heads, -1)).transpose(1, 2)


def expected(q, k, v, heads):
    """From integers, in the order of the definition."""
    u = (split(q, heads) @ split(k, heads).mT) @ split(v, heads)
    s = 0
    while 4**s < k.shape[1] ** 2 * (k.shape[2] // heads):
        s += 1
    u = u.transpose(1, 2).flatten(2).to(torch.float64 if q.counts.dtype == torch.float64 else torch.float32)
    return u.unsqueeze(0) * (q.gain * k.gain * v.gain * 2.0**-s)


@pytest.mark.parametrize(("sizes", "steps", "most"), SHAPES)
def test_equals_integers(sizes, steps, most):
    given, heads = trains(sizes, steps, most), sizes[-1]
    z = attention(*given, heads)
    assert z.dtype == torch.float32
    assert torch.equal(z, expected(*given, heads))
    assert torch.equal(z, te.reference.attention(*given, heads))


def test_modes_of_less_precision_change_nothing(monkeypatch):
    module, used = sys.modules[attention.__module__], []
    multiply = module._multiply
    monkeypatch.setattr(module, "_multiply", lambda q, *more: (used.append(q.dtype), multiply(q, *more))[1])
    sizes, steps = (64, 64, 128, 128, 4), (7, 7, 7)
    given = trains(sizes, steps)
    wanted = expected(*given, 4)
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert torch.equal(attention(*given, 4), wanted)
            for dtype in (torch.bfloat16, torch.float16):
                with torch.autocast("cpu", dtype):
                    assert torch.equal(attention(*given, 4), wanted)
            assert set(used) == {torch.float32 if precision == "highest" else torch.float64}
            used.clear()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_of_counts(dtype):
    given = trains((9, 300, 8, 8, 2), (255, 255, 255), dtype=dtype)
    z = attention(*given, 2)
    assert z.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.equal(z, expected(*given, 2))


def test_compiled():
    given = trains((9, 9, 8, 8, 2), (4, 4, 4))
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*given, 2), attention(*given, 2))


@pytest.mark.parametrize("sizes", [(40, 40, 8, 8, 2), (3, 4, 64, 64, 2)], ids=["linear", "quadratic"])
def test_gradients_are_those_of_the_product_at_the_counts(sizes):
    gains = [torch.rand((), dtype=torch.float64, requires_grad=True) for _ in range(3)]
    given, heads = trains(sizes, (4, 5, 6), grad=True, gains=gains, dtype=torch.float64), sizes[-1]
    factor = mean_gain(sizes[1], sizes[2] // heads)
    real = [x.counts.detach() * gain for x, gain in zip(given, gains, strict=True)]
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in real)
    ann = (q @ k.mT @ v).transpose(1, 2).flatten(2) * factor
    weights = torch.randn_like(ann)
    wanted = torch.autograd.grad((ann * weights).sum(), gains)
    for f in (attention, te.reference.attention):
        z = f(*given, heads)
        torch.testing.assert_close(z[0], ann)
        found = torch.autograd.grad((z[0] * weights).sum(), [*gains, *(x.counts for x in given)])
        torch.testing.assert_close(found[:3], wanted)
        for x, gain, grad in zip(given, gains, found[3:], strict=True):  # bilinear: Σ c·∂c = g·∂g
            torch.testing.assert_close((x.counts * grad).sum(), gain * wanted[given.index(x)])


@pytest.mark.parametrize("sizes", [(40, 40, 8, 8, 2), (3, 4, 64, 64, 2)], ids=["linear", "quadratic"])
def test_gradients_of_bfloat16_counts_are_multiplied_in_it(sizes):
    used = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op is torch.ops.aten.bmm.default:
                used.append(args[0].dtype)
            return op(*args, **(kwargs or {}))

    exact = trains(sizes, (4, 5, 6), grad=True)
    counts = [x.counts.detach().bfloat16().requires_grad_() for x in exact]
    half = [te.SpikeTrain.from_counts(c, x.T, x.gain) for c, x in zip(counts, exact, strict=True)]
    z = attention(*half, 2)
    assert torch.equal(z, attention(*exact, 2))
    grad = torch.randn_like(z)
    wanted = torch.autograd.grad(attention(*exact, 2), [x.counts for x in exact], grad)
    with Recorder():
        found = torch.autograd.grad(z, counts, grad)
    assert used == [torch.bfloat16] * 4
    for each, other in zip(found, wanted, strict=True):
        assert each.dtype == torch.bfloat16
        # three roundings to 8 bits; the sums of the second product are of the first one's rounded terms
        assert (each.float() - other).norm() < 2**-6 * other.norm()


def test_forward_mode_is_refused_by_name():
    q, k, v = trains((4, 5, 6, 6, 2), (3, 3, 3))

    def f(counts):
        return attention(te.SpikeTrain.from_counts(counts, 3), k, v, 2)

    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        torch.func.jvp(f, (q.counts,), (torch.ones_like(q.counts),))


def test_counts_of_several_types():
    sizes, grads = (9, 9, 8, 8, 2), []
    for dtypes in ([torch.float32] * 3, (torch.bfloat16, torch.float32, torch.float16)):
        torch.manual_seed(0)
        given = [trains(sizes, (4, 4, 4), grad=True, dtype=dtype)[0] for dtype in dtypes]
        z = attention(*given, 2)
        grads.append(torch.autograd.grad(z.square().sum(), [x.counts for x in given]))
    for x, y, dtype in zip(*grads, dtypes, strict=True):
        assert y.dtype == dtype
        torch.testing.assert_close(y, x.to(dtype))


def test_a_sample_that_is_not_a_number_spoils_itself():
    q, k, v = trains((4, 4, 6, 6, 2), (3, 3, 3))
    flags = torch.tensor([0.0, torch.nan])
    z = attention(q, k.replace(bad=flags), v, 2)
    assert z[0, 1].isnan().all()
    assert torch.equal(z[0, 0], expected(q, k, v, 2)[0, 0])


def test_errors():
    q, k, v = trains((4, 5, 6, 8, 2), (3, 3, 3))
    with pytest.raises(TypeError, match="q: expected a SpikeTrain"):
        attention(q.counts, k, v, 2)
    with pytest.raises(ValueError, match=r'k: attention reads whole windows \(timing "window"\) of tokens'):
        attention(q, te.SpikeTrain.from_dense(k.to_dense()), v, 2)
    with pytest.raises(ValueError, match=r"v: attention reads .* no offset, got .*gain=tensor of shape \[5\]"):
        attention(q, k, v.replace(gain=torch.ones(5)), 2)
    with pytest.raises(ValueError, match=r"q: attention reads .*, got SpikeTrain\(T=3, shape=\[2, 24\]"):
        attention(q.map(lambda t: t.flatten(2) if t.dim() > 3 else t.flatten(1)), k, v, 2)
    sizes = r"\[2, 4, 6\], \[2, 5, 8\], \[2, 5, 6\]"
    with pytest.raises(ValueError, match=rf"\[B, M, D\], \[B, N, D\] and \[B, N, E\] of one B, N and D, got {sizes}"):
        attention(q, v, k, 2)
    with pytest.raises(ValueError, match="heads: expected a divisor of the features of q and v, D=6 and E=8, got 3"):
        attention(q, k, v, 3)
    with pytest.raises(ValueError, match="heads: expected a positive int, got 0"):
        attention(q, k, v, 0)
    N = 2**30
    large = te.SpikeTrain.unchecked(torch.empty(1, 1, N, 1, dtype=torch.uint8, device="meta"), 255, timing="window")
    with pytest.raises(ValueError, match=r"q, k, v: their sums could reach 17804115836928000, more than 2\^53"):
        attention(large, large, large, 1)
