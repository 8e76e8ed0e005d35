"""Your own data as a split: a torch data set, a DataLoader, a pair of tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate

from tandem_ext import SpikeTrain

from ..errors import UserError
from .split import Chance, Order, Split
from .tensors import TensorSplit

Draw = tuple[int, int | None]  # a sample's index, and its seed where it is augmented
_EXPECTED = "expected a data set with len() and samples (input, target), a DataLoader of one, or a pair of tensors"


@dataclass(frozen=True, repr=False)
class DatasetSplit(Split):
    """The samples of any map-style data set of torch.

    Batches are chosen as in every split. In batches with a seed, the generators of torch, NumPy and Python are seeded
    for each sample, by the seed and the sample's position, so that random transforms are reproducible.

    Attributes:
        dataset: ``dataset[i]`` is (input, target) for i from 0 to ``len(dataset) - 1``; an input is a tensor or array
            of floating point, or a train with a batch of one.
        plain: the same samples without augmentation, for batches without a seed; None: ``dataset`` itself.
        indices: the samples of this split; None: all of the data set.
        collate: makes a batch of a list of samples.
        batch_size: of the original DataLoader; :class:`tandem_snn.training.Trainer` compares it with the recipe's.
        workers: processes that make the samples; 0: this process.
        device: of batches.

    Raises:
        UserError: there are no samples.

    >>> split = DatasetSplit(torch.utils.data.TensorDataset(torch.rand(10, 3), torch.arange(10)))
    >>> split, next(split.batches(4))[1]
    (DatasetSplit(10 samples: images [3], device=cpu), tensor([0, 1, 2, 3]))
    """

    dataset: Any
    plain: Any = None
    indices: tuple[int, ...] | None = None
    collate: Callable[[list[Any]], Any] = default_collate
    batch_size: int | None = None
    workers: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)

    def __post_init__(self) -> None:
        if not len(self):
            raise UserError("dataset: expected samples, got none")
        _ = self.example  # checked

    @cached_property
    def example(self) -> tuple[Any, Tensor]:
        return self.stack([(0, 0)])

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    def stack(self, draws: list[Draw]) -> tuple[Any, Tensor]:
        batch = self.collate([self._made(*draw) for draw in draws])
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"dataset: {_EXPECTED}, got samples of {_kinds(batch)}")
        inputs, targets = batch
        if not isinstance(inputs, SpikeTrain) and not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
            found = f"{inputs.dtype} tensors" if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(
                f"dataset: expected floating-point inputs or spike trains, got {found}: use torchvision's ToTensor() "
                "for images, tandem_snn.data.from_tonic for events"
            )
        targets = torch.as_tensor(targets)
        return inputs, targets if targets.is_floating_point() else targets.long()

    def _made(self, index: int, seed: int | None) -> Any:
        index = index if self.indices is None else self.indices[index]
        with _seeded(seed):
            return (self.plain if seed is None and self.plain is not None else self.dataset)[index]

    def batches(
        self, batch_size: int, *, seed: int | None = None, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Any, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            _Batches(self),
            batch_size=None,
            sampler=(_draws(*chosen) for chosen in Order(len(self), batch_size, seed, start, rank, world)),
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

    def to(self, device: torch.device | str) -> DatasetSplit:
        return replace(self, device=torch.device(device))

    def subset(self, indices: Sequence[int] | Tensor) -> DatasetSplit:
        chosen = torch.as_tensor(indices).tolist()
        return replace(self, indices=tuple(chosen if self.indices is None else (self.indices[i] for i in chosen)))

    def without_augmentation(self) -> DatasetSplit:
        """Without ``plain`` the data set's own transforms stay."""
        return self if self.plain is None else replace(self, dataset=self.plain)


@dataclass(frozen=True)
class _Batches(Dataset[Any]):
    """A worker's data set: batches by their draws. Errors are returned, since DataLoader replaces the text of raised
    ones.
    """

    split: DatasetSplit

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


def as_split(source: Any, name: str = "source") -> Split:
    """A split of your own data.

    Args:
        source: a split, which is returned unchanged; a data set with ``len()`` and samples (input, target); a
            DataLoader, of which ``collate_fn`` and workers are used, but not the order of samples and the batch size;
            a pair (inputs, targets) of tensors or arrays, or of a SpikeTrain and targets.
        name: of the argument, for errors.

    Raises:
        TypeError: something else; samples that are not (input, target); integer inputs.
        ValueError: no samples; a DataLoader with its own sampler.

    >>> as_split((torch.rand(10, 3), torch.arange(10) % 2))
    TensorSplit(10 samples: images [3], device=cpu)
    """
    if isinstance(source, Split):
        return source
    if isinstance(source, DataLoader):
        return _of_loader(source, name)
    if isinstance(source, (tuple, list)) and len(source) == 2 and hasattr(source[1], "__array__"):
        inputs, targets = source[0], torch.as_tensor(source[1])
        inputs = inputs if isinstance(inputs, SpikeTrain) else torch.as_tensor(inputs)
        return TensorSplit(inputs, targets if targets.is_floating_point() else targets.long())
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if not indexed or isinstance(source, (tuple, IterableDataset)):
        raise TypeError(f"{name}: {_EXPECTED}, got {_kinds(source)}")
    return DatasetSplit(source)


def _of_loader(loader: DataLoader[Any], name: str) -> Split:
    ordinary = isinstance(loader.sampler, (RandomSampler, SequentialSampler)) and loader.batch_size is not None
    if isinstance(loader.dataset, IterableDataset) or not ordinary:
        raise ValueError(
            f"{name}: a DataLoader with a custom sampler or an IterableDataset is not supported, because the engine "
            "chooses the samples, so that runs can be repeated and resumed; give a data set, or write your own loop"
        )
    if isinstance(loader.dataset, Split):
        return loader.dataset
    return DatasetSplit(
        loader.dataset, collate=loader.collate_fn, batch_size=loader.batch_size, workers=loader.num_workers
    )


def _kinds(value: Any) -> str:
    """The types of a value's first parts."""
    if not isinstance(value, (tuple, list)):
        return type(value).__name__
    return f"({', '.join(type(part).__name__ for part in value[:4])}{', ...' * (len(value) > 4)})"


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Within this context the global generators are seeded; afterwards they have their old state."""
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (transforms draw from the global one)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
