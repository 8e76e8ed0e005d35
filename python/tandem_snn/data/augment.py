"""Augmentations by name. They move whole pixels, so that images and spike trains stay bytes, and are functions of given
random numbers, so that resumed and distributed runs augment alike: torchvision's draw from the global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, check_name

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
