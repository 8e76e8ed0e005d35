"""What does a ResNet-18 lose as a spiking network, and what does one epoch of tandem learning give back?

    python tests/benchmarks/conversion_resnet.py --data-dir DIR [--width 16] [--epochs 5] [--images 50000] [--ann FILE]

trains torchvision's blocks, behind a first convolution for images of 32 × 32, on CIFAR-10 (JPEG); converts that at
T = 4, 8, 16 in both timings, calibrates it on 1,000 training images, and trains it for one further epoch as a spiking
network, beside the ANN itself. It writes docs/results/conversion_resnet.json; `--table` writes the table in
docs/convert.md from that.
"""

import copy
import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conversion import BATCH, LR, TANDEM_LR, accuracy, train
from documents import program
from torch import nn
from torchvision.models.resnet import BasicBlock

from tandem_snn import calibrate, convert, to_ann
from tandem_snn.data import load

WINDOWS = (4, 8, 16)
TIMINGS = ("window", "step")
ROWS = {
    "converted and calibrated": "converted",
    "the same, after one tandem epoch": "tandem_epoch",
    "the ANN itself, after that tandem epoch": "ann_after_tandem_epoch",
}


def resnet18(width: int) -> nn.Module:
    """Its four stages of two blocks, the first with ``width`` channels; the first convolution keeps the size."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for out, stride in [(width << stage, 2 if stage and first else 1) for stage in range(4) for first in (True, False)]:
        project = None
        if channels != out:
            project = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        layers.append(BasicBlock(channels, out, stride, project))
        channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def table(result: dict[str, Any]) -> str:
    lines = ["| | " + " | ".join(f"T = {T}" for T in WINDOWS) + " |", "| --- " * (1 + len(WINDOWS)) + "|"]
    for timing, (label, name) in itertools.product(TIMINGS, ROWS.items()):
        cells = [f"{result['T'][str(T)][timing][name]:.2f}" for T in WINDOWS]
        lines.append(f"| {timing} timing: {label} | {' | '.join(cells)} |")
    for label, name in ("ANN", "ann"), ("ANN, one further epoch", "ann_further_epoch"):
        lines.append(f"| {label} | {result[name]:.2f} " + "| " * (len(WINDOWS) - 1) + "|")
    return "\n".join(lines)


def measure(arguments: Any, write: Any) -> None:
    """``--width``: channels of the first stage, 64 in torchvision; ``--images``: so many of the training images, evenly
    spaced; ``--ann``: where the trained ANN is kept, or was.
    """
    torch.manual_seed(0)
    data = load("cifar10-jpeg", arguments.data_dir, validation=False)
    data = replace(data, train=data.train.subset(range(0, len(data.train), len(data.train) // arguments.images)))
    start = time.process_time()
    ann, further = resnet18(arguments.width), resnet18(arguments.width)
    if Path(arguments.ann).is_file():
        for net, state in zip((ann, further), torch.load(arguments.ann), strict=True):
            net.load_state_dict(state)
    else:
        train(ann, data, 0, arguments.epochs, LR)
        further.load_state_dict(ann.state_dict())
        train(further, data, 100, 1, TANDEM_LR)
        if arguments.ann:
            torch.save([ann.state_dict(), further.state_dict()], arguments.ann)
    settings = {"width": arguments.width, "epochs": arguments.epochs, "images": len(data.train), "batch": BATCH}
    result: dict[str, Any] = {"settings": {**settings, "lr": LR, "tandem_lr": TANDEM_LR}, "T": {}}
    result |= {"ann": accuracy(ann, data), "ann_further_epoch": accuracy(further, data)}
    print({name: value for name, value in result.items() if name.startswith("ann")}, flush=True)
    images, _ = next(data.train.batches(1000, seed=0))
    for timing, T in itertools.product(TIMINGS, WINDOWS):
        snn = calibrate(convert(copy.deepcopy(ann), T, example=images[:1], timing=timing), images.split(100))
        cells = {"converted": accuracy(snn, data)}
        train(snn, data, 100, 1, TANDEM_LR)
        cells |= {"tandem_epoch": accuracy(snn, data), "ann_after_tandem_epoch": accuracy(to_ann(snn), data)}
        result["T"].setdefault(str(T), {})[timing] = cells
        result["cpu_hours"] = round((time.process_time() - start) / 3600, 2)
        print(timing, T, cells, flush=True)
        write(result)


if __name__ == "__main__":
    options = {"epochs": 5, "width": 16, "images": 50_000, "ann": ""}
    program(__file__, __doc__, "convert.md", "conversion_resnet", measure, table, **options)
