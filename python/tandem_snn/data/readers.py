"""Images from files: digits, MNIST and Fashion-MNIST, CIFAR-10, ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, extra
from .files import IMAGES, Listing, cached, class_folders, damaged, missing
from .source import DatasetSplit, ImageFiles


@dataclass(frozen=True)
class Part:
    """Samples, uint8 [N, ...], and their classes, int64 [N]."""

    samples: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Samples:
    """Images [N, C, H, W], whose brightest value is ``white``, or spike planes [N, ceil(T/8), H, W, 2]."""

    train: Part
    test: Part
    class_names: tuple[str, ...]
    white: int = 255

    @classmethod
    def of(cls, samples: Tensor, train: Listing, test: Listing, class_names: tuple[str, ...]) -> Samples:
        """From the samples of all files, those of the training part first."""
        first, rest = samples.split([len(train[0]), len(test[0])])
        return cls(Part(first, torch.tensor(train[1])), Part(rest, torch.tensor(test[1])), class_names)


DIGITS = tuple("0123456789")


def read_digits() -> Samples:
    """scikit-learn's handwritten digits, with 17 levels of grey; a fixed stratified quarter is the test set."""
    purpose = "the data set digits"
    digits = extra("sklearn.datasets", purpose).load_digits()
    chosen = extra("sklearn.model_selection", purpose).train_test_split(
        range(len(digits.target)), test_size=0.25, random_state=0, stratify=digits.target
    )
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(digits.target).long()
    train, test = (Part(images[part], targets[part]) for part in chosen)
    return Samples(train, test, DIGITS, white=16)


_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IDX = {"mnist": ("MNIST", DIGITS), "fashion-mnist": ("FashionMNIST", _CLOTHES)}


def read_idx(name: str, root: Path) -> Samples:
    """60,000 training and 10,000 test images of 28×28, as IDX files in the folders that torchvision makes."""
    folder, classes = IDX[name]
    raw = root / folder / "raw"
    return Samples(_part(name, raw, "train"), _part(name, raw, "t10k"), classes)


def _part(name: str, raw: Path, part: str) -> Part:
    images = _tensor(name, raw / f"{part}-images-idx3-ubyte", (28, 28))
    labels = raw / f"{part}-labels-idx1-ubyte"
    targets = _tensor(name, labels, ())
    if len(images) != len(targets):
        raise UserError(f"data set {name!r}: {len(images)} {part} images but {len(targets)} labels in {raw}")
    if targets.max() >= len(IDX[name][1]):
        raise damaged(name, labels, f"it contains the label {targets.max()}", _how(name))
    return Part(images.unsqueeze(1), targets.long())


def _how(name: str) -> str:
    return f"torchvision.datasets.{IDX[name][0]}(DIR, download=True) fetches it"


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
        raise damaged(name, path, f"it contains {list(tensor.shape)} {tensor.dtype}", how)
    return tensor


def read_cifar10(root: Path) -> Samples:
    """``cifar-10-batches-py`` as torchvision lays it out; its checksums are verified before anything is unpickled."""
    name = "cifar10"
    vision = extra("torchvision.datasets", f"the data set {name}")
    check_integrity = extra("torchvision.datasets.utils", f"the data set {name}").check_integrity
    cls = vision.CIFAR10
    how = "torchvision.datasets.CIFAR10(DIR, download=True) fetches it"
    folder = root / cls.base_folder
    for file, md5 in [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]:
        if not (folder / file).is_file():
            raise missing(name, folder / file, how)
        if not check_integrity(str(folder / file), md5):
            raise damaged(name, folder / file, "its MD5 differs from the official one", how)
    parts = []
    for train in True, False:
        data = cls(str(root), train=train)
        images = torch.from_numpy(data.data).movedim(-1, 1).contiguous()
        parts.append(Part(images, torch.tensor(data.targets)))
        classes = tuple(data.classes)
    return Samples(parts[0], parts[1], classes)


def read_cifar10_jpeg(root: Path) -> Samples:
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

    return Samples.of(cached(name, {}, files, decode)["pixels"], train, test, classes)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the training images, as published with torchvision
_HOW = "lay the images out as DIR/imagenet/{train,val}/CLASS/NAME.JPEG (image-net.org, after registration)"


def read_imagenet(
    root: Path, size: tuple[int, int], workers: int
) -> tuple[DatasetSplit, DatasetSplit, tuple[str, ...]]:
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
