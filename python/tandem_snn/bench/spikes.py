"""Spikes for benchmarks, and the two numbers that say what they cost: how often, and how bunched.

A kernel that reads trains four steps at a time pays for nonzero nibbles, not for spikes. At the same rate, spikes that
are independent of each other cost most. Trains of a real network are bunched: many neurons are silent, others busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tandem_ext import SpikeTrain

_SAMPLE = 1 << 16  # neurons that suffice to find the drive of a rate


class Rate(NamedTuple):
    """Of a train: the mean number of spikes per neuron and step, and of nonzero half-bytes per byte (0 to 2)."""

    spikes: float
    nibbles: float


def rate_of(train: SpikeTrain) -> Rate:
    """
    >>> rate_of(SpikeTrain(torch.tensor([[[0b00010001, 0]]], dtype=torch.uint8), T=8))
    Rate(spikes=0.125, nibbles=1.0)
    """
    planes = train.planes
    nibbles = ((planes & 0x0F) != 0).double().mean() + ((planes & 0xF0) != 0).double().mean()
    return Rate(train.counts.double().mean().item() / train.T, nibbles.item())


def iid(T: int, shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Spikes bool [T, *shape], independent of each other: the worst case."""
    return torch.rand(T, *shape, generator=generator) < rate


def rate_coded(T: int, shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Spikes bool [T, *shape] as layers with ReLU-like activity emit them.

    Half of the neurons are silent; the others are IF neurons with the positive half of a normal distribution as mean
    current, half as much noise on it at every step, and a random initial potential. ``rate`` is met in the mean.

    Raises:
        ValueError: a rate that half of the neurons cannot reach.
    """
    if not 0 < rate <= 0.45:
        raise ValueError(f"rate: expected 0 < rate <= 0.45, since half of the neurons are silent, got {rate}")
    drive = torch.relu(torch.randn(*shape, generator=generator))
    v = torch.rand(*shape, generator=generator)
    noise = [1 + 0.5 * torch.randn(*shape, generator=generator) for _ in range(T)]
    sample = slice(0, _SAMPLE)
    few = [x.flatten()[sample] for x in (drive, v, *noise)]
    low, high = 0.0, 1.0
    while _fire(high * few[0], few[1], few[2:]).double().mean() < rate and high < 1e3:
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        below = _fire(middle * few[0], few[1], few[2:]).double().mean() < rate
        low, high = (middle, high) if below else (low, middle)
    return _fire(high * drive, v, noise)


def _fire(current: Tensor, v: Tensor, noise: Sequence[Tensor]) -> Tensor:
    v = v * (current > 0)
    spikes = []
    for factor in noise:
        v = v + current * factor.clamp_min(0)
        spikes.append(v >= 1)
        v = v - spikes[-1].float()
    return torch.stack(spikes)


KINDS = {"rate": rate_coded, "iid": iid}
