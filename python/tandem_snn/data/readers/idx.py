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
    images = _tensor(name, raw / f"{part}-images-idx3-ubyte", 3)
    targets = _tensor(name, raw / f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(targets):
        raise UserError(f"data set {name!r}: {len(images)} {part} images but {len(targets)} labels in {raw}")
    return Part(images.unsqueeze(1), targets.long())


def _tensor(name: str, path: Path, dims: int) -> Tensor:
    read_file = extra("torchvision.datasets.mnist", f"the data set {name}").read_sn3_pascalvincent_tensor
    how = f"torchvision.datasets.{SETS[name][0]}(DIR, download=True) fetches it"
    if not path.is_file():
        raise missing(name, path, how)
    try:
        tensor: Tensor = read_file(str(path))
    except (AssertionError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise damaged(name, path, "not a whole IDX file", how) from error
    if tensor.dim() != dims or tensor.dtype != torch.uint8 or not len(tensor):
        raise damaged(name, path, f"it holds {list(tensor.shape)} {tensor.dtype}", how)
    return tensor
