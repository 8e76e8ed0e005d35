"""Spike planes, the storage format of spike trains: bit t % 8 of plane t // 8 is the spike at step t.

Planes are uint8 [ceil(T/8), B, *features]; unused high bits of the last plane are 0. Planes with features [C, *space]
are channels-last in memory. Nothing is checked here.
"""

import torch
from torch import Tensor

from . import _load  # noqa: F401  (registers the ops)

_ops = torch.ops.tandem


def pack(spikes: Tensor) -> Tensor:
    """Pack dense spikes [T, B, *features] of any real dtype into planes. Nonzero is a spike."""
    return _ops.pack.default(spikes)


def unpack(planes: Tensor, T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack planes into dense spikes, 0 and 1, [T, B, *features]: the inverse of :func:`pack`."""
    return _ops.unpack.default(planes, T, dtype)


def counts(planes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the spike counts [B, *features] of planes."""
    return _ops.counts.default(planes, dtype)


def counts_of(stored: Tensor, timing: str, dtype: torch.dtype) -> Tensor:
    """Return the spike counts [B, *features] of a train's stored tensor: planes, or counts as bytes for "window"."""
    return stored[0].to(dtype) if timing == "window" else counts(stored, dtype)
