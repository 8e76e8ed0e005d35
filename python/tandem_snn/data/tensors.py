"""Samples in memory: images as bytes, and any tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tandem_ext import SpikeTrain
from tandem_ext.functional.products import channels_last

from .augment import Augmentation, augment
from .split import Chance, MemorySplit


@dataclass(frozen=True, repr=False)
class TensorSplit(MemorySplit):
    """Tensors in memory, unchanged.

    Attributes:
        inputs: floating point [N, *shape], or a SpikeTrain of N samples.
        targets: int64 [N], classes; or for regression floating point [N, ...].

    Raises:
        TypeError: inputs are not a floating-point tensor or a train, or targets not a tensor.
        ValueError: the numbers of inputs and targets differ.

    >>> split = TensorSplit(torch.rand(10, 3), torch.arange(10) % 2)
    >>> [len(targets) for _, targets in split.batches(4)]
    [4, 4, 2]
    """

    rows = ("inputs", "targets")
    inputs: Tensor | SpikeTrain
    targets: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, SpikeTrain) and not (
            isinstance(self.inputs, Tensor) and self.inputs.is_floating_point()
        ):
            raise TypeError(f"inputs: expected a floating-point tensor or a SpikeTrain, got {_described(self.inputs)}")
        if not isinstance(self.targets, Tensor):
            raise TypeError(f"targets: expected a tensor, got {_described(self.targets)}")
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"targets: expected {len(self.inputs)}, as there are inputs, got {len(self.targets)}")

    @property
    def kind(self) -> str:
        return "events" if isinstance(self.inputs, SpikeTrain) else "images"

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Tensor | SpikeTrain, Tensor]:
        chosen = chosen.to(self.device)
        return self.inputs[chosen], self.targets[chosen]

    def _sample(self) -> str:
        steps = f", T={self.inputs.T}" if isinstance(self.inputs, SpikeTrain) else ""
        return f"{self.kind} {list(self.inputs.shape[1:])}{steps}"


def _described(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True, repr=False)
class ImageSplit(MemorySplit):
    """Images in memory.

    Attributes:
        images: uint8 [N, C, H, W].
        targets: int64 [N]; None: the images are their own targets, flattened.
        scale, offset: float32 [C]: a batch is scale·images + offset.
        augmentations: of batches with a seed, before scaling.
    """

    rows = ("images", "targets")
    images: Tensor
    targets: Tensor | None
    scale: Tensor
    offset: Tensor
    augmentations: tuple[Augmentation, ...] = ()

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Tensor, Tensor]:
        chosen = chosen.to(self.device)
        # torch's convolutions are faster in this layout, for the ANN twin too.
        x = channels_last(augment(self.images[chosen], self.augmentations, chance)).float()
        x.mul_(self.scale.view(-1, 1, 1)).add_(self.offset.view(-1, 1, 1))
        return x, x.flatten(1) if self.targets is None else self.targets[chosen]

    def _sample(self) -> str:
        return f"images {list(self.images.shape[1:])}"


def standardisation(images: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, offset) [C] after which the images uint8 [N, C, H, W] have mean 0 and standard deviation 1 per channel.

    >>> scale, offset = standardisation(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    >>> scale * 255 + offset
    tensor([1.])
    """
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in images.split(4096):
        x = chunk.float()  # sums of integers, exact in float64
        sums += torch.stack([v.sum((0, 2, 3), dtype=torch.float64) for v in (x, x.square())])
    mean, square = sums / (images.numel() // images.shape[1])
    std = (square - mean.square()).sqrt()
    std = torch.where(std > 0, std, 1.0)
    return (1 / std).float(), (-mean / std).float()
