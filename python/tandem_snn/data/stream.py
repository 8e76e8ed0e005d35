"""Samples that are made one by one on demand, by workers, such as image files too large for memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import UserError, extra
from .files import damaged
from .split import Chance, Order, Split

W = TypeVar("W", bound="WorkerSplit")
Draw = tuple[int, int | None]  # a sample's index, and its seed where it is augmented


class WorkerSplit(Split):
    """Base of splits whose samples are made one by one.

    Attributes:
        workers: processes that make them; 0: this process.
        device: of batches.
    """

    workers: int
    device: torch.device

    @abstractmethod
    def stack(self, draws: list[Draw]) -> tuple[Any, Tensor]:
        """A batch of these samples on the CPU."""

    def batches(
        self, batch_size: int, *, seed: int | None = None, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Any, Tensor]]:
        order = Order(len(self), batch_size, seed, start, rank, world)
        loader = torch.utils.data.DataLoader(
            _Batches(self),
            batch_size=None,
            sampler=(_draws(chosen, chance) for chosen, chance in order),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            inputs, targets = batch
            yield inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[Any, Tensor]:
        inputs, targets = self.stack(_draws(chosen, chance))
        return inputs.to(self.device), targets.to(self.device)

    def to(self: W, device: torch.device | str) -> W:
        return replace(self, device=torch.device(device))  # type: ignore[type-var]  # all of them are dataclasses


@dataclass(frozen=True, repr=False)
class StreamSplit(WorkerSplit):
    """Image files.

    Attributes:
        files, targets: paths and classes.
        training, evaluation: torchvision transforms from an image to a tensor [C, H, W]. ``training`` is for batches
            with a seed; its random numbers depend on the seed, the batch's number and the sample's position.
        workers: processes that decode; 0: this process.
        device: of batches.
    """

    name: str
    files: tuple[Path, ...]
    targets: tuple[int, ...]
    training: Callable[[Any], Tensor]
    evaluation: Callable[[Any], Tensor]
    workers: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)

    def __len__(self) -> int:
        return len(self.files)

    def stack(self, draws: list[Draw]) -> tuple[Tensor, Tensor]:
        images, targets = zip(*(self._decoded(*draw) for draw in draws), strict=True)
        return torch.stack(images), torch.tensor(targets)

    def _decoded(self, index: int, seed: int | None) -> tuple[Tensor, int]:
        path = self.files[index]
        try:
            with extra("PIL.Image", "image files").open(path) as file:
                image = file.convert("RGB")
        except UserError:
            raise
        except Exception as error:  # Pillow raises many classes, one of them for huge images
            raise damaged(self.name, path, error, "put the whole file there again") from error
        if seed is None:
            return self.evaluation(image), self.targets[index]
        with torch.random.fork_rng(devices=[]):  # transforms draw from torch's global generator
            torch.manual_seed(seed)
            return self.training(image), self.targets[index]

    def subset(self, indices: Sequence[int] | Tensor) -> StreamSplit:
        chosen = torch.as_tensor(indices).tolist()
        files, targets = (tuple(values[i] for i in chosen) for values in (self.files, self.targets))
        return replace(self, files=files, targets=targets)

    def without_augmentation(self) -> StreamSplit:
        return replace(self, training=self.evaluation)


@dataclass(frozen=True)
class _Batches(torch.utils.data.Dataset):
    """A worker's data set: batches by their draws. Errors are returned, since DataLoader replaces the text of raised
    ones.
    """

    split: WorkerSplit

    def __getitem__(self, draws: list[Draw]) -> tuple[Any, Tensor] | UserError:
        try:
            return self.split.stack(draws)
        except UserError as error:
            return error


def _draws(chosen: Tensor, chance: Chance | None) -> list[Draw]:
    if chance is None:
        return [(i, None) for i in chosen.tolist()]
    seeds = (chance.uniform(1)[:, 0] * 2**53).long().tolist()
    return list(zip(chosen.tolist(), seeds, strict=True))
