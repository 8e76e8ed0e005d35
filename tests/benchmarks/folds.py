"""Cross-validation of a recipe whose data set has few samples: in five folds each sample is tested once.

    python tests/benchmarks/folds.py n-mnist --data-dir DIR

adds each fold's accuracies to docs/results/folds.json; folds that are there already are skipped. `make results` writes
their table.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import tandem_ext
from tandem_ext import SpikeTrain
from tandem_snn.data import Dataset
from tandem_snn.data.split import TensorSplit
from tandem_snn.machine import freed_is_kept
from tandem_snn.training import compare, load_recipe

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "folds.json"
FOLDS = 5


def fold(data: Dataset, number: int) -> Dataset:
    """The data set whose test samples are fold ``number`` of all samples; a twelfth of the others is for validation."""
    train, test = cast(TensorSplit, data.train), cast(TensorSplit, data.test)
    inputs = tandem_ext.cat([cast(SpikeTrain, part.inputs) for part in (train, test)])
    targets = torch.cat([cast(Tensor, part.targets) for part in (train, test)])
    whole = replace(train, inputs=inputs, targets=targets)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    tested = order[number::FOLDS]
    others = order[~torch.isin(order, tested)]
    held_out = len(others) // 12
    return Dataset.of(
        whole.subset(others[held_out:]),
        whole.subset(tested).without_augmentation(),
        whole.subset(others[:held_out]).without_augmentation(),
        name=data.name,
        classes=data.class_names,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data-dir", default=os.environ.get("TANDEM_DATA"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results: dict[str, list[float]] = known.setdefault(arguments.recipe, {})
    recipe = load_recipe(arguments.recipe)
    data = replace(recipe, validation=False).load(arguments.data_dir)
    while (done := len(results.get("SNN", []))) < FOLDS:
        with freed_is_kept():
            comparison = compare(recipe, fold(data, done))
        for kind in comparison.kinds:
            results.setdefault(kind, []).append(round(100 * comparison.test(kind), 2))
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
