"""What the trained twins of finished runs need as converted networks: steps, accuracy and synaptic operations.

    python python/experiments/converted.py runs/digits --T 64 256 --data-dir DIR --out converted.json

converts the twin of each seed with step timing, thresholds from 1,000 training samples, and trains nothing. The file
holds a list with an entry for each run: the tandem network's measures, and the converted ones' for each T.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import recipe as recipes
import tandem_snn as ts
import training
from data import load
from measures import SAMPLES
from tandem_snn.info import origin
from train import build

KEYS = ("test_accuracy", "ann_test_accuracy", "synops_ratio")


def converted(folder: Path, windows: Sequence[int], seeds: int | None, data_dir: Path | None) -> dict[str, Any]:
    """The measures of the run in this folder, and those of its first twins with each number of steps."""
    summary = json.loads((folder / "summary.json").read_text())
    keys = {name: value for name, value in summary["recipe"].items() if name in vars(recipes.Recipe())}
    recipe = recipes.Recipe(**keys | {"encoding": "direct"})  # with step timing pixels are real numbers
    data = load(recipe, data_dir)
    samples = next(data.test.batches(SAMPLES))[0]
    found: dict[str, Any] = {"recipe": folder.name, "T": summary["T"], "timing": recipe.timing}
    chosen = summary["per_seed"][:seeds]
    found |= {key: summary[key] for key in KEYS} | {"seeds": len(summary["seeds"]), "converted": {}}
    images = next(data.train.epoch(0, min(1000, len(data.train))))[0]
    for T in windows:
        accuracies, costs = [], []
        for seed in (one["seed"] for one in chosen):
            ann = build(recipe, data, "ANN")
            ann.load_state_dict(torch.load(folder / f"seed-{seed}" / "ann.pt", weights_only=True)["weights"])
            snn = ts.convert(ann.eval(), T, data=images.split(100), timing="step").eval()
            accuracies.append(100 * training.evaluate(snn, data.test, recipe).mean().item())
            costs.append(ts.measure.synops(snn, samples).ratio)
            print(f"{folder.name}, T = {T}, seed {seed}: {accuracies[-1]:.2f} %, {costs[-1]:.2f}", flush=True)
        apart = fmean(accuracies) - fmean(one["ann_test_accuracy"] for one in chosen)
        cells = {"test_accuracy": fmean(accuracies), "to_ann": apart, "synops_ratio": fmean(costs)}
        found["converted"][str(T)] = {name: round(value, 4) for name, value in cells.items()} | {"seeds": len(chosen)}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that train.py wrote")
    parser.add_argument("--T", type=int, nargs="+", default=[64, 256], help="time steps of the converted networks")
    parser.add_argument("--seeds", type=int, help="of each run; default: all")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("TANDEM_DATA"), help="default: $TANDEM_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/converted.json"))
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "python/experiments/converted.py", *given])
    with torch.no_grad():
        runs = [converted(one, options.T, options.seeds, options.data_dir) | origin(command) for one in options.runs]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
