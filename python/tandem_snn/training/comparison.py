"""The main job: a spiking network beside its ANN twin, by the same recipe, over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from ..measure import firing_rates, synops
from .loop import Epoch, fit
from .recipe import Recipe
from .timing import median_ratio, step_times


@dataclass(frozen=True)
class Run:
    """One seed: both networks, trained, and how they got there."""

    seed: int
    snn: nn.Module
    ann: nn.Module
    snn_history: list[Epoch]
    ann_history: list[Epoch]


@dataclass(frozen=True)
class Comparison:
    """The runs of all seeds, and the measures, each a mean over the seeds."""

    recipe: Recipe
    runs: list[Run]
    firing_rates: dict[str, float]
    synops_ratio: float
    step_time: float
    ann_step_time: float
    step_time_ratio: float

    @property
    def test_accuracy(self) -> float:
        return fmean(run.snn_history[-1].test_accuracy for run in self.runs)

    @property
    def ann_test_accuracy(self) -> float:
        return fmean(run.ann_history[-1].test_accuracy for run in self.runs)

    def summary(self) -> dict[str, Any]:
        """What summary.json holds. Accuracies are percentages, times milliseconds."""
        return {
            "test_accuracy": round(100 * self.test_accuracy, 4),
            "ann_test_accuracy": round(100 * self.ann_test_accuracy, 4),
            "T": self.recipe.T,
            "synops_ratio": self.synops_ratio,
            "step_time_ratio": self.step_time_ratio,
            "step_time_ms": 1e3 * self.step_time,
            "ann_step_time_ms": 1e3 * self.ann_step_time,
            "firing_rates": self.firing_rates,
            "seeds": [run.seed for run in self.runs],
            "per_seed": [
                {
                    "seed": run.seed,
                    "test_accuracy": round(100 * run.snn_history[-1].test_accuracy, 4),
                    "ann_test_accuracy": round(100 * run.ann_history[-1].test_accuracy, 4),
                }
                for run in self.runs
            ],
            "recipe": self.recipe.to_dict(),
        }


def compare(
    recipe: Recipe, data: Dataset, seeds: Sequence[int], on_step: Callable[[str, int], None] | None = None
) -> Comparison:
    """Trains the recipe's network and its twin for each seed, and measures them on the test images.

    Args:
        recipe: what to train.
        data: the recipe's data, loaded.
        seeds: one run each; a seed determines the initial weights and the order of the images of both networks.
        on_step: called after every training step with the kind ("SNN" or "ANN") and the seed.
    """
    runs = []
    for seed in seeds:
        torch.manual_seed(seed)
        snn, ann = (net.to(data.device) for net in recipe.networks(data))
        histories = []
        for kind, net in ("SNN", snn), ("ANN", ann):
            report = None if on_step is None else lambda kind=kind: on_step(kind, seed)  # noqa: B023  # type: ignore[misc]
            histories.append(fit(net, data, recipe, seed, report))
        runs.append(Run(seed, snn, ann, *histories))
    images, _ = next(data.test.batches(1000))
    rates = [firing_rates(run.snn, images) for run in runs]
    times = step_times([runs[0].snn, runs[0].ann], *next(data.train.batches(recipe.batch_size)))
    return Comparison(
        recipe=recipe,
        runs=runs,
        firing_rates={name: fmean(rate[name] for rate in rates) for name in rates[0]},
        synops_ratio=fmean(synops(run.snn, images).ratio for run in runs),
        step_time=median(times[0]),
        ann_step_time=median(times[1]),
        step_time_ratio=median_ratio(*times),
    )
