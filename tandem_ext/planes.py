"""Spike planes, the storage format of spike trains: bit t % 8 of plane t // 8 is the spike at step t.

Planes are uint8 [ceil(T/8), B, *features]; unused high bits of the last plane are 0. Planes with features [C, *space]
are channels-last in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks


def pack(spikes: Tensor) -> Tensor:
    """Pack dense spikes into planes.

    Args:
        spikes: [T, B, *features] of any bool, integer or floating-point dtype, T in 1..65535. Nonzero is a spike.

    Returns:
        uint8 [ceil(T/8), B, *features].

    Raises:
        TypeError: spikes is not a tensor, or is complex.
        ValueError: spikes has fewer than two dimensions, or T is out of range.

    >>> te.pack(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
    tensor([[[3, 2]]], dtype=torch.uint8)
    """
    checks.dense_spikes("spikes", spikes)
    checks.device("spikes", spikes)
    return torch.ops.tandem.pack.default(spikes)


def unpack(planes: Tensor, T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack planes into dense spikes: the inverse of :func:`pack`.

    Args:
        planes: uint8 [ceil(T/8), B, *features].
        T: the number of time steps, 1..65535.
        dtype: the dtype of the result.

    Returns:
        Spikes, 0 and 1, [T, B, *features].

    Raises:
        TypeError: planes is not uint8, or dtype is not a torch.dtype.
        ValueError: the number of planes is not ceil(T/8), or T is out of range.

    >>> te.unpack(torch.tensor([[[3, 2]]], dtype=torch.uint8), T=2)
    tensor([[[1., 0.]],
    <BLANKLINE>
            [[1., 1.]]])
    """
    checks.planes("planes", planes, T)
    checks.dtype("dtype", dtype)
    return torch.ops.tandem.unpack.default(planes, T, dtype)


def spikes_at(planes: Tensor, t: int) -> Tensor:
    """Return the spikes of step t, 0 and 1, as uint8 [B, *features]. Nothing is checked."""
    return planes[t // 8] >> t % 8 & 1


def counts_of(stored: Tensor, timing: str, dtype: torch.dtype) -> Tensor:
    """Return the spike counts [B, *features] of a train's stored tensor: planes, or counts as bytes for "window"."""
    if timing == "window":
        return stored[0].to(dtype)
    return torch.ops.tandem.counts.default(stored, dtype)


def counts(planes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Count the spikes of each neuron.

    Args:
        planes: uint8 [ceil(T/8), B, *features].
        dtype: the dtype of the result.

    Returns:
        The spike counts [B, *features].

    Raises:
        TypeError: planes is not uint8, or dtype is not a torch.dtype.
        ValueError: planes has fewer than two dimensions.

    >>> te.counts(torch.tensor([[[3, 2]]], dtype=torch.uint8))
    tensor([[2., 1.]])
    """
    checks.planes("planes", planes)
    checks.dtype("dtype", dtype)
    return torch.ops.tandem.counts.default(planes, dtype)
