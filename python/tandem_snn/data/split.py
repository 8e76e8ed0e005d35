"""Split: samples in batches. Each batch is a pure function of seed, step and process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tandem_ext import SpikeTrain

S = TypeVar("S", bound="Split")


@dataclass(frozen=True)
class Chance:
    """The random numbers of this process's samples in one global batch."""

    seed: int
    step: int
    first: int
    count: int
    total: int

    def uniform(self, numbers: int) -> Tensor:
        """[count, numbers], float64 in [0, 1); the same at every call."""
        entropy = int(np.random.SeedSequence((self.seed, self.step)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(entropy)
        drawn = torch.rand(self.total, numbers, generator=generator, dtype=torch.float64)
        return drawn[self.first : self.first + self.count]


@dataclass(frozen=True)
class Order:
    """The samples of each batch; the arguments are as in :meth:`Split.batches`."""

    samples: int
    batch_size: int
    seed: int | None = None
    start: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected a positive int, got {self.batch_size}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed: expected None or an int from 0, got {self.seed}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank: expected 0 to {self.world - 1} for a world of {self.world}, got {self.rank}")

    def __iter__(self) -> Iterator[tuple[Tensor, Chance | None]]:
        if self.seed is None:
            for chosen in torch.arange(self.rank, self.samples, self.world).split(self.batch_size)[self.start :]:
                if len(chosen):
                    yield chosen, None
            return
        size, total = self.batch_size, self.batch_size * self.world
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.seed))
        for step in range(self.start, self.samples // total):
            first = self.rank * size
            yield order[step * total + first :][:size], Chance(self.seed, step, first, size, total)


class Split(ABC):
    """One part of a data set.

    It is also a data set for torch's DataLoader: ``split[i]`` is (input, target) of one sample, a train with a batch of
    one. Augmentation then uses torch's global generator; :meth:`batches` never does.
    """

    @property
    def example(self) -> tuple[Any, Tensor]:
        """A batch of the first sample."""
        return self.take(torch.arange(min(1, len(self))), None)

    @property
    def kind(self) -> str:
        """The kind of inputs: "images", floating point, or "events", spike trains."""
        return "events" if isinstance(self.example[0], SpikeTrain) else "images"

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of batches."""

    @abstractmethod
    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Any, Tensor]:
        """(inputs, targets) of the samples with these indices, augmented if ``chance`` is given."""

    @abstractmethod
    def subset(self: S, indices: Sequence[int] | Tensor) -> S:
        """The samples with these indices, as a split."""

    @abstractmethod
    def without_augmentation(self: S) -> S:
        """The same samples without augmentation."""

    def batches(
        self, batch_size: int, *, seed: int | None = None, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Any, Tensor]]:
        """Batches of (inputs, targets): a float tensor [B, C, H, W] or a SpikeTrain, and int64 classes [B] or, for
        regression, a float tensor.

        Args:
            batch_size: samples per batch and process.
            seed: None: every sample once, in order, without augmentation; the last batch may be shorter, and processes
                get disjoint parts. Else a random order, a pure function of the seed; an incomplete last global batch is
                dropped. The augmentation of a batch is a pure function of the seed and its number.
            start: skip this many batches, without computing them.
            rank, world: the number of this process, and of all. In random order, the batches b of all processes
                together equal batch b of one process with batches of world·batch_size, augmentation included.
        """
        for chosen, chance in Order(len(self), batch_size, seed, start, rank, world):
            yield self.take(chosen, chance)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        seed = int(torch.randint(2**31, ()))
        inputs, targets = self.take(torch.tensor([index % len(self)]), Chance(seed, 0, 0, 1, 1))
        return (inputs[0] if isinstance(inputs, Tensor) else inputs), targets[0]

    def __repr__(self) -> str:
        x = self.example[0]
        sample = f"{self.kind} {list(x.shape[1:])}" + (f", T={x.T}" if isinstance(x, SpikeTrain) else "")
        return f"{type(self).__name__}({len(self):,} samples: {sample}, device={self.device})"

    @abstractmethod
    def to(self: S, device: torch.device | str) -> S:
        """The split with its samples, or its batches, on another device."""
