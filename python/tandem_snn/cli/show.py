"""Results as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..training.comparison import Comparison


def show_comparison(result: Comparison) -> None:
    recipe, seeds = result.recipe, len(result.runs)
    table = Table(title=f"{recipe.data}, {recipe.model}, T={recipe.T}, mean of {seeds} seed{'s' * (seeds > 1)}")
    table.add_column()
    for column in ("SNN", "ANN twin", "SNN / ANN"):
        table.add_column(column, justify="right")
    accuracy, twin = 100 * result.test_accuracy, 100 * result.ann_test_accuracy
    table.add_row("test accuracy", f"{accuracy:.2f} %", f"{twin:.2f} %", f"{accuracy - twin:+.2f} points")
    times = 1e3 * result.step_time, 1e3 * result.ann_step_time
    table.add_row("time per training step", f"{times[0]:.2f} ms", f"{times[1]:.2f} ms", f"{result.step_time_ratio:.2f}")
    table.add_row("synaptic operations", "", "", f"{result.synops_ratio:.2f}", end_section=True)
    for name, rate in result.firing_rates.items():
        layer = type(result.runs[0].snn.get_submodule(name)).__name__
        table.add_row(f"firing rate, layer {name} ({layer})", f"{100 * rate:.1f} %", "", "")
    Console().print(table)
