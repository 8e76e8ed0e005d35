"""Image data sets that fit in memory, as tensors: digits, MNIST, Fashion-MNIST."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError, check_name, extra

_IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
NAMES = ("digits", *_IDX_FOLDERS)


@dataclass(frozen=True)
class Split:
    """Images [N, C, H, W], float32, and their labels [N], int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, the last one shorter; with a generator in random order, without the incomplete one."""
        if generator is None:
            yield from zip(self.images.split(size), self.labels.split(size), strict=True)
            return
        order = torch.randperm(len(self), generator=generator)
        for i in range(0, len(self) - size + 1, size):
            chosen = order[i : i + size]
            yield self.images[chosen], self.labels[chosen]

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set with its fixed split into training and test images, standardised by the training images."""

    name: str
    train: Split
    test: Split
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """One image, [C, H, W]."""
        return tuple(self.train.images.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set by name.

    Args:
        name: "digits" (1,797 images of 8×8, shipped with scikit-learn; a fixed stratified quarter is the test set),
            "mnist" or "fashion-mnist" (60,000 + 10,000 images of 28×28, from files).
        data_dir: the folder that holds ``MNIST/raw`` or ``FashionMNIST/raw``, as torchvision lays them out. Default:
            the environment variable ``TANDEM_DATA``.

    Raises:
        UserError: unknown name, files that are missing or damaged, a missing optional dependency.

    >>> data = load("digits")
    >>> data.shape, len(data.train), len(data.test)
    ((1, 8, 8), 1347, 450)
    """
    check_name("data set", name, NAMES)
    train, test = _digits() if name == "digits" else _idx(name, data_dir)
    mean, std = train.images.mean(), train.images.std()
    train, test = (Split((split.images - mean) / std, split.labels) for split in (train, test))
    return Dataset(name, train, test, classes=10)


def _digits() -> tuple[Split, Split]:
    purpose = "the data set digits"
    digits = extra("sklearn.datasets", purpose).load_digits()
    train, test = extra("sklearn.model_selection", purpose).train_test_split(
        range(len(digits.target)), test_size=0.25, random_state=0, stratify=digits.target
    )
    images = torch.from_numpy(digits.images).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def _idx(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Split, Split]:
    root = data_dir or os.environ.get("TANDEM_DATA")
    if not root:
        raise UserError(f"data set {name!r} is read from files: give their folder with --data-dir or TANDEM_DATA")
    raw = Path(root) / _IDX_FOLDERS[name] / "raw"
    return _idx_split(name, raw, "train"), _idx_split(name, raw, "t10k")


def _idx_split(name: str, raw: Path, part: str) -> Split:
    images = _read_idx(name, raw / f"{part}-images-idx3-ubyte", 3)
    labels = _read_idx(name, raw / f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise UserError(f"data set {name!r}: {len(images)} {part} images but {len(labels)} labels in {raw}")
    return Split(images.float().unsqueeze(1), labels.long())


def _read_idx(name: str, path: Path, dims: int) -> Tensor:
    read = extra("torchvision.datasets.mnist", f"the data set {name}").read_sn3_pascalvincent_tensor
    how = f"torchvision.datasets.{_IDX_FOLDERS[name]}(DIR, download=True) fetches it"
    if not path.is_file():
        raise UserError(f"data set {name!r}: no file {path}: {how}, DIR being your --data-dir or TANDEM_DATA")
    try:
        tensor: Tensor = read(str(path))
    except (AssertionError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"data set {name!r}: damaged file {path}: delete it, then {how}") from error
    if tensor.dim() != dims or tensor.dtype != torch.uint8 or not len(tensor):
        raise UserError(f"data set {name!r}: {path} holds {list(tensor.shape)} {tensor.dtype}: delete it, then {how}")
    return tensor
