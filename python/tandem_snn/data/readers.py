"""The samples in files: images (digits, MNIST, Fashion-MNIST, CIFAR-10, ImageNet) and event recordings (N-MNIST,
CIFAR10-DVS, DVS128 Gesture).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tandem_ext import SpikeTrain

from ..container import atomically, pack, unpack
from ..errors import UserError, extra, listing
from .binning import bin_events
from .dataset import DatasetSplit
from .split import Split, TensorSplit

Folder = str | os.PathLike[str]
IMAGES = (".jpeg", ".jpg", ".png")
Listing = tuple[list[Path], list[int]]  # files, and the class of each


def data_root(name: str, data_dir: Folder | None) -> Path:
    root = data_dir or os.environ.get("TANDEM_DATA")
    if not root:
        raise UserError(f"data set {name!r} needs files: give their folder with --data-dir or TANDEM_DATA")
    return Path(root)


def missing(name: str, path: Path, how: str) -> UserError:
    kind = "file" if path.suffix else "folder"
    return UserError(f"data set {name!r}: no {kind} {path}: {explained(how)}")


def damaged(name: str, path: Path, why: object, how: str) -> UserError:
    return UserError(f"data set {name!r}: damaged file {path} ({why}): delete it, then {explained(how)}")


def explained(how: str) -> str:
    """``how``, with the meaning of DIR."""
    return f"{how}, where DIR is your --data-dir or TANDEM_DATA" if "DIR" in how else how


def class_folders(
    name: str, folder: Path, suffixes: Sequence[str], how: str, expected: Sequence[str] | None = None
) -> tuple[tuple[str, ...], Listing]:
    """(classes, (files, class of each file)) of a folder with one folder per class, in alphabetical order."""
    if not folder.is_dir():
        raise missing(name, folder, how)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [sorted(path for path in (folder / c).iterdir() if path.suffix.lower() in suffixes) for c in classes]
    wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
    if not any(files):
        raise UserError(f"data set {name!r}: no file {folder}/CLASS/{wanted}: {explained(how)}")
    empty = [c for c, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise UserError(f"data set {name!r}: no {wanted} in {folder / empty[0]}: {explained(how)}")
    if expected is not None and (differing := sorted({*classes}.symmetric_difference(expected))):
        unlike = f"unlike the expected classes in {listing(differing)}"
        raise UserError(f"data set {name!r}: {folder} holds {listing(classes)}, {unlike}: {explained(how)}")
    targets = [i for i, found in enumerate(files) for _ in found]
    return tuple(classes), ([path for found in files for path in found], targets)


Tensors = dict[str, Tensor]
_FORMAT = "tandem_snn data 2"


def cache_folder() -> Path:
    """``TANDEM_CACHE``, else ``tandem_snn`` in the user's cache folder."""
    named = os.environ.get("TANDEM_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tandem_snn"


def cached(name: str, parameters: dict[str, Any], files: Iterable[Path], make: Callable[[], Tensors]) -> Tensors:
    """The result of ``make``, from the cache if it is there.

    The key of an entry is its parameters and the names, sizes and modification times of its source ``files``: if one
    changes, the entry is made again. Entries are written atomically, with a checksum; a damaged one is made again. If
    the cache cannot be written, that is a warning.
    """
    facts = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()]]
    key = json.dumps([_FORMAT, parameters, facts], sort_keys=True)
    path = cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"
    with suppress(UserError):  # there is none, or it is damaged
        return unpack(path, _FORMAT, "entry", "the cache")[0]
    tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomically(path, lambda temporary: temporary.write_bytes(pack(tensors, {}, _FORMAT)))
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}): {name} is prepared again next time", stacklevel=2)
    return tensors


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
    """A data set of torchvision, from the folders that it makes; CIFAR-10 is verified before anything is unpickled."""
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


# Event recordings, in the formats and folders of tonic, whose functions read the events. Files are listed here, since
# tonic's classes download what they miss and have the order of the file system.

_GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_HELD_OUT = 10  # every tenth recording of a class, where a set has no official test part


@dataclass(frozen=True)
class Recordings:
    """A data set of recordings, with functions that find and read its files."""

    sensor: tuple[int, int]
    class_names: tuple[str, ...]
    how: str
    find: Callable[[str, Path, Recordings], tuple[Listing, Listing]]
    events: Callable[[Path], Any]


