"""Samples of any kind that are tensors already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .split import Chance, Split


@dataclass(frozen=True)
class TensorSplit(Split):
    """Tensors in memory, served as they are.

    Attributes:
        inputs: floating point [N, *shape].
        targets: int64 [N], classes; or for regression floating point [N, ...].

    Raises:
        ValueError: there are more of the one than of the other.

    >>> split = TensorSplit(torch.rand(10, 3), torch.arange(10) % 2)
    >>> [len(targets) for _, targets in split.batches(4)]
    [4, 4, 2]
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"targets: expected {len(self.inputs)}, as there are inputs, got {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Tensor, Tensor]:
        chosen = chosen.to(self.device)
        return self.inputs[chosen], self.targets[chosen]

    def subset(self, indices: Sequence[int] | Tensor) -> TensorSplit:
        return TensorSplit(*self.take(torch.as_tensor(indices), None))

    def without_augmentation(self) -> TensorSplit:
        return self

    def to(self, device: torch.device | str) -> TensorSplit:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))
