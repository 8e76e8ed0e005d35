"""Split: samples in batches, each a pure function of seed, step and process; samples in memory; augmentations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tandem_ext import SpikeTrain
from tandem_ext.functional.products import channels_last

from ..errors import UserError, check_name

# They move whole pixels, so that samples stay bytes, and get their random numbers as arguments, so that resumed and
# distributed runs augment alike: torchvision's draw from the global generator.
AUGMENTATIONS = ("flip", "shift")
"""What a recipe's ``augment`` may list: "flip", mirror images; "shift" or "shift:PIXELS", random positions."""
_DEFAULT_SHIFT = 4


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
class Augmentation:
    """``apply(x [B, K, H, W], u [B, numbers])``, a function of x and the random numbers u, uniform in [0, 1)."""

    numbers: int
    apply: Callable[[Tensor, Tensor], Tensor]


def parse(names: Sequence[str]) -> tuple[Augmentation, ...]:
    """Augmentations from their names.

    "flip" mirrors left and right with probability 1/2. "shift" moves by up to 4 pixels in each direction and fills with
    zeros: a random crop of the image padded by 4. "shift:2" moves by up to 2 pixels.
    """
    return tuple(_parse(name) for name in names)


def _parse(text: str) -> Augmentation:
    name, _, amount = text.partition(":")
    check_name("augmentation", name, AUGMENTATIONS)
    if name == "flip" and not amount:
        return Augmentation(1, flip)
    if name == "shift" and (not amount or (amount.isdecimal() and int(amount) > 0)):
        most = int(amount or _DEFAULT_SHIFT)
        return Augmentation(2, lambda x, u: shift(x, u, most))
    raise UserError(f"augmentation {text!r}: expected 'flip', 'shift' or 'shift:PIXELS'")


