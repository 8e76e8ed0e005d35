"""Images from files: digits, MNIST and Fashion-MNIST, CIFAR-10, ImageNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError, extra
from .files import IMAGES, cached, class_folders, damaged, explained
from .source import DatasetSplit
from .split import Split
from .tensors import TensorSplit

Read = tuple[Split, Split, tuple[str, ...]]  # training and test samples, class names


def _images(pixels: Tensor, targets: Tensor, white: int = 255) -> TensorSplit:
    """Images [N, C, H, W] whose brightest value is ``white``, scaled to 0..1."""
    scale = torch.full(pixels.shape[1:2], 1 / white)
    return TensorSplit(pixels, targets, scaling=torch.stack([scale, torch.zeros_like(scale)]))


DIGITS = tuple("0123456789")


def read_digits() -> Read:
    """scikit-learn's handwritten digits, with 17 levels of grey; a fixed stratified quarter is the test set."""
    purpose = "the data set digits"
    digits = extra("sklearn.datasets", purpose).load_digits()
    chosen = extra("sklearn.model_selection", purpose).train_test_split(
        range(len(digits.target)), test_size=0.25, random_state=0, stratify=digits.target
    )
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(digits.target).long()
    train, test = (_images(images[part], targets[part], white=16) for part in chosen)
    return train, test, DIGITS


VISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}


def read_vision(name: str, root: Path) -> Read:
    """A data set of ``VISION``, which are torchvision's classes, from the folders that they make. CIFAR-10's checksums
    are verified before anything is unpickled.
    """
    cls = VISION[name]
    make = getattr(extra("torchvision.datasets", f"the data set {name}"), cls)
    how = explained(f"torchvision.datasets.{cls}(DIR, download=True) fetches it")
    try:
        parts = [make(str(root), train=train) for train in (True, False)]
    except Exception as error:  # a missing file is a RuntimeError, a damaged one any of several
        raise UserError(
            f"data set {name!r}: no whole {cls} in {root} ({str(error) or type(error).__name__}): {how}"
        ) from error
    images = [torch.as_tensor(part.data) for part in parts]
    targets = [torch.as_tensor(part.targets) for part in parts]
    for x, y in zip(images, targets, strict=True):
        if len(x) != len(y) or x.shape[1:] != images[0].shape[1:] or int(y.max()) >= len(parts[0].classes):
            raise UserError(f"data set {name!r}: the files of {cls} in {root} do not fit each other: {how}")
    planes = [x.unsqueeze(1) if x.dim() == 3 else x.movedim(-1, 1).contiguous() for x in images]
    train, test = (_images(x, y.long()) for x, y in zip(planes, targets, strict=True))
    return train, test, tuple(label.partition(" - ")[0] for label in parts[0].classes)


def read_cifar10_jpeg(root: Path) -> Read:
    """``cifar10-jpeg/{train,test}/CLASS``, JPEG or PNG files, decoded once and kept in the cache."""
    name, how = "cifar10-jpeg", "put the images at DIR/cifar10-jpeg/{train,test}/CLASS/NAME.jpg"
    folder = root / name
    classes, train = class_folders(name, folder / "train", IMAGES, how)
    _, test = class_folders(name, folder / "test", IMAGES, how, classes)
    files = [*train[0], *test[0]]

    def decode() -> dict[str, torch.Tensor]:
        image = extra("torchvision.io", f"the data set {name}")
        look = extra("PIL.Image", f"the data set {name}").open
        pixels = torch.empty(len(files), 3, 32, 32, dtype=torch.uint8)
        for i, path in enumerate(files):
            try:
                with look(path) as header:
                    size = header.size
                if size == (32, 32):  # else nothing is decoded: it may be huge
                    pixels[i] = image.decode_image(image.read_file(str(path)), image.ImageReadMode.RGB)
            except Exception as error:  # Pillow's and torchvision's ways to fail
                raise damaged(name, path, "not a whole image", how) from error
            if size != (32, 32):
                raise damaged(name, path, f"its size is {size[0]}×{size[1]}, not 32×32", how)
        return {"pixels": pixels}

    pixels, n = cached(name, {}, files, decode)["pixels"], len(train[0])
    return _images(pixels[:n], torch.tensor(train[1])), _images(pixels[n:], torch.tensor(test[1])), classes


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the training images, as published with torchvision
_HOW = "lay the images out as DIR/imagenet/{train,val}/CLASS/NAME.JPEG (image-net.org, after registration)"


@dataclass(frozen=True)
class ImageFiles(Dataset[tuple[Any, int]]):
    """Image files as (``transform`` of the RGB image, class)."""

    name: str
    files: Sequence[Path]
    targets: Sequence[int]
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, pil = self.files[index], extra("PIL.Image", "image files")
        try:
            with pil.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # Pillow raises many classes, one of them for huge images
            raise damaged(self.name, path, error, "put the whole file there again") from error
        return self.transform(image), self.targets[index]


def read_imagenet(root: Path, size: tuple[int, int], workers: int) -> Read:
    """Training images (random crops and flips; the centre in evaluation), validation images, and class names."""
    name = "imagenet"
    transforms = extra("torchvision.transforms", "the data set imagenet")
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    resized = tuple(round(n * 256 / 224) for n in size)
    training = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *to_tensor])
    evaluation = transforms.Compose([transforms.Resize(min(resized)), transforms.CenterCrop(size), *to_tensor])
    classes, train = class_folders(name, root / "imagenet" / "train", IMAGES, _HOW)
    _, test = class_folders(name, root / "imagenet" / "val", IMAGES, _HOW, classes)
    first, second = (
        DatasetSplit(ImageFiles(name, *part, training), ImageFiles(name, *part, evaluation), workers=workers)
        for part in (train, test)
    )
    return first, second, classes
