"""Data sets by name, from files that are there already: nothing is downloaded.

| name | samples | where, within the data folder |
| --- | --- | --- |
| digits | 1,797 images of 8×8; a fixed stratified quarter is the test set | in scikit-learn |
| mnist, fashion-mnist, cifar10 | images of 28×28, of 32×32 in colour | as torchvision's classes lay them out |
| cifar10-jpeg | the same as cifar10, as image files | ``cifar10-jpeg/{train,test}/CLASS`` |
| imagenet | image files; the middle square of each, in ``size`` pixels | ``imagenet/{train,val}/CLASS`` |
| n-mnist | recordings of 34×34 | ``NMNIST/{Train,Test}/DIGIT``, as tonic lays them out |
| dvs-cifar10 | recordings of 128×128; every tenth of a class is a test sample | ``CIFAR10DVS/CLASS``, likewise |
| dvs-gesture | recordings of 128×128 | ``DVSGesture/ibmGesture{Train,Test}/USER``, likewise |

Images stay bytes in memory and become numbers batch by batch, standardised by the training images. Recordings become
spike trains of T steps, with their two polarities as channels. tonic's own classes download what they miss, so that
only its readers of files are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tandem_ext as te
import tandem_snn as ts
from recipe import Recipe
from tandem_ext import SpikeTrain

VISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
EVENTS = {"n-mnist": (34, 34, 2), "dvs-cifar10": (128, 128, 2), "dvs-gesture": (128, 128, 2)}
FILES = {"cifar10-jpeg": ("train", "test"), "imagenet": ("train", "val")}
NAMES = ("digits", *VISION, *FILES, *EVENTS)
_HELD_OUT = 12  # one in twelve is a validation sample: 5,000 of 60,000
_FIELDS = np.dtype([(name, np.int64) for name in "xytp"])


@dataclass(frozen=True)
class Split:
    """Samples in memory.

    Attributes:
        inputs: images, uint8 [N, C, H, W], or a train of N samples.
        targets: classes, int64 [N]; None: the images of a batch themselves, flattened, for regression.
        scaling: of images, [2, C, 1, 1]: a batch is scaling[0]·inputs + scaling[1].
        augment: augmentations of training batches, see :class:`recipe.Recipe`.
    """

    inputs: Tensor | SpikeTrain
    targets: Tensor | None
    scaling: Tensor | None = None
    augment: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, chosen: Tensor) -> Split:
        """The samples with these indices, without augmentation."""
        targets = None if self.targets is None else self.targets[chosen]
        return replace(self, inputs=self.inputs[chosen], targets=targets, augment=())

    def to(self, device: torch.device | str) -> Split:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")})

    def take(self, chosen: Tensor, draws: Tensor | None = None) -> tuple[Tensor | SpikeTrain, Tensor]:
        """Inputs and targets of these samples, augmented as ``draws`` [len(chosen), 3] in [0, 1) say."""
        chosen = chosen.to(self.inputs.device)
        x = self.inputs[chosen]
        if draws is not None and self.augment:
            x = augmented(x, self.augment, draws)
        # Channels innermost, as convolutions are fastest. With one channel contiguous() would not change the strides.
        if isinstance(x, SpikeTrain):
            x = SpikeTrain(x.planes.movedim(2, -1).contiguous().movedim(-1, 2), x.T)
        elif self.scaling is not None:
            x = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
            x = x.float().mul_(self.scaling[0]).add_(self.scaling[1])
        if self.targets is None:
            assert isinstance(x, Tensor)
            return x, x.flatten(1)
        return x, self.targets[chosen]

    def batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Any, Tensor]]:
        """Every sample once, in order; the processes of a world get disjoint parts."""
        for chosen in torch.arange(rank, len(self), world).split(batch_size):
            yield self.take(chosen)

    def epoch(self, seed: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Any, Tensor]]:
        """Training batches in random order, a function of the seed; the incomplete last one is dropped. Each process
        gets its share of every batch, and all of them together make the batches of one process.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        for start in range(0, len(self) - batch_size + 1, batch_size):
            draws = torch.rand(batch_size, 3, generator=generator)
            yield self.take(order[start : start + batch_size][share], draws[share])


