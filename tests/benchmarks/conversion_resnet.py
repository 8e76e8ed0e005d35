"""What does torchvision's ResNet-18 lose as a spiking network, and what does one epoch of tandem learning give back?

    python tests/benchmarks/conversion_resnet.py --data-dir DIR [--epochs 5] [--images 45000]

trains it on CIFAR-10 (JPEG), whose images of 32 × 32 leave its last stage one pixel; converts it at T = 4, 8, 16,
calibrates it on 1,000 training images, and trains it for one further epoch as a spiking network, beside the ANN itself.
It writes docs/results/conversion_resnet.json; `--table` writes the table in docs/convert.md from that.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from dataclasses import replace
from typing import Any

import torch
import torchvision
from conversion import BATCH, LR, TANDEM_LR, accuracy, train
from documents import origin, read, results, write_table

from tandem_snn import calibrate, convert, to_ann
from tandem_snn.data import load

WINDOWS = (4, 8, 16)
ROWS = {
    "converted and calibrated": "converted",
    "the same, after one tandem epoch": "tandem_epoch",
    "the ANN itself, after that tandem epoch": "ann_after_tandem_epoch",
}


def table(result: dict[str, Any]) -> str:
    lines = ["| | " + " | ".join(f"T = {T}" for T in WINDOWS) + " |", "| --- " * (1 + len(WINDOWS)) + "|"]
    for label, name in ROWS.items():
        lines.append(f"| {label} | " + " | ".join(f"{result['T'][str(T)][name]:.2f}" for T in WINDOWS) + " |")
    for label, name in ("ANN", "ann"), ("ANN, one further epoch", "ann_further_epoch"):
        lines.append(f"| {label} | {result[name]:.2f} " + "| " * (len(WINDOWS) - 1) + "|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=None, help="about so many of the training images")
    parser.add_argument("--table", action="store_true", help="only write the table in docs/convert.md")
    arguments = parser.parse_args()
    if arguments.table:
        write_table("convert.md", "conversion_resnet", table(read("conversion_resnet")))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load("cifar10-jpeg", arguments.data_dir, validation=False)
    if arguments.images is not None:
        data = replace(data, train=data.train.subset(range(0, len(data.train), len(data.train) // arguments.images)))
    ann = torchvision.models.resnet18(num_classes=10)
    train(ann, data, 0, arguments.epochs, LR)
    further = copy.deepcopy(ann)
    train(further, data, 100, 1, TANDEM_LR)
    settings = {"epochs": arguments.epochs, "images": len(data.train), "batch": BATCH, "lr": LR, "tandem_lr": TANDEM_LR}
    result: dict[str, Any] = {**origin(__file__), "settings": settings, "T": {}}
    result |= {"ann": accuracy(ann, data), "ann_further_epoch": accuracy(further, data)}
    images, _ = next(data.train.batches(1000, seed=0))
    for T in WINDOWS:
        snn = calibrate(convert(copy.deepcopy(ann), T, example=images[:1]), images.split(100))
        cells = {"converted": accuracy(snn, data)}
        train(snn, data, 100, 1, TANDEM_LR)
        cells |= {"tandem_epoch": accuracy(snn, data), "ann_after_tandem_epoch": accuracy(to_ann(snn), data)}
        result["T"][str(T)] = cells
        print(T, cells, flush=True)
        results("conversion_resnet").write_text(json.dumps(result, indent=1) + "\n")
    write_table("convert.md", "conversion_resnet", table(read("conversion_resnet")))


if __name__ == "__main__":
    main()
