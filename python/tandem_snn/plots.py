"""Pictures of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from . import nn as tnn
from .data import Dataset
from .errors import extra
from .measure import activations
from .measure.hooks import evaluating, watching

if TYPE_CHECKING:
    from .training.comparison import Comparison

SNN, ANN, CONTINUED = "tab:blue", "tab:orange", "tab:brown"
MARKS = (100, 99, 95, 90, 80, 50, 0, 98, 99.5, 70, 60, 20, 97, 99.8, 98.5, 10, 30, 40, 92, 85)  # the first that fit


def report(path: Path, result: Comparison, data: Dataset) -> None:
    """One picture of a comparison: learning curves, a spike raster, counts against the ANN branch's activation."""
    matplotlib = extra("matplotlib", "the report")
    matplotlib.use("agg")
    plt = extra("matplotlib.pyplot", "the report")
    figure, (curves, raster, scatter) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    recipe, net = result.recipe, result.runs[0].nets["SNN"]
    figure.suptitle(
        f"{recipe.data}, {recipe.model}, T={recipe.T}, {len(result.runs)} seed{'s' * (len(result.runs) > 1)}"
    )
    learning_curves(curves, result)
    images, _ = next(data.test.batches(64))
    images = images.to(next(net.parameters()).device)
    spike_raster(raster, net, images[:1])
    count_scatter(scatter, net, images)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def learning_curves(axes: Any, result: Comparison) -> None:
    """The metric after each epoch, on the validation split where there is one; one line per seed."""
    metric, unit = result.metric, 100 if result.metric == "accuracy" else 1
    held_out = f"validation_{metric}" in result.runs[0].fitted["SNN"].history[0]
    split, key = ("validation", f"validation_{metric}") if held_out else ("training", metric)
    for kind, color in zip(result.kinds, (SNN, ANN, CONTINUED), strict=False):
        for i, run in enumerate(result.runs):
            values = [unit * record[key] for record in run.fitted[kind].history]
            axes.plot(range(1, len(values) + 1), values, color=color, label=None if i else kind, linewidth=1)
    label = f"{split} accuracy, %" if metric == "accuracy" else f"{split} {metric}"
    axes.set(xlabel="epoch", ylabel=label, title="Learning curves")
    if metric == "accuracy":
        percent_axis(axes)
    else:
        axes.set_yscale("log")
    axes.legend()
    axes.grid(alpha=0.3)


def spike_raster(axes: Any, net: nn.Module, image: torch.Tensor) -> None:
    """The spikes that one image causes in the last layer with neurons: a dot per neuron and step."""
    trains: list[tuple[str, Any]] = []
    record = lambda name, layer, x, kwargs, train: trains.append((name, train))  # noqa: E731
    with evaluating(net), watching(net, (tnn.SpikingLayer,), record):
        net(image)
    name, train = trains[-1]
    steps, neurons = train.to_dense(torch.float32)[:, 0].flatten(1).cpu().nonzero(as_tuple=True)
    axes.scatter(steps, neurons, s=4, color=SNN, marker="|")
    axes.set(xlabel="time step", ylabel="neuron", title=f"Spikes of layer {name} for one image")
    axes.set_xlim(-0.5, train.T - 0.5)


def count_scatter(axes: Any, net: nn.Module, images: torch.Tensor) -> None:
    """Each neuron's count against the activation its ANN branch computes, ρ(z)/ϑ, over all layers."""
    layers = activations(net, images)
    T = layers[0].T
    for layer in layers:
        chosen = torch.randperm(layer.a.numel(), generator=torch.Generator().manual_seed(0))[:1500]
        c, a = layer.counts.flatten().cpu()[chosen], layer.a.relu().flatten().cpu()[chosen]
        jitter = torch.rand(len(c), generator=torch.Generator().manual_seed(1)) * 0.5 - 0.25
        axes.scatter(a, c + jitter, s=3, alpha=0.4, label=f"layer {layer.name}")
    axes.plot([0, T], [0, T], color="black", linewidth=0.8)
    axes.set(xlabel="ANN activation ρ(z)/ϑ", ylabel="spike count (jittered)", title="Counts against activations")
    axes.set_xlim(-0.5, 2 * T)
    axes.legend(markerscale=3)


def percent_axis(axes: Any) -> None:
    """An axis of per cent upwards that widens towards 100, where networks differ: even in the logarithm of 101 - y."""

    def place(percent: Any) -> Any:
        return -np.log10(101 - np.minimum(percent, 100.9))

    low, high = (float(np.clip(limit, 0, 100.2)) for limit in axes.get_ylim())
    axes.set_yscale("function", functions=(place, lambda y: 101 - 10.0**-y))
    ticks: list[float] = []
    for mark in MARKS:
        if low <= mark <= high and all(abs(place(mark) - place(t)) > 0.08 * (place(high) - place(low)) for t in ticks):
            ticks.append(mark)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(low, high)