def augmented(x: Any, names: tuple[str, ...], draws: Tensor) -> Any:
    """Images or trains [B, C, H, W], each flipped and shifted as its own row of ``draws`` says."""
    if isinstance(x, SpikeTrain):
        T, planes = x.T, x.planes.transpose(0, 1)  # [B, P, C, H, W]
        moved = augmented(planes.flatten(1, 2), names, draws).unflatten(1, planes.shape[1:3])
        return SpikeTrain(moved.transpose(0, 1), T)
    for name in names:
        kind, _, most = name.partition(":")
        if name == "flip":
            mirrored = (draws[:, 0] < 0.5).to(x.device).view(-1, 1, 1, 1)
            x = torch.where(mirrored, x.flip(-1), x)
        elif name == "shift" or (kind == "shift" and most.isdecimal()):
            pixels = int(most or 4)
            x = shifted(x, (draws[:, 1:] * (2 * pixels + 1)).long().to(x.device), pixels)
        else:
            raise ValueError(f"augment: expected flip, shift or shift:PIXELS, got {name!r}")
    return x


def shifted(x: Tensor, start: Tensor, most: int) -> Tensor:
    """Images [B, C, H, W] moved by most - start pixels [B, 2], filled with zeros."""
    padded = torch.nn.functional.pad(x, (most, most, most, most)).permute(0, 2, 3, 1)
    samples = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    rows = start[:, :1, None] + torch.arange(x.shape[2], device=x.device).view(1, -1, 1)
    columns = start[:, 1:, None] + torch.arange(x.shape[3], device=x.device).view(1, 1, -1)
    return padded[samples, rows, columns].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Data:
    """A data set: its splits, the shape of a sample, and the number of a network's outputs."""

    train: Split
    validation: Split | None
    test: Split
    shape: tuple[int, ...]
    outputs: int
    pixels: tuple[list[float], list[float]] | None = None  # mean and deviation of x/255, which the encoder is given

    def to(self, device: torch.device | str) -> Data:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")})


