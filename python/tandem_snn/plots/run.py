"""Pictures of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import Dataset
from ..errors import extra
from ..measure import Monitor
from ..measure.hooks import evaluating
from .axes import ANN, CONTINUED, SNN, percent_axis, say_scale
from .inside import counts_against_activations, raster

if TYPE_CHECKING:
    from ..training.comparison import Comparison


def report(path: Path, result: Comparison, data: Dataset) -> None:
    """One picture of a comparison: learning curves, a spike raster, counts against the ANN branch's activation."""
    matplotlib = extra("matplotlib", "the report")
    matplotlib.use("agg")
    plt = extra("matplotlib.pyplot", "the report")
    figure, (curves, spikes, scatter) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    recipe, net = result.recipe, result.runs[0].nets["SNN"]
    figure.suptitle(
        f"{recipe.data}, {recipe.model}, T={recipe.T}, {len(result.runs)} seed{'s' * (len(result.runs) > 1)}"
    )
    learning_curves(curves, result)
    images, _ = next(data.test.batches(64))
    images = images.to(next(net.parameters()).device)
    with torch.no_grad(), evaluating(net), Monitor(net, samples=1) as monitor:
        net(images[:1])
    name = list(monitor)[-1]
    raster(monitor[name], spikes, neurons=1000).set_title(f"Spikes of layer {name} for one image")
    counts_against_activations(net, images, scatter).set_title("Counts against activations")
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
        say_scale(axes, "logarithmic axis")
    axes.legend()
    axes.grid(alpha=0.3)
