"""Spike planes, the format of a spike train: bit t % 8 of plane t // 8 is the spike at step t.

Planes are uint8 [ceil(T/8), B, *features]; the high bits that T leaves unused are 0. Convolutional planes are
channels-last in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks


def pack(spikes: Tensor) -> Tensor:
    """Spikes of any bool, integer or floating-point dtype, nonzero meaning a spike, into planes.

    Args:
        spikes: [T, B, *features], T in 1..65535.

    Returns:
        uint8 [ceil(T/8), B, *features].

    Raises:
        TypeError: not a tensor, or a complex one.
        ValueError: fewer than two dimensions, or T out of range.

    >>> te.pack(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
    tensor([[[3, 2]]], dtype=torch.uint8)
    """
    checks.dense_spikes("spikes", spikes)
    checks.device("spikes", spikes)
    result: Tensor = torch.ops.tandem.pack.default(spikes)
    return result


def unpack(planes: Tensor, T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Planes into spikes [T, B, *features] of 0 and 1. The inverse of :func:`pack`.

    Raises:
        TypeError: planes are not uint8, or dtype is no type.
        ValueError: planes are not [ceil(T/8), B, *features], or T is out of range.

    >>> te.unpack(torch.tensor([[[3, 2]]], dtype=torch.uint8), T=2)
    tensor([[[1., 0.]],
    <BLANKLINE>
            [[1., 1.]]])
    """
    checks.planes("planes", planes, T)
    checks.dtype("dtype", dtype)
    result: Tensor = torch.ops.tandem.unpack.default(planes, T, dtype)
    return result


def spikes_at(planes: Tensor, t: int) -> Tensor:
    """The spikes of step t, uint8 [B, *features] of 0 and 1. Nothing is checked.

    >>> spikes_at(torch.tensor([[[3, 2]]], dtype=torch.uint8), 0)
    tensor([[1, 0]], dtype=torch.uint8)
    """
    return planes[t // 8] >> t % 8 & 1


def counts_of(stored: Tensor, timing: str, dtype: torch.dtype) -> Tensor:
    """The counts [B, *features] of what a train stores: planes or, with timing "window", counts as bytes.

    >>> counts_of(torch.tensor([[[3, 2]]], dtype=torch.uint8), "window", torch.float32)
    tensor([[3., 2.]])
    """
    if timing == "window":
        return stored[0].to(dtype)
    result: Tensor = torch.ops.tandem.counts.default(stored, dtype)
    return result


def counts(planes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The number of spikes of every neuron, [B, *features]: the popcounts of its planes, summed.

    Raises:
        TypeError: planes are not uint8, or dtype is no type.
        ValueError: planes have fewer than two dimensions.

    >>> te.counts(torch.tensor([[[3, 2]]], dtype=torch.uint8))
    tensor([[2., 1.]])
    """
    checks.planes("planes", planes)
    checks.dtype("dtype", dtype)
    result: Tensor = torch.ops.tandem.counts.default(planes, dtype)
    return result
