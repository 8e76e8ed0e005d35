"""Attention without a softmax, of spike trains: exact products of counts."""

from contextlib import nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import checks
from .._torch import autocast_active
from ..ops import compute_dtype
from ..train import SpikeTrain, add_flags, with_flags
from .autograd import apply, once_differentiable
from .neuron import cast
from .products import multiplies_float32


def attention(q: SpikeTrain, k: SpikeTrain, v: SpikeTrain, heads: int) -> Tensor:
    """Attend with the counts of a window, z = 2^-s·g_q·g_k·g_v·u with u = c_q (c_kᵀ c_v) in each head.

    u is a sum of integers, so (c_q c_kᵀ) c_v is the same: the shapes say which is cheaper, and whether float32 holds
    every sum. The power of two with 2^s ≥ N√d takes the mean over N tokens, and divides by √d as other attention does.
    There is no softmax. The gradient is that of the ANN's products at the counts.

    Args:
        q, k, v: trains with timing "window", [B, M, D], [B, N, D] and [B, N, E]; each has one gain.
        heads: the number of heads, which divides D and E; each has d = D / heads channels of q and k.

    Returns:
        z, the currents of the window, [1, B, M, E], in float32 (float64 if the counts of v have that type).

    Raises:
        TypeError: q, k or v is not a SpikeTrain, or heads is not an int.
        ValueError: shapes, devices or the number of heads do not fit; a train has timing "step", or gains of channels;
            or a sum could exceed 2^53.

    >>> q, k, v = (te.SpikeTrain.from_counts(torch.randint(9, (2, 5, 6)), T=8) for _ in "qkv")
    >>> te.functional.attention(q, k, v, heads=2).shape
    torch.Size([1, 2, 5, 6])
    """
    u = products_of_counts(q, k, v, heads)
    return (u * (q.gain * k.gain * v.gain * mean_gain(k.shape[1], k.shape[2] // heads))).unsqueeze(0)


def products_of_counts(q: SpikeTrain, k: SpikeTrain, v: SpikeTrain, heads: int) -> Tensor:
    """Return u, rounded once to the compute dtype."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        checks.train(name, x)
        checks.same_device(name, x, "q", q.device)
        by_channel = isinstance(x.gain, Tensor) and x.gain.dim() > 0
        if x.timing != "window" or len(x.shape) != 3 or by_channel or x.offset is not None:
            expected = 'whole windows (timing "window") of tokens [B, N, features] with one gain and no offset'
            raise ValueError(f"{name}: attention reads {expected}, got {x}")
    checks.positive("heads", heads)
    if k.shape[:2] != v.shape[:2] or (q.shape[0], q.shape[2]) != (k.shape[0], k.shape[2]):
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k, v: expected [B, M, D], [B, N, D] and [B, N, E] of one B, N and D, got {shapes}")
    if q.shape[2] % heads or v.shape[2] % heads:
        sizes = f"D={q.shape[2]} and E={v.shape[2]}"
        raise ValueError(f"heads: expected a divisor of the features of q and v, {sizes}, got {heads}")
    largest = k.shape[1] * (q.shape[2] // heads) * q.T * k.T * v.T
    if largest > 2**53:
        raise ValueError(f"q, k, v: their sums could reach {largest}, more than 2^53, the most that float64 holds")
    dtype, fits = compute_dtype(v._dtype), largest <= 2**24 and multiplies_float32(q.device.type)
    counts = (_in_heads(x.clean_counts(), heads).contiguous() for x in (q, k, v))  # a copy that both passes read
    with torch.autocast(q.device.type, enabled=False) if autocast_active() else nullcontext():
        u, _ = apply(_Attention, *counts, dtype if fits else torch.float64)
    return with_flags(cast(_of_heads(u), dtype), reduce(add_flags, (q.bad, k.bad, v.bad)))


def mean_gain(tokens: int, channels: int) -> float:
    """Return 2^-s, for the least s with 2^s ≥ tokens·√channels."""
    return 2.0 ** -((max(1, tokens * tokens * channels) - 1).bit_length() + 1 >> 1)


def product(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return q kᵀ v in each head, [B, M, E], in the cheaper order."""
    return _of_heads(_multiply(*(_in_heads(x, heads) for x in (q, k, v)))[0])


def _in_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _of_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _multiply(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return q kᵀ v, and the product of two of them that comes first: kᵀ v [d, e] or q kᵀ [M, N]."""
    if _keys_first(q, k, v):
        first = k.mT @ v
        return q @ first, first
    first = q @ k.mT
    return first @ v, first


def _keys_first(q: Tensor, k: Tensor, v: Tensor) -> bool:
    (M, d), (N, e) = q.shape[-2:], v.shape[-2:]
    return (M + N) * d * e <= M * N * (d + e)


class _Attention(Function):
    """u [B, heads, M, e] of counts [B, heads, N, features], multiplied in ``dtype``.

    The gradients of counts in bfloat16, which has the range of float32, are multiplied in it, as the ANN's are.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        u, first = _multiply(*(cast(x, dtype) for x in (q, k, v)))
        narrow = all(x.dtype == torch.bfloat16 for x in (q, k, v))
        return u, cast(first, torch.bfloat16) if narrow else first

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:3], output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        *counts, first = ctx.saved_tensors
        q, k, v, u = (cast(x, first.dtype) for x in (*counts, grad.contiguous()))
        if _keys_first(q, k, v):
            of_first = q.mT @ u
            gradients = u @ first.mT, v @ of_first.mT, k @ of_first
        else:
            of_first = u @ v.mT
            gradients = of_first @ k, of_first.mT @ q, first.mT @ u
        return *gradients, None
