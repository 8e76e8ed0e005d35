"""Training a spiking network and its ANN twin by the same recipe, over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from .checkpoint import Store, locked
from .fit import Fitted, fit
from .measures import measure, rounded
from .processes import Interruption, World
from .recipe import CONTINUED, KINDS, PREFIXES, TWIN, Recipe, folder_of
from .task import make_task
from .trainer import Trainer
from .transfer import start_from, start_from_checkpoint

OnStep = Callable[[str, int, Trainer], None]


@dataclass(frozen=True)
class Run:
    """One seed: the trained networks by kind, and the records of their training."""

    seed: int
    nets: dict[str, nn.Module]
    fitted: dict[str, Fitted]


@dataclass(frozen=True)
class Comparison:
    """The runs of all seeds, and their measures.

    Attributes:
        kinds: "SNN"; "ANN" if the twin was trained too; and "ANN continued" if the spiking network started from the
            twin: the control, the twin trained by the same recipe for as many further epochs.
        metric: "accuracy" or "mse".
        samples: the number of samples by split.
        measures: further entries of the summary; None in processes other than the main one.
    """

    recipe: Recipe
    kinds: Sequence[str]
    metric: str
    samples: dict[str, int]
    runs: list[Run]
    measures: dict[str, Any] | None

    def test(self, kind: str) -> float:
        """The metric on the test split, mean over the seeds."""
        return fmean(self._tests(kind))

    def summary(self) -> dict[str, Any]:
        """The content of summary.json. Accuracies are in per cent, times in milliseconds unless named otherwise."""
        assert self.measures is not None
        test = f"test_{self.metric}"
        summary: dict[str, Any] = {}
        per_seed: list[dict[str, Any]] = [{"seed": run.seed} for run in self.runs]
        for kind in self.kinds:
            prefix, fitted = PREFIXES[kind], [run.fitted[kind] for run in self.runs]
            summary[prefix + test] = rounded(self.metric, self.test(kind))
            if len(self.runs) > 1:
                summary[f"{prefix}{test}_std"] = rounded(self.metric, stdev(self._tests(kind)))
            summary[prefix + "seconds_per_epoch"] = fmean(one.seconds_per_epoch for one in fitted)
            summary[prefix + "peak_memory"] = max((one.peak_memory or 0 for one in fitted), default=0) or None
            for entry, one in zip(per_seed, fitted, strict=True):
                entry |= {prefix + test: rounded(self.metric, one.test[self.metric]), prefix + "epoch": one.epoch}
                entry |= {prefix + "trained_on": one.trained_on} if one.trained_on else {}
        return summary | self.measures | {
            "T": self.recipe.T,
            "parameters": sum(p.numel() for p in self.runs[0].nets["SNN"].parameters()),
            "samples": self.samples,
            "seeds": [run.seed for run in self.runs],
            "per_seed": per_seed,
            "recipe": self.recipe.to_dict(),
        }  # fmt: skip

    def _tests(self, kind: str) -> list[float]:
        return [run.fitted[kind].test[self.metric] for run in self.runs]


def compare(
    recipe: Recipe,
    data: Dataset,
    *,
    twin: bool = True,
    device: torch.device | str = "cpu",
    folder: str | PathLike[str] | None = None,
    twins: str | PathLike[str] | None = None,
    world: World | None = None,
    on_step: OnStep | None = None,
    interruption: Interruption | None = None,
    **store: Any,
) -> Comparison:
    """Trains the recipe's network and its twin for each seed, and measures them on the test samples.

    For a seed, both networks see the same samples in the same order. They start from the same weights unless the recipe
    has ``init_from``.

    Args:
        recipe: the training's settings.
        data: the recipe's data, loaded.
        twin: train the ANN too; if the spiking network starts from it, train it for as long again, as a control.
        device: where to train.
        folder: each training has a :class:`Store` in it, such as ``folder/seed-0/snn``, and resumes from it.
        twins: a folder of ANN twins that comparisons share: twins in it are loaded, missing ones trained and added.
        world: the processes that train together.
        on_step: called after every training step with the kind ("SNN" or "ANN"), the seed and the trainer.
        interruption: says after every step whether to stop.
        store: further arguments of :class:`Store`.

    Returns:
        The networks and measures of each seed; ``.summary()`` is what ``tandem-snn train`` writes.

    >>> recipe = Recipe(model="FC16", epochs=1, seeds=1)
    >>> comparison = compare(recipe, recipe.load())
    >>> comparison.summary()["test_accuracy"] > 20
    True
    """
    world = World() if world is None else world
    order = recipe.order(twin)
    kinds = [kind for kind in KINDS if kind in order]
    runs = []
    for seed in recipe.all_seeds:
        own = recipe.with_seed(seed)
        nets: dict[str, nn.Module] = {}
        fitted: dict[str, Fitted] = {}
        for kind in order:
            torch.manual_seed(seed)
            nets[kind] = own.build(data, kind).to(device)
            if kind == "SNN" and own.init_from == TWIN:
                start_from(nets[kind], nets["ANN"].state_dict(), own.init_gain)
            elif kind == "SNN" and own.init_from is not None:
                start_from_checkpoint(nets[kind], Path(own.init_from), own.init_gain)
            elif kind == CONTINUED:
                nets[kind].load_state_dict(nets["ANN"].state_dict())
            by = own.of(kind)
            shared = None if twins is None or kind == "SNN" else Path(twins) / by.digest()
            place = shared if shared or folder is None else Path(folder) / f"seed-{seed}" / folder_of(kind)
            kept = None if place is None else Store(place, writes=world.is_main, **store)
            report = None if on_step is None else partial(on_step, kind, seed)
            with locked(shared, wait=True) if shared and world.is_main else nullcontext():
                fitted[kind] = fit(
                    nets[kind], data, by, store=kept, world=world, on_step=report, interruption=interruption
                )
        runs.append(Run(seed, {kind: nets[kind] for kind in kinds}, fitted))
    metric = make_task(data.task).metric
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    samples = {name: 0 if split is None else len(split) for name, split in parts.items()}
    pairs = [{kind: net for kind, net in run.nets.items() if kind != CONTINUED} for run in runs]
    measures = measure(recipe, data, pairs) if world.is_main else None
    return Comparison(recipe, kinds, metric, samples, runs, measures)
