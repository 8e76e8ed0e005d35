"""Attention without a softmax, of spike trains: exact products of counts."""

from contextlib import nullcontext
from functools import reduce

import torch
from torch import Tensor

from .. import checks
from .._torch import autocast_active
from ..ops import compute_dtype
from ..train import SpikeTrain, add_flags, with_flags
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
        z, the currents of the window, [1, B, M, E], in float32 (float64 for trains with counts of that type).

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
    fit = k.shape[:2] == v.shape[:2] and (q.shape[0], q.shape[2]) == (k.shape[0], k.shape[2])
    if not fit or q.shape[2] % heads or v.shape[2] % heads:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k, v: expected [B, M, D], [B, N, D], [B, N, E] of {heads} heads, got {shapes}")
    largest = k.shape[1] * (q.shape[2] // heads) * q.T * k.T * v.T
    if largest > 2**53:
        raise ValueError(f"q, k, v: their sums could reach {largest}, more than 2^53, the most that float64 holds")
    dtype, fits = compute_dtype(v._dtype), largest <= 2**24 and multiplies_float32(q.device.type)
    cq, ck, cv = (cast(x.clean_counts(), dtype if fits else torch.float64) for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False) if autocast_active() else nullcontext():
        u = cast(product(cq, ck, cv, heads), dtype)
    return with_flags(u, reduce(add_flags, (q.bad, k.bad, v.bad)))


def mean_gain(tokens: int, channels: int) -> float:
    """Return 2^-s, for the least s with 2^s ≥ tokens·√channels."""
    return 2.0 ** -((max(1, tokens * tokens * channels) - 1).bit_length() + 1 >> 1)


def product(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return q kᵀ v in each head, [B, M, E], in the cheaper order."""
    M, N, d, e = q.shape[1], k.shape[1], q.shape[2] // heads, v.shape[2] // heads
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    u = q @ (k.mT @ v) if (M + N) * d * e <= M * N * (d + e) else (q @ k.mT) @ v
    return u.transpose(1, 2).flatten(2)
