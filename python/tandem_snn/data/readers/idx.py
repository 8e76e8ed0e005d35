"""MNIST and Fashion-MNIST: IDX files in the folders that torchvision makes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...errors import UserError, extra
from ..files import damaged, missing
from .digits import CLASSES
from .parts import Images, Part

_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SETS = {"mnist": ("MNIST", CLASSES), "fashion-mnist": ("FashionMNIST", _CLOTHES)}


def read(name: str, root: Path) -> Images:
    """60,000 training and 10,000 test images of 28×28."""
    folder, classes = SETS[name]
    raw = root / folder / "raw"
    return Images(_part(name, raw, "train"), _part(name, raw, "t10k"), classes)


def _part(name: str, raw: Path, part: str) -> Part:
    images = _tensor(name, raw / f"{part}-images-idx3-ubyte", (28, 28))
    labels = raw / f"{part}-labels-idx1-ubyte"
    targets = _tensor(name, labels, ())
    if len(images) != len(targets):
        raise UserError(f"data set {name!r}: {len(images)} {part} images but {len(targets)} labels in {raw}")
    if targets.max() >= len(SETS[name][1]):
        raise damaged(name, labels, f"it holds the label {targets.max()}", _how(name))
    return Part(images.unsqueeze(1), targets.long())


def _how(name: str) -> str:
    return f"torchvision.datasets.{SETS[name][0]}(DIR, download=True) fetches it"


def _tensor(name: str, path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 [N, *shape]."""
    read_file = extra("torchvision.datasets.mnist", f"the data set {name}").read_sn3_pascalvincent_tensor
    how = _how(name)
    if not path.is_file():
        packed = path.with_name(f"{path.name}.gz")
        raise missing(name, path, f"gunzip {packed} makes it" if packed.is_file() else how)
    try:
        tensor: Tensor = read_file(str(path))
    except (AssertionError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise damaged(name, path, "not a whole IDX file", how) from error
    if not tensor.dim() or tensor.shape[1:] != shape or tensor.dtype != torch.uint8 or not len(tensor):
        raise damaged(name, path, f"it holds {list(tensor.shape)} {tensor.dtype}", how)
    return tensor
