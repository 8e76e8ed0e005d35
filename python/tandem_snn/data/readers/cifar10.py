"""CIFAR-10: the official batches of the Python version, or a folder of images."""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import UserError, extra
from ..cache import cached
from ..files import IMAGES, class_folders, damaged, missing
from .parts import Images, Part


def read_official(root: Path) -> Images:
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
    return Images(parts[0], parts[1], classes)


def read_folder(root: Path) -> Images:
    """``cifar10-jpeg/{train,test}/CLASS``, JPEG or PNG files, decoded once and kept in the cache."""
    name, how = "cifar10-jpeg", "put the images at DIR/cifar10-jpeg/{train,test}/CLASS/NAME.jpg"
    folder = root / name
    classes, train, train_targets = class_folders(name, folder / "train", IMAGES, how)
    test_classes, test, test_targets = class_folders(name, folder / "test", IMAGES, how)
    if classes != test_classes:
        raise UserError(f"data set {name!r}: the classes in {folder}/train and {folder}/test differ")
    files = [*train, *test]

    def decode() -> dict[str, torch.Tensor]:
        image = extra("torchvision.io", f"the data set {name}")
        look = extra("PIL.Image", f"the data set {name}").open
        pixels = torch.empty(len(files), 3, 32, 32, dtype=torch.uint8)
        for i, path in enumerate(files):
            try:
                with look(path) as header:
                    size = header.size
                if size == (32, 32):  # before the pixels of what may be much larger are decoded
                    pixels[i] = image.decode_image(image.read_file(str(path)), image.ImageReadMode.RGB)
            except Exception as error:  # Pillow's and torchvision's ways to fail
                raise damaged(name, path, "not a whole image", how) from error
            if size != (32, 32):
                raise damaged(name, path, f"its size is {size[0]}×{size[1]}, not 32×32", how)
        return {"pixels": pixels}

    pixels = cached(name, {}, files, decode)["pixels"]
    n = len(train)
    return Images(Part(pixels[:n], torch.tensor(train_targets)), Part(pixels[n:], torch.tensor(test_targets)), classes)