def read_recordings(name: str, root: Path, T: int, bins: str, size: tuple[int, int] | None) -> Read:
    """All recordings as trains of T frames, cached; see :func:`~tandem_snn.data.binning.bin_events`."""
    kind = RECORDINGS[name]
    size = kind.sensor if size is None else size
    train, test = kind.find(name, root, kind)
    files = [*train[0], *test[0]]

    def make() -> dict[str, torch.Tensor]:
        planes = torch.empty(len(files), (T + 7) // 8, *size, 2, dtype=torch.uint8)
        for i, path in enumerate(files):
            planes[i] = _frames(name, kind, path, T, bins, size)
        return {"planes": planes}

    planes = cached(name, {"T": T, "bins": bins, "size": list(size)}, files, make)["planes"]
    trains = SpikeTrain.unchecked(planes.transpose(0, 1).movedim(-1, 2), T)
    n = len(train[0])
    parts = TensorSplit(trains[:n], torch.tensor(train[1])), TensorSplit(trains[n:], torch.tensor(test[1]))
    return *parts, kind.class_names


def _frames(name: str, kind: Recordings, path: Path, T: int, bins: str, size: tuple[int, int]) -> torch.Tensor:
    try:
        return bin_events(kind.events(path), (2, *kind.sensor), T, bins, size).planes[:, 0].movedim(1, -1)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # readers raise many classes; a panic in aedat is not even an Exception
        raise damaged(name, path, error, kind.how) from error


def _find_n_mnist(name: str, root: Path, kind: Recordings) -> tuple[Listing, Listing]:
    folders = (root / "NMNIST" / part for part in ("Train", "Test"))
    train, test = (class_folders(name, folder, (".bin",), kind.how, kind.class_names)[1] for folder in folders)
    return train, test


def _n_mnist_events(path: Path) -> Any:
    size = path.stat().st_size
    if not size or size % 5:
        raise ValueError(f"{size} bytes are not a whole number of 5-byte events")
    fields = np.dtype([(name, np.int64) for name in "xytp"])
    return extra("tonic.io", "the data set n-mnist").read_mnist_file(str(path), fields)


def _find_cifar10_dvs(name: str, root: Path, kind: Recordings) -> tuple[Listing, Listing]:
    """There is no official test split: here it is every tenth recording of each class, alphabetically."""
    found = class_folders(name, root / "CIFAR10DVS", (".aedat4",), kind.how, kind.class_names)
    classes, (files, targets) = found
    first = [targets.index(c) for c in range(len(classes))]
    held_out = [(i - first[target]) % _HELD_OUT == _HELD_OUT - 1 for i, target in enumerate(targets)]

    def part(test: bool) -> Listing:
        chosen = [i for i, out in enumerate(held_out) if out == test]
        return [files[i] for i in chosen], [targets[i] for i in chosen]

    return part(False), part(True)


def _aedat4_events(path: Path) -> Any:
    extra("aedat", "the data set dvs-cifar10")
    return extra("tonic.io", "the data set dvs-cifar10").read_aedat4(str(path))


def _find_gestures(name: str, root: Path, kind: Recordings) -> tuple[Listing, Listing]:
    found = []
    for part in "ibmGestureTrain", "ibmGestureTest":
        folder = root / "DVSGesture" / part
        if not folder.is_dir():
            raise missing(name, folder, kind.how)
        files = sorted(folder.glob("user*_*/*.npy"))
        if not files:
            raise missing(name, folder / "userNN_LIGHT" / "CLASS.npy", kind.how)
        strange = [path for path in files if not re.fullmatch(r"\d|10", path.stem)]
        if strange:
            raise damaged(name, strange[0], "its name is not a class, 0 to 10", kind.how)
        found.append((files, [int(path.stem) for path in files]))
    return found[0], found[1]


def _gesture_events(path: Path) -> Any:
    rows = np.load(path, mmap_mode="r")  # checks the declared size against the file's
    if rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
        raise ValueError(f"expected rows of x, y, p and t, got shape {rows.shape}")
    return dict(zip("xypt", rows.T, strict=True))


def _fetch(cls: str) -> str:
    return f"tonic.datasets.{cls}('DIR') fetches it"


RECORDINGS = {
    "n-mnist": Recordings((34, 34), DIGITS, _fetch("NMNIST"), _find_n_mnist, _n_mnist_events),
    "dvs-cifar10": Recordings((128, 128), _OBJECTS, _fetch("CIFAR10DVS"), _find_cifar10_dvs, _aedat4_events),
    "dvs128-gesture": Recordings((128, 128), _GESTURES, _fetch("DVSGesture"), _find_gestures, _gesture_events),
}
