"""Figures of a report: SVG in the colours and fonts of the page, which may be light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from .. import plots
from ..errors import extra
from .contents import Contents

# Colours in matplotlib, including those of the package's plots, and their replacements on the page.
_COLOURS = {
    "#010101": "currentColor",
    "#020202": "var(--line)",
    "#1f77b4": "var(--snn)",
    "#ff7f0e": "var(--ann)",
    "#8c564b": "currentColor",
}
INK, LINE, SNN, ANN, CONTINUED = _COLOURS
_KINDS = (SNN, ANN, CONTINUED)
WIDE = (3.9, 2.9)  # inches of one of two figures side by side
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x$"
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}


@contextmanager
def _picture(made: list[str], title: str, size: tuple[float, float]) -> Iterator[Any]:
    """Gives one pair of axes of ``size`` inches, and appends what is drawn into it to ``made``, as SVG."""
    matplotlib = extra("matplotlib", "the report")
    matplotlib.use("agg")
    plt = extra("matplotlib.pyplot", "the report")
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        yield axes
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for drawn, shown in _COLOURS.items():
        svg = svg.replace(drawn, shown)
    # Ids share one namespace on the page: unused ones are removed, the others are digests of their content.
    used = set(re.findall(r'#(\w+)[")]', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    widest = f"max-width:{140 * size[0]:.0f}px"  # no larger letters than in the text
    made.append(svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}" style="{widest}"', 1))


def _legend(axes: Any) -> None:
    """A legend below the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.24), ncols=2, borderaxespad=0)


def _whole(axes: Any) -> None:
    axes.xaxis.get_major_locator().set_params(integer=True)


def learning_curves(contents: Contents) -> list[str]:
    """Loss, and the metric on the validation split where there is one, by epoch; one line per seed."""
    metric, validation = contents.metric, contents.recipe["validation"]
    panels = [("loss", "training loss", False)]
    if metric == "accuracy" or validation:
        label = f"{'validation' if validation else 'training'} {metric}{', %' * (metric == 'accuracy')}"
        panels.append((f"validation_{metric}" if validation else metric, label, metric == "accuracy"))
    made: list[str] = []
    for key, label, percent in panels:
        with _picture(made, f"{label} by epoch", WIDE) as axes:
            for kind, color in zip(contents.histories, _KINDS, strict=False):
                for i, history in enumerate(contents.histories[kind]):
                    values = [record[key] * (100 if percent else 1) for record in history]
                    axes.plot(range(1, len(values) + 1), values, color=color, label=None if i else kind)
            axes.set(xlabel="epoch", ylabel=label)
            _whole(axes)
            plots.quality_axis(axes, percent)
            _legend(axes)
    return made


def over_time(contents: Contents) -> list[str]:
    """The metric after each step against steps and operations, early exit, and the twin's metric as a line."""
    values, made = contents.over_time, list[str]()
    assert values is not None
    accuracy = contents.metric == "accuracy"
    label = "test accuracy, %" if accuracy else f"test {contents.metric}"
    spent = [operations / contents.operations[1] for operations in contents.spent]

    def finish(axes: Any, xlabel: str) -> None:
        if contents.twin is not None:
            axes.axhline(contents.twin, color=ANN, linewidth=1.2, label="ANN twin")
        axes.set(xlabel=xlabel, ylabel=label)
        plots.quality_axis(axes, accuracy)

    with _picture(made, f"{label} by time step", WIDE) as axes:
        axes.plot(range(1, len(values) + 1), values, "o-", color=SNN, markersize=3.5, label="all samples")
        if contents.summary.get("early_exit"):
            exits = sorted((exit["steps"], 100 * exit["accuracy"]) for exit in contents.summary["early_exit"])
            axes.plot(*zip(*exits, strict=True), "s--", color=INK, markersize=3, linewidth=0.9,
                      label="early exit (mean)")  # fmt: skip
        _whole(axes)
        finish(axes, "time steps")
        _legend(axes)
    with _picture(made, f"{label} by operations", WIDE) as axes:
        axes.plot(spent, values, "o-", color=SNN, markersize=3.5)
        if contents.twin is not None:
            axes.plot([1], [contents.twin], "D", color=ANN, markersize=5)
        axes.set_xlim(0, 1.06 * max(1.0, *spent))
        finish(axes, "synaptic operations / the ANN's")
    return made


def rasters(contents: Contents, neurons: int = 120) -> list[str]:
    """The spikes of one sample: a mark per spike, for evenly spaced neurons of each layer."""
    made: list[str] = []
    for name, train in contents.rasters.items():
        with _picture(made, f"Spikes of {name}", (2.0, 2.2)) as axes:
            plots.raster(train, axes, neurons=neurons)
            plots.step_axis(axes, train.T, ticks=5)
            axes.set(title=f"{name}, {train.shape.numel():,} neurons", ylabel="neurons", yticks=[])
            axes.grid(False)
    return made


def rate_histograms(contents: Contents) -> list[str]:
    """Histograms of the neurons' firing rates, by layer."""
    made: list[str] = []
    for name, layer in contents.rates.items():
        with _picture(made, f"Firing rates of {name}", (2.0, 1.8)) as axes:
            rates, share = 100 * layer, [100 / len(layer)] * len(layer)
            silent = 100 * (rates == 0).double().mean().item()
            axes.hist(rates.tolist(), bins=20, range=(0, max(1.0, rates.max().item())), weights=share, color=SNN)
            axes.axvline(rates.mean().item(), color=INK, linewidth=0.9)
            axes.set(title=f"{name}\nmean {rates.mean().item():.1f} %, silent {silent:.0f} %")
            axes.set(xlabel="firing rate, %", ylabel="neurons, %")
    return made


def coupling(contents: Contents) -> list[str]:
    """Counts against the ANN branch's activations, by layer, with the cosine between them."""
    T, made = contents.summary["T"], list[str]()
    for name, points in contents.points.items():
        with _picture(made, f"Counts of {name} against its activations", (2.0, 2.0)) as axes:
            axes.plot([0, T, 1.5 * T], [0, T, T], color=INK, linewidth=0.8)
            axes.plot(*points, ".", color=SNN, alpha=0.45, markersize=3, markeredgewidth=0)
            cosine = contents.summary["mismatch"][name]["cosine"]
            axes.set(title=f"{name}: cosine {cosine:.3f}", xlabel="activation ρ(z)/ϑ", ylabel="spike count")
            axes.set(xlim=(-0.05 * T, 1.5 * T), ylim=(-0.6, T + 0.6))
    return made


def example(contents: Contents) -> str:
    """The sample whose spikes the rasters show."""
    assert contents.example is not None
    made: list[str] = []
    with _picture(made, "The sample", (1.4, 1.4)) as axes:
        axes.imshow(contents.example.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.axis("off")
    return made[0]
