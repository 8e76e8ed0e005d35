"""Results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from torch import nn

from ..measure import Mismatch
from ..training.comparison import Comparison


def show_comparison(result: Comparison) -> None:
    recipe, seeds = result.recipe, len(result.runs)
    accuracy, twin = 100 * result.test_accuracy, 100 * result.ann_test_accuracy
    times = 1e3 * result.step_time, 1e3 * result.ann_step_time
    rows = [
        ("test accuracy", f"{accuracy:.2f} %", f"{twin:.2f} %", f"{accuracy - twin:+.2f} points"),
        ("time per training step", f"{times[0]:.2f} ms", f"{times[1]:.2f} ms", f"{result.step_time_ratio:.2f}"),
        ("synaptic operations", "", "", f"{result.synops_ratio:.2f}"),
    ]
    title = f"{recipe.data}, {recipe.model}, T={recipe.T}, mean of {seeds} seed{'s' * (seeds > 1)}"
    show_networks(title, rows)
    show_layers(result.runs[0].snn, result.firing_rates)


def show_networks(title: str, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Each row is (what, of the SNN, of its twin, compared)."""
    table = Table(title=title)
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
