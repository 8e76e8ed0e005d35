"""Dataset: a training, a validation and a test split, with shape and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import check_name
from .source import as_split
from .split import Split
from .tensors import TensorSplit

TASKS = ("classification", "regression")
"""A network is trained for classes or for numbers."""


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
