"""Samples in memory: images as bytes, spike trains, and any tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tandem_ext import SpikeTrain
from tandem_ext.functional.products import channels_last

from .augment import Augmentation, augment
from .split import Chance, Split


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
    """The train after all augmentations; that of images has channels innermost in memory, as the kernels need them."""
    planes = x.stored.transpose(0, 1)  # [B, P, C, H, W]
    if chance is not None and augmentations:
        planes = augment(planes.flatten(1, 2), augmentations, chance).unflatten(1, planes.shape[1:3])
        x = x.but(counts=None)
    planes = planes.transpose(0, 1)
    return x.but(stored=planes.movedim(2, -1).contiguous().movedim(-1, 2)) if planes.dim() == 5 else x


def _described(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def standardisation(images: Tensor) -> Tensor:
    """The scaling [2, C] after which the images uint8 [N, C, H, W] have mean 0 and standard deviation 1 per channel.

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
    return torch.stack([1 / std, -mean / std]).float()
