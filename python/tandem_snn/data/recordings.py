"""Event recordings: N-MNIST, CIFAR10-DVS and DVS128 Gesture, in the formats and folders of tonic, whose functions read
the events. Files are listed here, since tonic's classes download what they miss and have the order of the file system.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tandem_ext import SpikeTrain

from ..errors import UserError, extra
from .binning import bin_events
from .files import Listing, cached, class_folders, damaged, missing
from .readers import DIGITS, Read
from .tensors import TensorSplit

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


def read(name: str, root: Path, T: int, bins: str, size: tuple[int, int] | None) -> Read:
    """All recordings as trains of T frames, cached.

    Args:
        name: one of ``SETS``.
        root: the folder that contains all data sets.
        T, bins, size: as in :func:`~tandem_snn.data.binning.bin_events`.
    """
    kind = SETS[name]
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
    """The data set has no official test split: here it is every tenth recording of each class, alphabetically."""
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


SETS = {
    "n-mnist": Recordings((34, 34), DIGITS, _fetch("NMNIST"), _find_n_mnist, _n_mnist_events),
    "dvs-cifar10": Recordings((128, 128), _OBJECTS, _fetch("CIFAR10DVS"), _find_cifar10_dvs, _aedat4_events),
    "dvs128-gesture": Recordings((128, 128), _GESTURES, _fetch("DVSGesture"), _find_gestures, _gesture_events),
}
