"""Data sets: their splits, with shape and classes; your own data as a split or a data set."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, default_collate

from tandem_ext import SpikeTrain

from ..errors import UserError, check_name
from .split import Chance, Split, TensorSplit, in_batches

TASKS = ("classification", "regression")
"""A network is trained for classes or for numbers."""
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
            sampler=(_draws(*chosen) for chosen in in_batches(len(self), batch_size, seed, start, rank, world)),
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
class _Batches(data.Dataset[Any]):
    """A worker's data set: batches by their draws. Errors are returned, since DataLoader replaces their text."""

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


@dataclass(frozen=True, repr=False)
class Dataset:
    """A data set with its fixed split.

    Attributes:
        train, validation, test: the splits. Validation is a fixed part of the official training samples, or None.
        shape: of one sample, such as [C, H, W].
        classes: the number of a network's outputs: of classes, or of numbers in regression.
        class_names: empty in regression.
        task: "classification" or "regression".
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    task: str = "classification"

    @classmethod
    def of(
        cls,
        train: Any,
        test: Any,
        validation: Any = None,
        *,
        name: str = "own",
        task: str | None = None,
        classes: int | Sequence[str] | None = None,
    ) -> Dataset:
        """A data set of your own data.

        Args:
            train, test, validation: each a torch data set, a DataLoader, a pair of tensors or a split, see
                :func:`as_split`.
            name: the name in results.
            task: "classification" or "regression"; None: regression if targets are floating point.
            classes: their number or their names; None: the attribute ``classes`` of the training data set, or for a
                pair of tensors the greatest target plus one.

        Raises:
            TypeError, ValueError: as :func:`as_split`; ``classes`` is needed; a split has no samples; tensors in memory
                whose targets are no classes, or whose inputs for test or validation are not finite.
            UserError: an unknown task.

        >>> x, y = torch.rand(30, 1, 8, 8), torch.arange(30) % 3
        >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=10)
        >>> Dataset.of((x, y), test=loader)
        Dataset('own': classification, 3 classes, images [1, 8, 8]; 30 training, 30 test samples)
        """
        splits = {"train": as_split(train, "train"), "test": as_split(test, "test")}
        held_out = None if validation is None else as_split(validation, "validation")
        parts = splits if held_out is None else splits | {"validation": held_out}
        for part, split in parts.items():
            if not len(split):
                raise ValueError(f"{part}: it has no samples")
        inputs, targets = splits["train"].example
        if task is None:
            task = "regression" if targets.is_floating_point() else "classification"
        check_name("task", task, TASKS)
        names: tuple[str, ...] = ()
        if task == "regression":
            classes = targets[0].numel()
        else:
            classes = _classes(splits["train"]) if classes is None else classes
            if not isinstance(classes, int):
                names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in classes)
                classes = len(names)
            names = names or tuple(map(str, range(classes)))
        for part, split in parts.items():
            if isinstance(split, TensorSplit):
                _check(part, split, classes if task == "classification" else None)
        return cls(
            **splits, validation=held_out, name=name, task=task, shape=tuple(inputs.shape[1:]), classes=classes,
            class_names=names,
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """The kind of inputs: "images" or "events"."""
        return self.train.kind

    @property
    def device(self) -> torch.device:
        """The device of batches."""
        return self.train.device

    def to(self, device: torch.device | str) -> Dataset:
        """The data set with its samples, or for a stream its batches, on another device."""
        validation = self.validation and self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))

    def __repr__(self) -> str:
        many = "outputs" if self.task == "regression" else "classes"
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        sizes = ", ".join(f"{len(split):,} {part}" for part, split in parts.items() if split is not None)
        what = f"{self.task}, {self.classes} {many}, {self.kind} {list(self.shape)}"
        return f"Dataset({self.name!r}: {what}; {sizes} samples)"


def as_dataset(data: Any) -> Dataset:
    """``data`` if it is a :class:`Dataset`; else :meth:`Dataset.of` the entries of a mapping.

    >>> as_dataset({"train": (torch.rand(20, 4), torch.rand(20, 2)), "test": (torch.rand(9, 4), torch.rand(9, 2))})
    Dataset('own': regression, 2 outputs, images [4]; 20 training, 9 test samples)
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Mapping) and {"train", "test"} <= set(data):
        return Dataset.of(**data)
    found = f"the keys {sorted(map(str, data))[:4]}" if isinstance(data, Mapping) else type(data).__name__
    raise TypeError(
        "data: expected a tandem_snn.data.Dataset or {'train': ..., 'test': ...}, each a data set, a DataLoader or a "
        f"pair of tensors, got {found}"
    )


def _check(part: str, split: TensorSplit, classes: int | None) -> None:
    """Raises ValueError where training would fail late, or a test would mean nothing."""
    inputs, targets = split.inputs, split.targets
    if part != "train" and isinstance(inputs, Tensor) and not bool(inputs.isfinite().all()):
        raise ValueError(f"{part}: its inputs are not all finite")
    if classes is None or targets is None:
        return
    if targets.dim() != 1 or targets.dtype != torch.int64:
        got = f"{targets.dtype} {list(targets.shape)}"
        raise ValueError(f"{part}: expected classes as targets, int64 [N], got {got}; one-hot rows: targets.argmax(1)")
    least, most = map(int, targets.aminmax())
    if least < 0 or most >= classes:
        raise ValueError(f"{part}: expected classes from 0 to {classes - 1}, got {least if least < 0 else most}")


def _classes(split: Split) -> int | Sequence[str]:
    if isinstance(split, TensorSplit) and split.targets is not None:
        return int(split.targets.max()) + 1
    inner = getattr(split, "dataset", None)
    while inner is not None:
        if (found := getattr(inner, "classes", None)) is not None:
            return found if isinstance(found, int) else list(found)
        if (tensors := getattr(inner, "tensors", None)) is not None:
            return int(tensors[-1].max()) + 1
        inner = getattr(inner, "dataset", None)  # of a subset or a cache
    raise ValueError("classes: not known for this data set: give their number or names")
