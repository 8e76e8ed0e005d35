"""What does a trained ANN lose as a spiking network, and what does one epoch of tandem learning give back?

    python tests/benchmarks/conversion.py --data-dir DIR [--seeds 3]

trains a small convolutional ANN on all 60,000 training images of Fashion-MNIST, converts it for T in {4, 8, 16, 32},
calibrates it on 1,000 training images, and trains it for one further epoch as a spiking network, beside the ANN itself.
It writes docs/results/conversion.json; `--table` writes the table in docs/convert.md from that.
"""

import copy
import time
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from documents import program
from torch import nn

from tandem_snn import calibrate, convert
from tandem_snn.data import Dataset, load
from tandem_snn.measure import firing_rates
from tandem_snn.training import evaluate, make_task

WINDOWS = (4, 8, 16, 32)
EPOCHS, BATCH, LR, TANDEM_LR = 3, 128, 2e-3, 5e-4


def ann() -> nn.Sequential:
    """16C3-32C3s2-64C3s2-FC128 with batch norm."""
    layers: list[nn.Module] = []
    for channels, out, stride in (1, 16, 1), (16, 32, 2), (32, 64, 2):
        layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(64 * 49, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def train(net: nn.Module, data: Dataset, seed: int, epochs: int, lr: float) -> None:
    """Adam, its rate rising over the first tenth and then falling to zero."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    steps = epochs * (len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1, cycle_momentum=False)
    net.train()
    for epoch in range(epochs):
        for images, labels in data.train.batches(BATCH, seed=1000 * seed + epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
            schedule.step()


def accuracy(net: nn.Module, data: Dataset) -> float:
    return round(100 * evaluate(net.eval(), data.test, make_task("classification"))["accuracy"], 2)


def measure(seed: int, data: Dataset) -> dict[str, Any]:
    torch.manual_seed(seed)
    original = ann()
    train(original, data, seed, EPOCHS, LR)
    further = copy.deepcopy(original)
    train(further, data, seed + 100, 1, TANDEM_LR)
    result: dict[str, Any] = {
        "seed": seed,
        "ann": accuracy(original, data),
        "ann_further_epoch": accuracy(further, data),
        "T": {},
    }
    images = [next(data.train.batches(1000, seed=0))]
    for T in WINDOWS:
        cells: dict[str, Any] = {}
        for name, v_init in ("floor", 0.0), ("rounded", 0.5):
            cells[f"uncalibrated_{name}"] = accuracy(convert(original, T, v_init=v_init), data)
            cells[f"converted_{name}"] = accuracy(calibrate(convert(original, T, v_init=v_init), images), data)
            windows = convert(original, T, v_init=v_init, timing="window")
            cells[f"windows_{name}"] = accuracy(calibrate(windows, images), data)
        silenced = calibrate(convert(original, T, gate="resu"), images)
        cells["silenced"] = accuracy(silenced, data)
        own = copy.deepcopy(original)
        snn = calibrate(convert(own, T), images)
        cells["rate"] = round(fmean(firing_rates(snn, images[0][0]).values()), 4)
        start = time.process_time()
        train(snn, data, seed + 100, 1, TANDEM_LR)
        cells["tandem_seconds"] = round(time.process_time() - start, 1)
        cells["tandem_epoch"] = accuracy(snn, data)
        cells["ann_after_tandem_epoch"] = accuracy(own, data)
        result["T"][str(T)] = cells
    return result


def table(result: dict[str, Any]) -> str:
    """Means over the seeds, as Markdown."""
    runs = result["runs"]
    rows = [
        ("converted, ϑ = 4/T", "uncalibrated_floor"),
        ("converted, ϑ = 4/T, v_init = ϑ/2", "uncalibrated_rounded"),
        ("converted and calibrated", "converted_floor"),
        ("**converted and calibrated, v_init = ϑ/2**", "converted_rounded"),
        ("the same, gate resu", "silenced"),
        ("window timing, v_init = 0", "windows_floor"),
        ("**window timing, v_init = ϑ/2**", "windows_rounded"),
        ("**converted and calibrated, v_init = ϑ/2, after one tandem epoch**", "tandem_epoch"),
        ("the ANN itself, after that tandem epoch", "ann_after_tandem_epoch"),
    ]
    lines = ["| | " + " | ".join(f"T = {T}" for T in WINDOWS) + " |", "| --- " * (1 + len(WINDOWS)) + "|"]
    for label, name in rows:
        if any(name not in run["T"][str(T)] for run in runs for T in WINDOWS):
            continue  # of a run from before it was measured
        cells = [f"{fmean(run['T'][str(T)][name] for run in runs):.2f}" for T in WINDOWS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for label, name in ("ANN", "ann"), ("ANN, one further epoch", "ann_further_epoch"):
        lines.append(f"| {label} | {fmean(run[name] for run in runs):.2f} " + "| " * (len(WINDOWS) - 1) + "|")
    return "\n".join(lines)


def measure_all(arguments: Any, write: Any) -> None:
    data = load("fashion-mnist", arguments.data_dir, validation=False)
    settings = {"epochs": EPOCHS, "batch": BATCH, "lr": LR, "tandem_lr": TANDEM_LR}
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        runs.append(measure(seed, data))
        print(runs[-1], flush=True)
        write({"settings": settings, "runs": runs})


if __name__ == "__main__":
    program(__file__, __doc__, "convert.md", "conversion", measure_all, table, seeds=3)
