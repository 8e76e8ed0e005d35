"""The contents of a report: read from a run's folder, or measured on its first seed's network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from ..data import Dataset
from ..errors import UserError
from ..measure import Monitor, activations, synops, synops_over_time
from ..nn.hooks import evaluating
from ..plots import jittered
from ..training.checkpoint import load_checkpoint
from ..training.recipe import KINDS, Recipe, folder_of

ESSENTIAL = ("recipe", "seeds", "T", "synops_ratio", "energy_pj", "firing_rates", "mismatch")
SUMMARY, MODEL, TWIN = "summary.json", "model.safetensors", "twin.safetensors"
SAMPLES = 1000  # of the test split, for rates and operations
FEW = 256  # of these, for measures of single neurons
POINTS = 400  # of a layer's neurons in the scatter plot


@dataclass
class Contents:
    """Everything that a report shows: the run's summary, and measures of its first seed's network. Fields that a run
    does not have, such as classes in regression, are empty or None.

    Attributes:
        name: the run's folder.
        summary: its summary.json.
        histories: the records of the epochs, by kind ("SNN", "ANN", "ANN continued") and seed.
        class_names: of the data set.
        samples: the number of test samples for the rates; ``few``: for measures of single neurons.
        confusion: int64 [classes, classes], target by answer, on the test split.
        example: one test sample as an image [H, W] or [H, W, 3] in 0..1.
        verdict: its class, and the network's answer; None for regression.
        rasters: its spike trains by layer.
        rates: each neuron's firing rate, by layer.
        points: activations and jittered counts of some neurons, by layer.
        operations: synaptic operations per sample of the SNN and, as MACs, of the twin.
        spent: the SNN's after each step; empty where the network cannot stream.
    """

    name: str
    summary: dict[str, Any]
    histories: dict[str, list[list[dict[str, Any]]]]
    class_names: tuple[str, ...] = ()
    samples: int = 0
    few: int = 0
    confusion: Tensor | None = None
    example: Tensor | None = None
    verdict: tuple[str, str] | None = None
    rasters: dict[str, SpikeTrain] = field(default_factory=dict)
    rates: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    operations: tuple[float, float] = (0.0, 0.0)
    spent: list[float] = field(default_factory=list)

    @property
    def recipe(self) -> dict[str, Any]:
        recipe: dict[str, Any] = self.summary["recipe"]
        return recipe

    @property
    def metric(self) -> str:
        return "accuracy" if "test_accuracy" in self.summary else "mse"

    @property
    def twin(self) -> float | None:
        """The twin's metric."""
        found: float | None = self.summary.get(f"ann_test_{self.metric}")
        return found

    @property
    def over_time(self) -> list[float] | None:
        """The metric after each step; None where the network cannot stream."""
        found: list[float] | None = self.summary.get(f"test_{self.metric}_over_time")
        return found


def gather(run: Path, data_dir: Path | None = None) -> Contents:
    """Reads a run's folder and measures its first seed's network on the test split, on the CPU.

    Raises:
        UserError: no run, a damaged run, or its data set is missing.
    """
    summary = _summary(run / SUMMARY)
    recipe = Recipe.from_dict(summary["recipe"])
    data = recipe.load(data_dir)
    net = recipe.build(data)
    load_checkpoint(run / MODEL, net)
    contents = Contents(run.resolve().name, summary, _histories(run, summary), data.class_names)
    _look(contents, net, data)
    if data.task == "classification":
        contents.confusion = _confusion(net, data)
    return contents


def _summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no run in {path.parent}: `tandem-snn train` writes {path.name} when it has finished")
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
        [summary[key] for key in (*ESSENTIAL, "test_mse" if "test_mse" in summary else "test_accuracy")]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged or of another version: {error}") from error
    return summary


def _histories(run: Path, summary: dict[str, Any]) -> dict[str, list[list[dict[str, Any]]]]:
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for kind in KINDS:
        paths = [run / f"seed-{seed}" / folder_of(kind) / "metrics.jsonl" for seed in summary["seeds"]]
        records = [_records(path) for path in paths if path.exists()]
        if records:
            found[kind] = records
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
        [record["loss"] for record in records]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return records


def _look(contents: Contents, net: nn.Module, data: Dataset) -> None:
    """Rates, rasters, and counts against activations, on the first test samples."""
    x, targets = next(data.test.batches(SAMPLES))
    few = x[:FEW]
    contents.samples, contents.few = len(x), len(few)
    with evaluating(net), Monitor(net, samples=FEW) as monitor:
        net(x)
    contents.rates = {name: layer.rates.flatten() for name, layer in monitor.items()}
    with evaluating(net), Monitor(net, samples=1) as monitor:
        answer = net(x[:1])
    if data.task == "classification":
        contents.verdict = data.class_names[int(targets[0])], data.class_names[int(answer.argmax())]
    contents.rasters = {name: layer.train for name, layer in monitor.items()}
    contents.example = _image(x[:1])
    contents.points = {layer.name: jittered(layer, POINTS) for layer in activations(net, few)}
    operations = synops(net, x)
    contents.operations = operations.snn, operations.ann
    contents.spent = [] if contents.over_time is None else synops_over_time(net, x)


def _confusion(net: nn.Module, data: Dataset) -> Tensor:
    classes = len(data.class_names)
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    with evaluating(net):
        for x, targets in data.test.batches(512):
            confusion += torch.bincount(targets * classes + net(x).argmax(1), minlength=classes * classes)
    return confusion.view(classes, classes)


def _image(x: Tensor | SpikeTrain) -> Tensor | None:
    """A batch of one sample as a picture; spikes are counted."""
    sample = (x.counts if isinstance(x, SpikeTrain) else x)[0].float()
    if sample.dim() != 3:
        return None
    sample = sample if len(sample) == 3 else sample.sum(0, keepdim=True)
    low, high = sample.amin(), sample.amax()
    sample = (sample - low) / (high - low).clamp_min(1e-9)
    return sample[0] if len(sample) == 1 else sample.movedim(0, -1)
