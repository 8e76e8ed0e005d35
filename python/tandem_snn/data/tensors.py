"""Samples of any kind that are tensors already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tandem_ext import SpikeTrain

from .split import Chance, Split


@dataclass(frozen=True, repr=False)
class TensorSplit(Split):
    """Tensors in memory, served as they are.

    Attributes:
        inputs: floating point [N, *shape], or a SpikeTrain of N samples.
        targets: int64 [N], classes; or for regression floating point [N, ...].

    Raises:
        TypeError: inputs that are no floating-point tensor and no train, targets that are no tensor.
        ValueError: there are more of the one than of the other.

    >>> split = TensorSplit(torch.rand(10, 3), torch.arange(10) % 2)
    >>> [len(targets) for _, targets in split.batches(4)]
    [4, 4, 2]
    """

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

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def kind(self) -> str:
        return "events" if isinstance(self.inputs, SpikeTrain) else "images"

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Tensor | SpikeTrain, Tensor]:
        chosen = chosen.to(self.device)
        return self.inputs[chosen], self.targets[chosen]

    def _sample(self) -> str:
        steps = f", T={self.inputs.T}" if isinstance(self.inputs, SpikeTrain) else ""
        return f"{self.kind} {list(self.inputs.shape[1:])}{steps}"

    def subset(self, indices: Sequence[int] | Tensor) -> TensorSplit:
        return TensorSplit(*self.take(torch.as_tensor(indices), None))

    def without_augmentation(self) -> TensorSplit:
        return self

    def to(self, device: torch.device | str) -> TensorSplit:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def _described(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
