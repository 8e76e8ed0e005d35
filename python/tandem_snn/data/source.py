"""Your own data as a split: a torch data set, a DataLoader, a pair of tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, default_collate

from tandem_ext import SpikeTrain

from .split import Split
from .stream import Draw, WorkerSplit
from .tensors import TensorSplit

_EXPECTED = "expected a data set with len() and samples (input, target), a DataLoader of one, or a pair of tensors"


@dataclass(frozen=True, repr=False)
class DatasetSplit(WorkerSplit):
    """The samples of any map-style data set of torch.

    Batches are chosen as in every split. In batches with a seed, the generators of torch, NumPy and Python are seeded
    for each sample, by the seed and the sample's position, so that random transforms are reproducible.

    Attributes:
        dataset: ``dataset[i]`` is (input, target) for i from 0 to ``len(dataset) - 1``; an input is a tensor or array
            of floating point, or a train with a batch of one.
        indices: the samples of this split; None: all of the data set.
        collate: makes a batch of a list of samples.
        batch_size: of the original DataLoader; :class:`tandem_snn.training.Trainer` compares it with the recipe's.
        workers, device: as in :class:`WorkerSplit`.

    >>> split = DatasetSplit(torch.utils.data.TensorDataset(torch.rand(10, 3), torch.arange(10)))
    >>> split, next(split.batches(4))[1]
    (DatasetSplit(10 samples: images [3], device=cpu), tensor([0, 1, 2, 3]))
    """

    dataset: Any
    indices: tuple[int, ...] | None = None
    collate: Callable[[list[Any]], Any] = default_collate
    batch_size: int | None = None
    workers: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    example: tuple[Any, Tensor] = field(init=False)
    """A batch of the first sample."""

    def __post_init__(self) -> None:
        if not len(self):
            raise ValueError("dataset: expected samples, got none")
        object.__setattr__(self, "example", self.stack([(0, 0)]))

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    @property
    def kind(self) -> str:
        return "events" if isinstance(self.example[0], SpikeTrain) else "images"

    def stack(self, draws: list[Draw]) -> tuple[Any, Tensor]:
        batch = self.collate([self._made(*draw) for draw in draws])
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"dataset: {_EXPECTED}, got samples of {_kinds(batch)}")
        inputs, targets = batch
        if not isinstance(inputs, SpikeTrain) and not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
            found = f"{inputs.dtype} tensors" if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(
                f"dataset: expected inputs of floating point or spike trains, got {found}: give images torchvision's "
                "ToTensor(), events tandem_snn.data.from_tonic"
            )
        targets = torch.as_tensor(targets)
        return inputs, targets if targets.is_floating_point() else targets.long()

    def _made(self, index: int, seed: int | None) -> Any:
        index = index if self.indices is None else self.indices[index]
        with _seeded(seed):
            return self.dataset[index]

    def _sample(self) -> str:
        x = self.example[0]
        return f"{self.kind} {list(x.shape[1:])}" + (f", T={x.T}" if isinstance(x, SpikeTrain) else "")

    def subset(self, indices: Sequence[int] | Tensor) -> DatasetSplit:
        chosen = torch.as_tensor(indices).tolist()
        return replace(self, indices=tuple(chosen if self.indices is None else (self.indices[i] for i in chosen)))

    def without_augmentation(self) -> DatasetSplit:
        return self  # the data set's own transforms stay


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
            f"{name}: the engine chooses samples by itself, so that runs can be repeated and resumed: a DataLoader "
            "with a sampler of its own or an IterableDataset cannot be used; give a data set, or write your own loop"
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
