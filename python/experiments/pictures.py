"""One picture of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import tandem_snn as ts
from data import Data
from recipe import Recipe
from training import Task

COLOURS = {"SNN": "tab:blue", "ANN": "tab:orange", "ANN continued": "tab:brown", "ViT": "tab:green"}


def draw(
    path: Path,
    recipe: Recipe,
    data: Data,
    summary: dict[str, Any],
    runs: Sequence[tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]],
) -> None:
    """Loss and error by epoch, with a line for each seed; the error by time step; the spikes of the last layer for the
    first test sample, and the firing rates, of the first seed.
    """
    task = Task(recipe)
    key = f"validation_{task.metric}" if recipe.validation else task.metric
    figure = Figure(figsize=(13, 7), layout="constrained")
    loss, error, time, spikes, rates, counts = figure.subplots(2, 3).flat

    def wrong(value: float) -> float:
        return 100 - 100 * value if task.classifies else value

    for kind in runs[0][1]:
        for i, (_, trained) in enumerate(runs):
            history, style = trained[kind]["history"], {"color": COLOURS[kind], "label": None if i else kind}
            epochs = [record["epoch"] for record in history]
            loss.plot(epochs, [record["loss"] for record in history], **style)
            error.plot(epochs, [wrong(record[key]) for record in history], **style)
    what = "error, %" if task.classifies else task.metric
    over_time = summary[f"test_{task.metric}_over_time"]
    time.plot(range(1, len(over_time) + 1), [100 - v if task.classifies else v for v in over_time], ".-", label="SNN")
    loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
    error.set(xlabel="epoch", ylabel=f"{'validation' if recipe.validation else 'training'} {what}")
    time.set(xlabel="time step", ylabel=f"test {what}", yscale="log")
    for axes in loss, error, time:
        axes.legend()
    net = runs[0][0]["SNN"]
    x = next(data.test.batches(256))[0]
    with torch.no_grad(), ts.measure.Monitor(net.eval(), samples=1) as monitor:
        net(x[:1])
    last = list(monitor)[-1]
    ts.plots.raster(monitor[last], spikes).set_title(f"spikes of {last}, first test sample")
    ts.plots.rates(net, x, rates)
    ts.plots.counts_against_activations(net, x, counts)
    figure.suptitle(f"{recipe.data}, {recipe.model}, T = {recipe.T}")
    figure.savefig(path, dpi=100)
