"""Where should γ of the batch norm, the threshold and the initial potential start? Accuracy against T, measured.

    python tests/benchmarks/initialisation.py --data-dir DIR [--width 0.5]

trains 32C3-64C3s2-128C3s2-FC256 (times the width) on the first 15,000 images of Fashion-MNIST for 4 epochs, once per
setting, and adds each result to docs/results/initialisation.json; settings that are there already are skipped. Hours on
two cores. tandem_snn.nn.initial_gamma and docs/initialisation.md follow from it.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tandem_snn.measure import firing_rates, synops
from tandem_snn.models import create_model, create_twin
from tandem_snn.training import Recipe, fit

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "initialisation.json"
RECIPE = Recipe(data="fashion-mnist", validation=False, model="cnn", epochs=4, batch_size=128, lr=2e-3)
IMAGES = 15_000
NEURON = ("gamma", "v_init", "threshold", "timing", "gate")


def settings(width: float) -> list[dict[str, Any]]:
    """What to train, the most telling first. T = 0 stands for the ANN twin."""
    common = {"width": width, "seed": 0}
    neuron = common | {"v_init": 0.0, "threshold": 1.0}
    ann = [common | {"T": 0, "seed": seed} for seed in (0, 1)]
    gammas = [neuron | {"T": T, "gamma": gamma} for T, gamma in product((8, 4, 2, 16), (1.0, 3.0, 2.0, 4.5))]
    v_inits = [neuron | {"T": T, "gamma": gamma, "v_init": 0.5} for gamma, T in product((3.0, 2.0), (2, 4, 8))]
    thresholds = [neuron | {"T": 8, "gamma": 3.0, "threshold": theta} for theta in (0.5, 2.0)]
    seeds = [neuron | {"T": T, "gamma": gamma, "seed": 1} for T, gamma in product((8, 4, 2, 16), (1.0, 2.0, 3.0, 4.5))]
    return ann + gammas + v_inits + thresholds + seeds + _windows(neuron)


def _windows(neuron: dict[str, Any]) -> list[dict[str, Any]]:
    """Timing "window", which starts at half a threshold, and with the gate that knows the ceiling."""
    window = neuron | {"v_init": 0.5, "timing": "window", "gate": "clip"}
    gammas = {2: (1.0, 2.0, 1.5, 3.0), 4: (2.0, 1.5, 3.0, 1.0), 1: (1.0, 0.7, 2.0), 8: (3.0, 2.0, 4.5), 16: (3.0,)}
    found = [window | {"T": T, "gamma": gamma} for T, tried in gammas.items() for gamma in tried]
    found[4:4] = [window | {"T": 2, "gamma": 1.0, "gate": "relu"}, window | {"T": 2, "gamma": 2.0, "v_init": 0.0}]
    return [*found, window | {"T": 8, "gamma": 3.0, "v_init": 0.0}, window | {"T": 8, "gamma": 3.0, "gate": "relu"}]


def train(setting: dict[str, Any], data: Any) -> dict[str, Any]:
    torch.manual_seed(setting["seed"])
    shape = {"shape": data.shape, "classes": data.classes, "width": setting["width"]}
    if setting["T"]:
        neuron = {name: setting[name] for name in NEURON if name in setting}
        net = create_model("cnn", **shape, T=setting["T"], **neuron)
    else:
        net = create_twin("cnn", **shape)
    start = time.perf_counter()
    fitted = fit(net, data, replace(RECIPE, T=max(1, setting["T"]), seed=setting["seed"]))
    result = setting | {
        "test_accuracy": round(100 * fitted.test["accuracy"], 2),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if setting["T"]:
        images, _ = next(data.test.batches(1000))
        result["firing_rates"] = {name: round(rate, 4) for name, rate in firing_rates(net, images).items()}
        result["synops_ratio"] = round(synops(net, images).ratio, 3)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Accuracy, and in brackets the mean firing rate and the SynOps ratio, as Markdown: seeds averaged."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        names = (("width", 1.0), *dict.fromkeys(NEURON[:3]).items(), ("timing", "step"), ("gate", "relu"), ("T", None))
        key = tuple(result.get(name, default) for name, default in names)
        groups.setdefault(key, []).append(result)
    windows = sorted({key[-1] for key in groups if key[-1]})
    lines = [
        "| width | γ | v_init | ϑ | timing | gate | " + " | ".join(f"T = {T}" for T in windows) + " |",
        "| --- " * (6 + len(windows)) + "|",
    ]
    for width in sorted({key[0] for key in groups}):
        ann = groups[width, None, None, None, "step", "relu", 0]
        mean = f"{_mean(ann, 'test_accuracy'):.2f} ({len(ann)} seeds)"
        lines.append(f"| {width} | ANN | | | | | {mean} |" + " |" * (len(windows) - 1))
        for setting in sorted({key[1:6] for key in groups if key[0] == width and key[-1]}):
            cells = [_cell(groups.get((width, *setting, T))) for T in windows]
            lines.append(f"| {width} | " + " | ".join(map(_text, setting)) + " | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _mean(runs: list[dict[str, Any]], name: str) -> float:
    return fmean(run[name] for run in runs)


def _cell(runs: list[dict[str, Any]] | None) -> str:
    if not runs:
        return ""
    rate = fmean(fmean(run["firing_rates"].values()) for run in runs)
    seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
    return f"{_mean(runs, 'test_accuracy'):.2f} ({100 * rate:.0f}%, {_mean(runs, 'synops_ratio'):.2f}{seeds})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print the results as Markdown")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if arguments.table:
        print(table(results))
        return
    torch.set_num_threads(arguments.threads)
    data = RECIPE.load(arguments.data_dir)
    data = replace(data, train=data.train.subset(range(IMAGES)))
    for setting in settings(arguments.width):
        if not any(setting.items() <= result.items() for result in results):
            results.append(train(setting, data))
            print(results[-1], flush=True)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text("[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]\n")


if __name__ == "__main__":
    main()
