"""The pictures of the results page: the same results give the same bytes."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))
from runs import Result
from small import save

from tandem_snn.plots import ANN, SNN

_FEW = 3  # points from which on a curve says something
WIDE = (8.6, 4.2)  # inches, with names beside the axes


def draw_all(results: Sequence[Result], folder: Path) -> dict[str, str]:
    """Draws what these results of one data set give, into ``folder``.

    Returns:
        {file name: caption}, in the order of the page.
    """
    prefix = f"{results[0].recipe.data}-{results[0].recipe.task}"
    drawn: dict[str, str] = {}

    def add(
        kind: str, caption: str, draw: Callable[..., None], about: Any, size: tuple[float, float] = (6.4, 4.0)
    ) -> None:
        name = f"{prefix}-{kind}.png"
        with plt.rc_context({"font.size": 9}):
            figure, axes = plt.subplots(figsize=size, layout="constrained")
            draw(axes, about)
            save(figure, folder / name)
            plt.close(figure)
        drawn[name] = caption

    families = by_T(results)
    if any(len(family) >= _FEW for family in families):
        add("T", "Test metric against the number of time steps", _against_T, families)
    classified = [r for r in results if r.metric == "accuracy"]
    if len(classified) >= _FEW:
        add("synops", "Accuracy against synaptic operations", _against_synops, classified, WIDE)
    streamed = [r for r in results if r.over_time]
    if streamed:
        add("anytime", "The metric after each time step of one network", _anytime, streamed, WIDE)
    for result in results:
        if result.get("pictures") and _kinds(result):
            size = (result["pictures"]["shape"][0] + 1.0, 1.1 * len(_kinds(result)))
            caption = f"`{result.name}`: test images and their reconstructions"
            add(f"pictures-{result.name}", caption, _pictures, result, size)
    return drawn


def by_T(results: Iterable[Result]) -> list[list[Result]]:
    """Groups of results that differ in T and the start, each of at least two T, in their order; the largest first.

    Of several with the same T it is the one whose name is the shortest: the package's own recipe.
    """
    families: dict[str, dict[int, Result]] = {}
    for result in sorted(results, key=lambda r: -len(r.name)):
        families.setdefault(result.family().digest(), {})[result["T"]] = result
    found = [[family[T] for T in sorted(family)] for family in families.values() if len(family) > 1]
    return sorted(found, key=lambda family: (-len(family), family[0].settings_at_any_T))


def front(results: Iterable[Result]) -> list[Result]:
    """Those that no other beats in both accuracy and synaptic operations, by operations."""
    best: list[Result] = []
    for result in sorted(results, key=lambda r: (r["synops_ratio"], -r.value)):
        if not best or result.value > best[-1].value:
            best.append(result)
    return best


def _against_T(axes: Any, families: Sequence[Sequence[Result]]) -> None:
    """A line for each family, named by what is not said of all."""
    said = [family[0].settings_at_any_T.split(", ") for family in families]
    common = set.intersection(*map(set, said))
    for i, (family, settings) in enumerate(zip(families, said, strict=True)):
        name = ", ".join(["SNN", *(one for one in settings if one not in common)])
        steps = [r["T"] for r in family]
        axes.errorbar(steps, [r.value for r in family], [_std(r) for r in family], color=SNN, marker="osD^v"[i % 5],
                      linestyle=("-", "--", ":", "-.")[i % 4], label=name)  # fmt: skip
    twins = sorted({(r["T"], r.twin) for family in families for r in family if r.twin is not None})
    if twins:
        axes.plot(*zip(*twins, strict=True), color=ANN, marker="x", linestyle="", label="ANN twins")
    every = sorted({r["T"] for family in families for r in family})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(T) for T in every])
    _label(axes, "time steps T", families[0][0])


def _against_synops(axes: Any, results: Sequence[Result]) -> None:
    """Numbered by operations; the names stand beside the axes."""
    axes.margins(0.07)
    best = front(results)
    ordered = sorted(results, key=lambda r: (r["synops_ratio"], r.value))
    for i, result in enumerate(ordered, 1):
        color = SNN if result in best else "tab:gray"
        at = result["synops_ratio"], result.value
        axes.errorbar(*at, _std(result), color=color, marker="o", markersize=4)
        axes.annotate(str(i), at, (4, -9), textcoords="offset points", size=8, color=color)
        axes.plot([], [], " ", label=f"{i}  {result.name}")
    axes.plot([r["synops_ratio"] for r in best], [r.value for r in best], color=SNN, linewidth=1, label="front")
    twins = [r.twin for r in results if r.twin is not None]
    if twins:
        axes.axhspan(min(twins), max(twins), color=ANN, alpha=0.4, label="ANN twins")
    _label(axes, "synaptic operations, SNN / ANN", results[0], beside=True)


def _anytime(axes: Any, results: Sequence[Result]) -> None:
    for i, result in enumerate(results):
        assert result.over_time is not None
        steps = range(1, len(result.over_time) + 1)
        values = [_error(result, value) for value in result.over_time]
        axes.plot(steps, values, color=f"C{i % 10}", linestyle=("-", "--", ":")[i // 10 % 3], marker=".",
                  label=result.name)  # fmt: skip
    twins = [_error(r, r.twin) for r in results if r.twin is not None]
    if twins:
        axes.axhspan(min(twins), max(twins), color=ANN, alpha=0.4, label="ANN twins")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _label(axes, "time step t", results[0], beside=True)
    axes.set(yscale="log", ylabel="test error, %" if results[0].metric == "accuracy" else "test MSE")


def _std(result: Result) -> float:
    """The standard deviation over the seeds."""
    return float(result.get(f"test_{result.metric}_std") or 0)


def _error(result: Result, value: float) -> float:
    return 100 - value if result.metric == "accuracy" else value


def _label(axes: Any, x: str, result: Result, beside: bool = False) -> None:
    axes.set(xlabel=x, ylabel="test accuracy, %" if result.metric == "accuracy" else "test MSE")
    axes.grid(alpha=0.3)
    if beside:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, borderaxespad=0.0)
    else:
        axes.legend()


def _kinds(result: Result) -> list[str]:
    return [name for name in result["pictures"] if name != "shape"]


def _pictures(axes: Any, result: Result) -> None:
    rows = []
    for kind in _kinds(result):
        levels = np.frombuffer(base64.b64decode(result["pictures"][kind]), np.uint8)
        images = levels.reshape(result["pictures"]["shape"])  # [N, C, H, W]
        rows.append(np.concatenate(list(images.transpose(0, 2, 3, 1)), axis=1))
    picture = np.concatenate(rows)
    axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
    height = rows[0].shape[0]
    axes.set_xticks([])
    axes.set_yticks([(i + 0.5) * height for i in range(len(rows))], _kinds(result))
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
