"""Figures of a report, as SVG whose colours and fonts are the page's: it may be light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import extra
from .contents import Contents

# Stand-ins that matplotlib draws with, and what they become on the page.
_COLOURS = {"#010101": "currentColor", "#020202": "var(--line)", "#030303": "var(--snn)", "#040404": "var(--ann)"}
INK, LINE, SNN, ANN = _COLOURS
KINDS = {"SNN": SNN, "ANN": ANN}
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


def _svg(title: str, shape: tuple[int, int], size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """The figure with ``draw(axes)``, axes being an array of that shape, of ``size`` inches each."""
    matplotlib = extra("matplotlib", "the report")
    matplotlib.use("agg")
    plt = extra("matplotlib.pyplot", "the report")
    rows, columns = shape
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure, axes = plt.subplots(
            rows, columns, figsize=(columns * size[0], rows * size[1]), layout="constrained", squeeze=False
        )
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for drawn, shown in _COLOURS.items():
        svg = svg.replace(drawn, shown)
    # The page has one namespace: names that nothing refers to go, the others are digests of what they name.
    used = set(re.findall(r'#(\w+)[")]', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    widest = f"max-width:{140 * columns * size[0]:.0f}px"  # letters no larger than the text's
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}" style="{widest}"', 1)


def _log(axes: Any) -> None:
    """A logarithmic axis upwards, with numbers where it spans less than two decades too."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 50 * low else (1,)
    axes.yaxis.set_major_locator(extra("matplotlib.ticker", "the report").LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _grid(count: int) -> tuple[int, int]:
    columns = min(4, count)
    return math.ceil(count / columns), columns


def _panels(axes: Any, names: Sequence[str]) -> list[tuple[Any, str]]:
    """(axes, layer's name) for each layer; what is left of the grid disappears."""
    flat = list(axes.flat)
    for rest in flat[len(names) :]:
        rest.remove()
    return list(zip(flat, names, strict=False))


def learning_curves(contents: Contents) -> str:
    """Loss, and the metric on the validation split where there is one, by epoch; one line per seed."""
    metric, validation = contents.metric, contents.recipe["validation"]
    keys = [("loss", "training loss")]
    if metric == "accuracy" or validation:
        split = "validation" if validation else "training"
        unit = ", %" if metric == "accuracy" else ""
        keys.append((f"validation_{metric}" if validation else metric, f"{split} {metric}{unit}"))

    def draw(axes: Any) -> None:
        for ax, (key, label) in zip(axes.flat, keys, strict=True):
            unit = 100 if label.endswith("%") else 1
            for kind, runs in contents.histories.items():
                for i, history in enumerate(runs):
                    values = [unit * record[key] for record in history]
                    epochs = range(1, len(values) + 1)
                    ax.plot(epochs, values, color=KINDS[kind], alpha=0.85, label=None if i else kind)
            ax.set(xlabel="epoch", ylabel=label)
            if unit == 1:
                _log(ax)
                ax.legend()
            else:
                low = min(record[key] for runs in contents.histories.values() for h in runs for record in h[-1:])
                margin = max(0.3, 100 - 100 * low)
                ax.set_ylim(max(0.0, 100 - 6 * margin), 100 + 0.2 * margin)

    return _svg("Learning curves", (1, len(keys)), (3.9, 2.5), draw)


def over_time(contents: Contents) -> str:
    """The metric after each step, against the steps and against the operations; early exit; the twin as a level."""
    found = contents.over_time
    assert found is not None
    accuracy = contents.metric == "accuracy"
    unit, label = (100.0, "test accuracy, %") if accuracy else (1.0, f"test {contents.metric}")
    twin = contents.summary.get(f"ann_test_{contents.metric}")
    steps = range(1, len(found.metric) + 1)
    values = [unit * value for value in found.metric]
    spent = [operations / contents.ann_operations for operations in found.operations]

    def draw(axes: Any) -> None:
        left, right = axes.flat
        left.plot(steps, values, "o-", color=SNN, markersize=3.5, label="after so many steps")
        exits = sorted(found.exits, key=lambda e: e.steps)
        if exits:
            left.plot([e.steps for e in exits], [unit * e.accuracy for e in exits], "s--", color=SNN, alpha=0.55,
                      markersize=3, linewidth=0.9, label="stopping when sure (mean)")  # fmt: skip
        left.set(xlabel="time steps", ylabel=label)
        right.plot(spent, values, "o-", color=SNN, markersize=3.5)
        right.set(xlabel="synaptic operations / the ANN's", ylabel=label, xlim=(0, 1.06 * max(1.0, *spent)))
        if twin is not None:
            for ax in (left, right):
                ax.axhline(twin, color=ANN, linewidth=1.2, label="ANN twin")
            right.plot([1], [twin], "D", color=ANN, markersize=5)
        if accuracy:  # closer to the top
            best = max(*values, twin or 0.0)
            right.set_ylim(max(0.0, best - 8 * max(1.0, 100 - best)), min(100.5, best + max(1.0, 100 - best)))
        else:
            for ax in (left, right):
                _log(ax)
        left.legend(loc="lower right" if accuracy else "upper right")

    return _svg("Quality against time", (1, 2), (3.9, 2.6), draw)


def rasters(contents: Contents, neurons: int = 120) -> str:
    """The spikes of one sample: a mark per neuron and step, evenly spaced neurons of each layer."""

    def draw(axes: Any) -> None:
        for ax, name in _panels(axes, list(contents.rasters)):
            spikes = contents.rasters[name]
            T, N = spikes.shape
            shown = spikes[:, :: math.ceil(N / neurons)]
            steps, which = shown.nonzero(as_tuple=True)
            ax.scatter(steps.tolist(), which.tolist(), s=9, marker="|", color=SNN, linewidths=1.1)
            ax.set(title=f"{name}, {N:,} neurons", xlabel="step", xlim=(-0.6, T - 0.4), ylim=(-2, shown.shape[1] + 1))
            ax.set_yticks([])
            ax.grid(False)

    return _svg("Spikes of one sample", _grid(len(contents.rasters)), (2.0, 2.2), draw)


def rate_histograms(contents: Contents) -> str:
    """How many neurons fire how often, by layer."""

    def draw(axes: Any) -> None:
        for ax, name in _panels(axes, list(contents.rates)):
            rates = 100 * contents.rates[name]
            silent = 100 * (rates == 0).double().mean().item()
            share = [100 / len(rates)] * len(rates)
            ax.hist(rates.tolist(), bins=20, range=(0, max(1.0, rates.max().item())), weights=share, color=SNN)
            ax.axvline(rates.mean().item(), color=INK, linewidth=0.9)
            ax.set(title=f"{name}\nmean {rates.mean().item():.1f} %, silent {silent:.0f} %", xlabel="firing rate, %")
        for row in axes:
            row[0].set_ylabel("neurons, %")

    return _svg("Firing rates", _grid(len(contents.rates)), (2.0, 1.8), draw)


def coupling(contents: Contents) -> str:
    """Counts against the ANN branch's activations, by layer, with the cosine between them."""
    T = contents.summary["T"]
    jitter = [0.6 * ((i * 0.618034) % 1 - 0.5) for i in range(max(len(c) for _, c in contents.points.values()))]

    def draw(axes: Any) -> None:
        for ax, name in _panels(axes, list(contents.points)):
            a, counts = (values.tolist() for values in contents.points[name])
            y = [count + shift for count, shift in zip(counts, jitter, strict=False)]
            ax.plot([0, T, 1.5 * T], [0, T, T], color=INK, linewidth=0.8)
            ax.plot(a, y, ".", color=SNN, alpha=0.45, markersize=3, markeredgewidth=0)
            ax.set(title=f"{name}: cosine {contents.matches[name].cosine:.3f}", xlabel="activation ρ(z)/ϑ")
            ax.set(xlim=(-0.05 * T, 1.5 * T), ylim=(-0.6, T + 0.6))
        for row in axes:
            row[0].set_ylabel("spike count")

    return _svg("Counts against activations", _grid(len(contents.points)), (2.0, 2.0), draw)


def example(contents: Contents) -> str:
    """The sample of the rasters."""

    def draw(axes: Any) -> None:
        assert contents.example is not None
        axes[0, 0].imshow(contents.example.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0, 0].axis("off")

    return _svg("The sample", (1, 1), (1.4, 1.4), draw)
