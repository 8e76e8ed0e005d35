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
_DIGITS = tuple("0123456789")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CLASSES = {"digits": _DIGITS, "mnist": _DIGITS, "fashion-mnist": _FASHION}


@dataclass(frozen=True)
class Split:
    """Samples and their targets: inputs [N, C, H, W], float32, and classes [N], int64."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self, batch_size: int, *, seed: int | None = None, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (inputs, targets).

        Args:
            batch_size: samples per batch and process.
            seed: None: every sample once, in order, the last batch shorter; the processes take disjoint parts. Else a
                random order, a pure function of the seed, without the last global batch where it is incomplete.
            start: skip that many batches.
            rank, world: which of how many processes asks. Of a random order, batch b of all processes together is what
                one process with batches of world·batch_size gets as its batch b.
        """
        if seed is None:
            mine = torch.arange(rank, len(self), world) if world > 1 else torch.arange(len(self))
            for chosen in mine.split(batch_size)[start:]:
                yield self.inputs[chosen], self.targets[chosen]
            return
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for b in range(start, len(self) // (batch_size * world)):
            chosen = order[(b * world + rank) * batch_size :][:batch_size]
            yield self.inputs[chosen], self.targets[chosen]

    def to(self, device: torch.device | str) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set with its fixed split, standardised by the training samples.

    Attributes:
        train, validation, test: the validation split is a fixed part of the official training samples, or None.
        shape: of one sample, [C, H, W].
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

    def to(self, device: torch.device | str) -> Dataset:
        validation = self.validation and self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))


def load(name: str, data_dir: str | os.PathLike[str] | None = None, *, validation: bool = True) -> Dataset:
    """A data set by name.

    Args:
        name: "digits" (1,797 images of 8×8, shipped with scikit-learn; a fixed stratified quarter is the test set),
            "mnist" or "fashion-mnist" (60,000 + 10,000 images of 28×28, from files).
        data_dir: the folder that holds ``MNIST/raw`` or ``FashionMNIST/raw``, as torchvision lays them out. Default:
            the environment variable ``TANDEM_DATA``.
        validation: take a twelfth of the official training samples, the same ones every time, as validation split.
            False: train on all of them.

    Raises:
        UserError: unknown name, files that are missing or damaged, a missing optional dependency.

    >>> data = load("digits")
    >>> data.shape, len(data.train), len(data.validation), len(data.test)
    ((1, 8, 8), 1234, 113, 450)
    """
    check_name("data set", name, NAMES)
    official, test = _digits() if name == "digits" else _idx(name, data_dir)
    train, held_out = _split(official) if validation else (official, None)
    mean, std = train.inputs.mean(), train.inputs.std()

    def standardised(split: Split) -> Split:
        return Split((split.inputs - mean) / std, split.targets)

    return Dataset(
        name=name,
        train=standardised(train),
        validation=held_out and standardised(held_out),
        test=standardised(test),
        shape=tuple(train.inputs.shape[1:]),
        classes=len(_CLASSES[name]),
        class_names=_CLASSES[name],
    )


def _split(official: Split) -> tuple[Split, Split]:
    order = torch.randperm(len(official), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[: -(-len(official) // 12)].sort().values, order[-(-len(official) // 12) :].sort().values
    return tuple(Split(official.inputs[chosen], official.targets[chosen]) for chosen in (kept, held_out))  # type: ignore[return-value]


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
