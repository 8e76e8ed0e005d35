"""Images that fit in memory, kept as the bytes they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tandem_ext.functional.products import channels_last

from .augment import Augmentation, augment
from .split import Chance, Split


@dataclass(frozen=True, repr=False)
class ImageSplit(Split):
    """Images in memory.

    Attributes:
        images: uint8 [N, C, H, W].
        targets: int64 [N]; None: the images are their own targets, flattened.
        scale, offset: float32 [C]: a batch is scale·images + offset.
        augmentations: what a batch with a seed goes through, before that.
    """

    images: Tensor
    targets: Tensor | None
    scale: Tensor
    offset: Tensor
    augmentations: tuple[Augmentation, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Tensor, Tensor]:
        chosen = chosen.to(self.device)
        # In this layout torch's convolutions are faster than in the images' own, for the ANN twin too.
        x = channels_last(augment(self.images[chosen], self.augmentations, chance)).float()
        x.mul_(self.scale.view(-1, 1, 1)).add_(self.offset.view(-1, 1, 1))
        return x, x.flatten(1) if self.targets is None else self.targets[chosen]

    def _sample(self) -> str:
        return f"images {list(self.images.shape[1:])}"

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSplit:
        chosen = torch.as_tensor(indices, device=self.device)
        targets = None if self.targets is None else self.targets[chosen]
        return replace(self, images=self.images[chosen], targets=targets)

    def without_augmentation(self) -> ImageSplit:
        return replace(self, augmentations=())

    def to(self, device: torch.device | str) -> ImageSplit:
        moved = {name: getattr(self, name).to(device) for name in ("images", "scale", "offset")}
        return replace(self, **moved, targets=self.targets if self.targets is None else self.targets.to(device))


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
