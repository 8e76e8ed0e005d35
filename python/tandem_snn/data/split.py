"""Split: samples that are served in batches, each of which is a pure function of seed, step and process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

S = TypeVar("S", bound="Split")
M = TypeVar("M", bound="MemorySplit")


@dataclass(frozen=True)
class Chance:
    """The random numbers of this process's samples in one global batch."""

    seed: int
    step: int
    first: int
    count: int
    total: int

    def uniform(self, numbers: int) -> Tensor:
        """[count, numbers], float64 in [0, 1). Asked again it gives the same."""
        entropy = int(np.random.SeedSequence((self.seed, self.step)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(entropy)
        drawn = torch.rand(self.total, numbers, generator=generator, dtype=torch.float64)
        return drawn[self.first : self.first + self.count]


@dataclass(frozen=True)
class Order:
    """Which samples are in which batch; the arguments are as in :meth:`Split.batches`."""

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

    It is also what torch's DataLoader takes: ``split[i]`` is (input, target) of one sample, a train being a batch of
    one. Augmented splits then draw from torch's global generator; :meth:`batches` never does.
    """

    @property
    def kind(self) -> str:
        """What inputs are: "images", floating point, or "events", spike trains."""
        return "images"

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its batches are."""

    @abstractmethod
    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Any, Tensor]:
        """(inputs, targets) of the samples with these indices, augmented where there is chance."""

    @abstractmethod
    def subset(self: S, indices: Sequence[int] | Tensor) -> S:
        """The samples with these indices, as a split."""

    @abstractmethod
    def without_augmentation(self: S) -> S:
        """The same samples, as they are whatever the seed."""

    def batches(
        self, batch_size: int, *, seed: int | None = None, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Any, Tensor]]:
        """Batches of (inputs, targets): a float tensor [B, C, H, W] or a SpikeTrain, and int64 classes [B] or, for
        regression, a float tensor.

        Args:
            batch_size: samples per batch and process.
            seed: None: every sample once, in order and as it is, the last batch shorter; the processes take disjoint
                parts. Else a random order, a pure function of the seed, without the last global batch where it is
                incomplete; the augmentation of a batch is a pure function of the seed and its number.
            start: skip that many batches, without computing them.
            rank, world: which of how many processes asks. Of a random order, batch b of all processes together is, in
                augmentation too, what one process with batches of world·batch_size gets as its batch b.
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
        return f"{type(self).__name__}({len(self):,} samples: {self._sample()}, device={self.device})"

    def _sample(self) -> str:
        """What a sample is, for the repr."""
        return self.kind

    @abstractmethod
    def to(self: S, device: torch.device | str) -> S:
        """The split with its samples, or at least its batches, on another device."""


class MemorySplit(Split):
    """Base of the splits that hold their samples: dataclasses whose fields ``rows`` have a row for each sample."""

    rows: ClassVar[tuple[str, ...]]

    def __len__(self) -> int:
        return len(getattr(self, self.rows[0]))

    @property
    def device(self) -> torch.device:
        found: torch.device = getattr(self, self.rows[0]).device
        return found

    def subset(self: M, indices: Sequence[int] | Tensor) -> M:
        chosen = torch.as_tensor(indices, device=self.device)
        held = {name: getattr(self, name) for name in self.rows}
        return replace(self, **{name: rows[chosen] for name, rows in held.items() if rows is not None})  # type: ignore[type-var]

    def without_augmentation(self: M) -> M:
        return replace(self, augmentations=()) if hasattr(self, "augmentations") else self  # type: ignore[type-var]

    def to(self: M, device: torch.device | str) -> M:
        moved = {name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")}
        return replace(self, **moved)  # type: ignore[type-var]
