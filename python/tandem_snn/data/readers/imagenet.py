"""ImageNet, or any folder of images laid out like it, as a stream."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError, extra
from ..files import IMAGES, class_folders
from ..stream import StreamSplit

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the training images, as published with torchvision
_HOW = "lay the images out as DIR/imagenet/{train,val}/CLASS/NAME.JPEG (image-net.org, after registration)"


def read(root: Path, size: tuple[int, int], workers: int) -> tuple[StreamSplit, StreamSplit, tuple[str, ...]]:
    """Training images (random crop and flip, or for evaluation the centre), validation images, and class names."""
    name = "imagenet"
    transforms = extra("torchvision.transforms", "the data set imagenet")
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    resized = tuple(round(n * 256 / 224) for n in size)
    training = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *to_tensor])
    evaluation = transforms.Compose([transforms.Resize(min(resized)), transforms.CenterCrop(size), *to_tensor])
    found = [class_folders(name, root / "imagenet" / part, IMAGES, _HOW) for part in ("train", "val")]
    if found[0][0] != found[1][0]:
        raise UserError(f"data set {name!r}: the classes in {root}/imagenet/train and {root}/imagenet/val differ")
    train, test = (
        StreamSplit(name, tuple(files), tuple(targets), training, evaluation, workers) for _, files, targets in found
    )
    return train, test, found[0][0]
