"""Data sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tandem_ext.checks import T as check_T

from ..errors import UserError, check_name
from . import readers
from .binning import BINS
from .dataset import TASKS, Dataset
from .readers import Folder, data_root
from .split import TensorSplit, parse, standardisation

EVENTS = tuple(readers.RECORDINGS)
"""The names of the data sets of event recordings, whose samples are spike trains."""
NAMES = ("digits", *readers.VISION, "cifar10-jpeg", "imagenet", *EVENTS)
"""The names of all data sets that :func:`load` knows."""
_VALIDATION_SEED = 0
_VALIDATION_SHARE = 12  # one in twelve: 5,000 of 60,000


def load(
    name: str,
    data_dir: Folder | None = None,
    *,
    validation: bool = True,
    augment: Sequence[str] = (),
    task: str = "classification",
    T: int = 8,
    bins: str = "time",
    size: int | None = None,
    workers: int = 0,
) -> Dataset:
    """A data set by name.

    | name | samples | where |
    | --- | --- | --- |
    | digits | 1,797 images of 8×8; a fixed stratified quarter is the test set | in scikit-learn |
    | mnist, fashion-mnist | 60,000 + 10,000 images of 28×28 | ``MNIST/raw``, ``FashionMNIST/raw`` |
    | cifar10 | 50,000 + 10,000 colour images of 32×32 | ``cifar-10-batches-py`` |
    | cifar10-jpeg | the same as image files, PNG or (lossy) JPEG | ``cifar10-jpeg/{train,test}/CLASS`` |
    | imagenet | folders of images, as a stream | ``imagenet/{train,val}/CLASS`` |
    | n-mnist | recordings of 34×34 | ``NMNIST/{Train,Test}/DIGIT`` |
    | dvs-cifar10 | recordings of 128×128; every tenth of a class is a test sample | ``CIFAR10DVS/CLASS`` |
    | dvs128-gesture | recordings of 128×128 | ``DVSGesture/ibmGesture{Train,Test}`` |

    Images are standardised by the training images, per channel. Recordings become spike trains of T frames, with their
    two polarities as channels; they and decoded JPEG files are kept in a cache (``TANDEM_CACHE``, else
    ``~/.cache/tandem_snn``).

    Args:
        name: from the table.
        data_dir: the folder with the folders of the table, in the layout of torchvision and tonic. Default: the
            environment variable ``TANDEM_DATA``.
        validation: use a fixed twelfth of the official training samples as validation split. False: train on all.
        augment: augmentations of the training split, in order, see :data:`AUGMENTATIONS`: "flip", "shift" (by up to 4
            pixels), "shift:2". A stream has random crops and flips instead.
        task: "regression": the images, flattened, are their own targets; inputs and targets are in 0..1.
        T: the number of frames of a recording, 1..65535. Ignored for images.
        bins: "time": frames of equal length; "count": frames with equal numbers of events.
        size: height and width of the samples; only for recordings (down-sampled) and streams (default 224).
        workers: processes that decode a stream's images.

    Raises:
        UserError: an unknown name, an option out of range, files that are missing or damaged, a missing optional
            dependency.

    >>> data = load("digits")
    >>> data.shape, len(data.train), len(data.validation), len(data.test)
    ((1, 8, 8), 1234, 113, 450)
    """
    check_name("data set", name, NAMES)
    check_name("task", task, TASKS)
    check_name("kind of bins", bins, BINS)
    augmentations = parse(augment)
    if task == "regression" and (name == "imagenet" or name in readers.RECORDINGS):
        raise UserError(f"data set {name!r}: regression is supported only for images in memory")
    if name in readers.RECORDINGS:
        check_T("T", T)
        train, test, class_names = readers.read_recordings(name, data_root(name, data_dir), T, bins, _size(name, size))
    elif name == "imagenet":
        if augment:
            raise UserError("augment: not supported for 'imagenet', which has its own augmentation")
        space = _size(name, size) or (224, 224)
        train, test, class_names = readers.read_imagenet(data_root(name, data_dir), space, workers)
    else:
        if size is not None:
            raise UserError(f"size: only for recordings and streams; the images of {name!r} cannot be resized")
        if name == "digits":
            train, test, class_names = readers.read_digits()
        elif name in readers.VISION:
            train, test, class_names = readers.read_vision(name, data_root(name, data_dir))
        else:
            train, test, class_names = readers.read_cifar10_jpeg(data_root(name, data_dir))
    held_out = None
    if validation:
        kept, chosen = _hold_out(len(train))
        train, held_out = train.subset(kept), train.subset(chosen).without_augmentation()
    for part, split in ("training", train), ("test", test):
        if not len(split):
            raise UserError(f"data set {name!r}: its files have too few samples, no {part} samples are left")
    parts = [train, test] if held_out is None else [train, test, held_out]
    if isinstance(train, TensorSplit):
        change: dict[str, Any] = {}
        if isinstance(train.inputs, Tensor):
            change = {"targets": None} if task == "regression" else {"scaling": standardisation(train.inputs)}
        first, *others = (replace(part, **change) for part in parts if isinstance(part, TensorSplit))
        parts = [replace(first, augmentations=augmentations), *others]
    return Dataset.of(*parts, name=name, task=task, classes=class_names)


def _hold_out(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training and of the validation samples."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(_VALIDATION_SEED))
    held_out = -(-samples // _VALIDATION_SHARE)
    return order[held_out:].sort().values, order[:held_out].sort().values


def _size(name: str, size: int | None) -> tuple[int, int] | None:
    if size is None:
        return None
    most = readers.RECORDINGS[name].sensor[0] if name in readers.RECORDINGS else size
    if size > most:
        raise UserError(f"size: data set {name!r} can be sampled down to 1..{most} pixels")
    if size < 1:
        raise UserError(f"size: expected a positive number of pixels, got {size}")
    return size, size