def augment(x: Tensor, augmentations: Sequence[Augmentation], chance: Chance | None) -> Tensor:
    """x [B, K, H, W] after all augmentations; without ``chance`` x itself."""
    if chance is None or not augmentations:
        return x
    sizes = [a.numbers for a in augmentations]
    for augmentation, u in zip(augmentations, chance.uniform(sum(sizes)).split(sizes, 1), strict=True):
        x = augmentation.apply(x, u)
    return x


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirrors the samples with u < 1/2."""
    mirrored = (u[:, 0] < 0.5).to(x.device).view(-1, 1, 1, 1)
    return torch.where(mirrored, x.flip(-1), x)


def shift(x: Tensor, u: Tensor, most: int) -> Tensor:
    """Moves each sample by -most to most pixels, as u says, and fills with zeros."""
    height, width = x.shape[-2:]
    start = (u * (2 * most + 1)).long().to(x.device)
    padded = torch.nn.functional.pad(x, (most, most, most, most))
    samples = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    rows = start[:, :1, None] + torch.arange(height, device=x.device).view(1, -1, 1)
    columns = start[:, 1:, None] + torch.arange(width, device=x.device).view(1, 1, -1)
    return padded.permute(0, 2, 3, 1)[samples, rows, columns].permute(0, 3, 1, 2)  # whole pixels, channels together


S = TypeVar("S", bound="Split")


def in_batches(
    samples: int, batch_size: int, seed: int | None, start: int, rank: int, world: int
) -> Iterator[tuple[Tensor, Chance | None]]:
    """The samples of each batch; the arguments are as in :meth:`Split.batches`."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive int, got {batch_size}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed: expected None or an int from 0, got {seed}")
    if not 0 <= rank < world:
        raise ValueError(f"rank: expected 0 to {world - 1} for a world of {world}, got {rank}")
    if seed is None:
        for chosen in torch.arange(rank, samples, world).split(batch_size)[start:]:
            if len(chosen):
                yield chosen, None
        return
    total, first = batch_size * world, rank * batch_size
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    for step in range(start, samples // total):
        yield order[step * total + first :][:batch_size], Chance(seed, step, first, batch_size, total)


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
        for chosen, chance in in_batches(len(self), batch_size, seed, start, rank, world):
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


@dataclass(frozen=True, repr=False)
class TensorSplit(Split):
    """Samples in memory.

    Attributes:
        inputs: floating point [N, *shape], a SpikeTrain of N samples, or with ``scaling`` images, uint8 [N, C, H, W].
        targets: int64 [N], classes; or for regression floating point [N, ...]; None: the inputs of a batch, flattened.
        augmentations: of batches with a seed, before scaling; for inputs [N, C, H, W].
        scaling: float32 [2, C]: a batch is ``scaling[0]``·inputs + ``scaling[1]``.

    Raises:
        TypeError: inputs are neither a floating-point tensor nor a train nor images with ``scaling``; targets are not a
            tensor.
        ValueError: the numbers of inputs and targets differ.

    >>> split = TensorSplit(torch.rand(10, 3), torch.arange(10) % 2)
    >>> [len(targets) for _, targets in split.batches(4)]
    [4, 4, 2]
    """

    inputs: Tensor | SpikeTrain
    targets: Tensor | None
    augmentations: tuple[Augmentation, ...] = ()
    scaling: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, SpikeTrain) and not (
            isinstance(self.inputs, Tensor) and (self.scaling is not None or self.inputs.is_floating_point())
        ):
            raise TypeError(f"inputs: expected a floating-point tensor or a SpikeTrain, got {_described(self.inputs)}")
        if not isinstance(self.targets, Tensor | None):
            raise TypeError(f"targets: expected a tensor, got {_described(self.targets)}")
        if self.targets is not None and len(self.inputs) != len(self.targets):
            raise ValueError(f"targets: expected {len(self.inputs)}, as there are inputs, got {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Tensor | SpikeTrain, Tensor]:
        chosen = chosen.to(self.device)
        x = self.inputs[chosen]
        if isinstance(x, SpikeTrain):
            x = _augmented(x, self.augmentations, chance)
        else:
            x = augment(x, self.augmentations, chance)
            if self.scaling is not None:
                # torch's convolutions are faster in this layout, for the ANN twin too.
                scale, offset = self.scaling.view(2, -1, 1, 1)
                x = channels_last(x).float().mul_(scale).add_(offset)
        if self.targets is None:
            return x, (x.counts if isinstance(x, SpikeTrain) else x).flatten(1)
        return x, self.targets[chosen]

    def subset(self, indices: Sequence[int] | Tensor) -> TensorSplit:
        chosen = torch.as_tensor(indices, device=self.device)
        targets = None if self.targets is None else self.targets[chosen]
        return replace(self, inputs=self.inputs[chosen], targets=targets)

    def without_augmentation(self) -> TensorSplit:
        return replace(self, augmentations=()) if self.augmentations else self

    def to(self, device: torch.device | str) -> TensorSplit:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")})


def _augmented(x: SpikeTrain, augmentations: Sequence[Augmentation], chance: Chance | None) -> SpikeTrain:
    """The train after all augmentations. Trains of images get channels innermost in memory, as the kernels need it."""
    planes = x.stored.transpose(0, 1)  # [B, P, C, H, W]
    if chance is not None and augmentations:
        planes = augment(planes.flatten(1, 2), augmentations, chance).unflatten(1, planes.shape[1:3])
        x = x.replace(counts=None)
    planes = planes.transpose(0, 1)
    return x.replace(stored=planes.movedim(2, -1).contiguous().movedim(-1, 2)) if planes.dim() == 5 else x


def _described(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def standardisation(images: Tensor) -> Tensor:
    """The scaling [2, C] after which images uint8 [N, C, H, W] have mean 0 and deviation 1 per channel."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in images.split(4096):
        x = chunk.float()  # sums of integers, exact in float64
        sums += torch.stack([v.sum((0, 2, 3), dtype=torch.float64) for v in (x, x.square())])
    mean, square = sums / (images.numel() // images.shape[1])
    std = (square - mean.square()).sqrt()
    std = torch.where(std > 0, std, 1.0)
    return torch.stack([1 / std, -mean / std]).float()