def load(recipe: Recipe, folder: Path | None) -> Data:
    """The data of a recipe, from files in the folder.

    Raises:
        ValueError: an unknown name, options that do not fit the data, or files that are missing or damaged.

    >>> data = load(Recipe(data="digits"), None)
    >>> data.shape, len(data.train), len(data.validation), len(data.test)
    ((1, 8, 8), 1234, 113, 450)
    """
    name = recipe.data
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(NAMES)}")
    if name != "digits" and folder is None:
        raise ValueError(f"data set {name!r} needs files: give their folder with --data-dir or TANDEM_DATA")
    if name in EVENTS and recipe.task == "regression":
        raise ValueError(f"task: regression needs images, and {name!r} has recordings")
    if name not in (*EVENTS, *FILES) and recipe.size is not None:
        raise ValueError(f"size: only recordings and image files are resized, and {name!r} has neither")
    if recipe.encoding == "pixels" and (name in EVENTS or recipe.task == "regression" or recipe.timing != "window"):
        raise ValueError("encoding: pixels are for classes of images, with timing window: expected encoding direct")
    white = 16 if name == "digits" else 255
    try:
        if name == "digits":
            train, test = _digits()
        elif folder is not None and name in EVENTS:
            train, test = (part.split(recipe) for part in _recordings(name, folder))
        elif folder is not None:
            train, test = _vision(name, folder) if name in VISION else _image_files(name, folder, recipe.size)
    except (OSError, RuntimeError, EOFError, TypeError, IndexError, ValueError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data set {name!r} cannot be read from {folder}: {text}") from error
    held_out = None
    if recipe.validation:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        part = -(-len(train) // _HELD_OUT)
        train, held_out = train[order[part:].sort().values], train[order[:part].sort().values]
    shape = tuple(train.inputs.shape[1:])
    assert train.targets is not None
    outputs = int(train.targets.max()) + 1
    parts = [train, test] if held_out is None else [train, test, held_out]
    if isinstance(train.inputs, Tensor):
        if recipe.task == "regression":
            outputs, scaling = train.inputs[0].numel(), torch.tensor([1 / white, 0.0]).view(2, 1, 1, 1)
            parts = [replace(part, targets=None) for part in parts]
        else:
            mean, std = _moments(train.inputs)
            scaling = torch.stack([1 / std, -mean / std])
        if recipe.encoding == "direct":
            parts = [replace(part, scaling=scaling) for part in parts]
    train, test, *others = parts
    held, pixels = others[0] if others else None, None
    if recipe.encoding == "pixels":
        pixels = (-scaling[1] / scaling[0] / 255).flatten().tolist(), (1 / scaling[0] / 255).flatten().tolist()
    return Data(replace(train, augment=recipe.augment), held, test, shape, outputs, pixels)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, [C, 1, 1], from the number of pixels of each level."""
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([channel.flatten().bincount(minlength=256).double() for channel in images.unbind(1)])
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares @ levels.square() - mean.square()).sqrt()
    return mean.float().view(-1, 1, 1), torch.where(std > 0, std, 1.0).float().view(-1, 1, 1)


def _digits() -> tuple[Split, Split]:
    """scikit-learn's handwritten digits, with 17 levels of grey."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(range(len(digits.target)), test_size=0.25, random_state=0, stratify=digits.target)
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    train, test = (Split(images[part], torch.from_numpy(digits.target)[part].long()) for part in parts)
    return train, test


def _vision(name: str, folder: Path) -> tuple[Split, Split]:
    """A data set of torchvision, which verifies the files of CIFAR-10 before anything is unpickled."""
    from torchvision import datasets

    splits = []
    for train in True, False:
        part = getattr(datasets, VISION[name])(str(folder), train=train)
        pixels, targets = torch.as_tensor(part.data), torch.as_tensor(part.targets).long()
        if len(pixels) != len(targets):
            raise ValueError(f"{len(pixels)} images and {len(targets)} labels")
        splits.append(Split(pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.movedim(-1, 1), targets))
    return splits[0], splits[1]


def _image_files(name: str, folder: Path, size: int | None) -> tuple[Split, Split]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    square = [] if size is None else [v2.Resize(size), v2.CenterCrop(size)]
    splits = []
    for part in FILES[name]:
        files = ImageFolder(str(folder / name / part), v2.Compose([*square, v2.PILToTensor()]))
        pixels = torch.empty(len(files), *files[0][0].shape, dtype=torch.uint8)
        for i, (image, _) in enumerate(files):
            pixels[i] = image
        splits.append(Split(pixels, torch.tensor(files.targets)))
    return splits[0], splits[1]


@dataclass(frozen=True)
class Recordings:
    """Files with their classes, and what reads the events of one."""

    files: list[tuple[Path, int]]
    read: Callable[[Path], Any]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, target = self.files[index]
        return self.read(path), target

    def split(self, recipe: Recipe) -> Split:
        """Trains of T steps, each step an equal part of the time from a recording's first event to its last."""
        if not self.files:
            raise ValueError("there are no recordings")
        trains = ts.tonic.from_tonic(self, recipe.T, sensor_size=EVENTS[recipe.data], size=recipe.size)
        samples, targets = zip(*(trains[i] for i in range(len(trains))), strict=True)
        return Split(te.cat(samples), torch.tensor(targets))


def _recordings(name: str, folder: Path) -> list[Recordings]:
    from tonic import io

    if name == "n-mnist":
        parts = [_classes(folder / "NMNIST" / part, "bin") for part in ("Train", "Test")]
        return [Recordings(part, lambda path: io.read_mnist_file(str(path), _FIELDS)) for part in parts]
    if name == "dvs-cifar10":
        files = _classes(folder / "CIFAR10DVS", "aedat4")
        first = {target: i for i, (_, target) in reversed(list(enumerate(files)))}
        held_out = [(i - first[target]) % 10 == 9 for i, (_, target) in enumerate(files)]
        parts = [[file for file, out in zip(files, held_out, strict=True) if out == test] for test in (False, True)]
        return [Recordings(part, lambda path: io.read_aedat4(str(path))) for part in parts]
    found = [sorted((folder / "DVSGesture" / part).glob("*/*.npy")) for part in ("ibmGestureTrain", "ibmGestureTest")]
    read = lambda path: dict(zip("xypt", np.load(path).T, strict=True))  # noqa: E731
    return [Recordings([(path, int(path.stem)) for path in files], read) for files in found]


def _classes(folder: Path, suffix: str) -> list[tuple[Path, int]]:
    """The files in a folder of one folder for each class."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return [(path, i) for i, name in enumerate(names) for path in sorted((folder / name).glob(f"*.{suffix}"))]
