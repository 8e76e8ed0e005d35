"""The main job: a spiking network beside its ANN twin, by the same recipe, over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from ..measure import firing_rates, synops
from .fit import Fitted, fit
from .interruption import Interruption
from .recipe import KINDS, Recipe
from .store import Store
from .task import make_task
from .timing import median_ratio, step_times
from .trainer import Trainer
from .world import World

OnStep = Callable[[str, int, Trainer], None]


@dataclass(frozen=True)
class Run:
    """One seed: each kind of network, trained, and how it got there."""

    seed: int
    nets: dict[str, nn.Module]
    fitted: dict[str, Fitted]


@dataclass(frozen=True)
class Measures:
    """What the networks cost: means over the seeds, and the seconds of a training step by kind."""

    firing_rates: dict[str, float]
    synops_ratio: float
    step_times: dict[str, float]
    step_time_ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """The runs of all seeds, and their measures.

    Attributes:
        kinds: "SNN" and, if the twin was trained too, "ANN".
        metric: "accuracy" or "mse".
        measures: None in processes other than the main one.
    """

    recipe: Recipe
    kinds: Sequence[str]
    metric: str
    runs: list[Run]
    measures: Measures | None

    def test(self, kind: str) -> float:
        """The metric on the test split, mean over the seeds."""
        return fmean(run.fitted[kind].test[self.metric] for run in self.runs)

    def summary(self) -> dict[str, Any]:
        """What summary.json holds. Accuracies are percentages, times milliseconds, unless the name says otherwise."""
        assert self.measures is not None
        unit = 100 if self.metric == "accuracy" else 1
        names = {"SNN": "", "ANN": "ann_"}
        test = f"test_{self.metric}"
        summary: dict[str, Any] = {names[kind] + test: round(unit * self.test(kind), 4) for kind in self.kinds}
        summary |= {"T": self.recipe.T, "synops_ratio": self.measures.synops_ratio}
        if self.measures.step_time_ratio is not None:
            summary["step_time_ratio"] = self.measures.step_time_ratio
        for kind, seconds in self.measures.step_times.items():
            summary[names[kind] + "step_time_ms"] = 1e3 * seconds
        for kind in self.kinds:
            fitted = [run.fitted[kind] for run in self.runs]
            summary[names[kind] + "seconds_per_epoch"] = fmean(one.seconds_per_epoch for one in fitted)
            summary[names[kind] + "peak_memory"] = max((one.peak_memory or 0 for one in fitted), default=0) or None
        per_seed = []
        for run in self.runs:
            entry: dict[str, Any] = {"seed": run.seed}
            for kind in self.kinds:
                fitted_one = run.fitted[kind]
                entry[names[kind] + test] = round(unit * fitted_one.test[self.metric], 4)
                entry[names[kind] + "epoch"] = fitted_one.epoch
            per_seed.append(entry)
        return summary | {
            "firing_rates": self.measures.firing_rates,
            "seeds": [run.seed for run in self.runs],
            "per_seed": per_seed,
            "recipe": self.recipe.to_dict(),
        }


def compare(
    recipe: Recipe,
    data: Dataset,
    seeds: Sequence[int],
    *,
    twin: bool = True,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    world: World | None = None,
    on_step: OnStep | None = None,
    interruption: Interruption | None = None,
    **store: Any,
) -> Comparison:
    """Trains the recipe's network and its twin for each seed, and measures them on the test samples.

    Args:
        recipe: what to train.
        data: the recipe's data, loaded.
        seeds: one run each, in the place of the recipe's. Both networks start from the same weights and see the same
            samples in the same order.
        twin: train the ANN too.
        device: where to train.
        folder: where each training has a :class:`Store`, ``folder/seed-0/snn`` and so on. What is there is continued.
        world: the processes that train together.
        on_step: called after every training step with the kind ("SNN" or "ANN"), the seed and the trainer.
        interruption: asked after every step whether to stop.
        store: further arguments of :class:`Store`.
    """
    world = World() if world is None else world
    kinds = KINDS if twin else KINDS[:1]
    runs = []
    for seed in seeds:
        own = recipe.with_seed(seed)
        nets, fitted = {}, {}
        for kind in kinds:
            torch.manual_seed(seed)
            nets[kind] = own.build(data, kind).to(device)
            kept = None
            if folder is not None:
                kept = Store(folder / f"seed-{seed}" / kind.lower(), writes=world.is_main, **store)
            report = None if on_step is None else partial(on_step, kind, seed)
            fitted[kind] = fit(
                nets[kind], data, own, store=kept, world=world, on_step=report, interruption=interruption
            )
        runs.append(Run(seed, nets, fitted))
    metric = make_task(data.task).metric
    measures = _measure(recipe, data, runs, device) if world.is_main else None
    return Comparison(recipe, kinds, metric, runs, measures)


def _measure(recipe: Recipe, data: Dataset, runs: Sequence[Run], device: torch.device | str) -> Measures:
    samples = next(data.test.batches(1000))[0].to(device)
    rates = [firing_rates(run.nets["SNN"], samples) for run in runs]
    first = runs[0].nets
    inputs, targets = next(data.train.batches(recipe.batch_size))
    times = step_times(list(first.values()), inputs.to(device), targets.to(device), make_task(data.task).loss)
    return Measures(
        firing_rates={name: fmean(rate[name] for rate in rates) for name in rates[0]},
        synops_ratio=fmean(synops(run.nets["SNN"], samples).ratio for run in runs),
        step_times={kind: median(record) for kind, record in zip(first, times, strict=True)},
        step_time_ratio=median_ratio(*times) if len(times) == 2 else None,
    )
