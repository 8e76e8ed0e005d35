"""Results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from torch import nn

from ..measure import Mismatch
from ..measure.interval import points
from ..training.comparison import Comparison
from ..training.library import describe, list_recipes, load_recipe
from ..training.recipe import CONTINUED

OPERATIONS = "operations at inference"
CAPTION = (
    "Accuracies: difference in points, [95 % by the number of test samples]. Time: on this machine. Operations: one "
    "per spike and synapse it reaches, over the twin's multiply-accumulates: it tells of hardware that works per spike."
)


def show_comparison(result: Comparison) -> None:
    recipe, seeds, measures = result.recipe, len(result.runs), result.measures
    assert measures is not None
    times = {kind: 1e3 * seconds for kind, seconds in measures.step_times.items()}
    ratio = "" if measures.step_time_ratio is None else f"{measures.step_time_ratio:.2f}"
    ann = result.test("ANN") if "ANN" in result.kinds else None
    rows = [compared(result.metric, result.test("SNN"), ann, result.samples["test"])]
    if CONTINUED in result.kinds:
        longer = compared(result.metric, result.test("SNN"), result.test(CONTINUED), result.samples["test"])
        rows.append(("the twin, trained as long", "", *longer[2:]))
    rows += [
        ("time per training step", f"{times['SNN']:.2f} ms", f"{times['ANN']:.2f} ms" if "ANN" in times else "", ratio),
        (OPERATIONS, "", "", f"{measures.synops_ratio:.2f}"),
    ]
    title = f"{recipe.data}, {recipe.model}, T={recipe.T}, mean of {seeds} seed{'s' * (seeds > 1)}"
    show_networks(title, rows)
    show_layers(result.runs[0].nets["SNN"], measures.firing_rates)


def compared(metric: str, snn: float, ann: float | None, samples: int) -> tuple[str, str, str, str]:
    """The row of the test metric: accuracies in percent and their difference in points, errors and their ratio."""
    if metric == "accuracy":
        difference = "" if ann is None else points(snn, ann, samples)
        return "test accuracy", f"{100 * snn:.2f} %", "" if ann is None else f"{100 * ann:.2f} %", difference
    return (
        f"test {metric}",
        f"{snn:.5f}",
        "" if ann is None else f"{ann:.5f}",
        "" if ann is None else f"{snn / ann:.3f}",
    )


def show_recipes() -> None:
    """The recipes of the package."""
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name in list_recipes():
        recipe = load_recipe(name)
        network = recipe.model + ("" if recipe.width == 1 else f" × {recipe.width:g}")
        numbers = f"T={recipe.T}, {recipe.epochs} epochs, {recipe.seeds} seed{'s' * (recipe.seeds > 1)}"
        table.add_row(name, f"{describe(name)}\n[dim]{recipe.data}, {network}, {numbers}[/]")
    Console().print(table)


def show_networks(title: str, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Each row is (what, of the SNN, of its twin, compared)."""
    table = Table(title=title, caption=CAPTION, caption_justify="left")
    table.add_column()
    for column in ("SNN", "ANN twin", "SNN / ANN"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_layers(net: nn.Module, rates: Mapping[str, float], matches: Mapping[str, Mismatch] | None = None) -> None:
    """Firing rates and, where measured, how well the counts c follow the ANN branch's activation a."""
    table = Table(title="layers with neurons")
    table.add_column("layer")
    for column in ("firing rate", *(("cosine of c and a", "c as expected") if matches else ())):
        table.add_column(column, justify="right")
    for name, rate in rates.items():
        match = matches.get(name) if matches else None
        cells = [f"{match.cosine:.3f}", f"{100 * match.exact:.1f} %"] if match else []
        table.add_row(f"{name} ({type(net.get_submodule(name)).__name__})", f"{100 * rate:.1f} %", *cells)
    Console().print(table)
