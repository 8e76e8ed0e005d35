"""A result as a table in the terminal and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import extra
from .case import OURS

_COLORS = {
    "frozen": "tab:blue",
    "tandem": "tab:cyan",
    "copy": "black",
    "ANN": "black",
    "naive": "tab:orange",
    "naive, loop compiled": "tab:red",
    "BPTT": "tab:purple",
    "SpikingJelly": "tab:green",
    "SpikingJelly, compiled": "limegreen",
    "snnTorch": "tab:brown",
}  # and the order in which they are listed


def amount(value: float, quantity: str) -> str:
    """A median, with its unit."""
    if quantity == "kept":
        return f"{value:.3g} B"
    if quantity == "peak":
        return f"{value / 2**20:.0f} MiB"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def rivals(row: dict[str, Any], but_base: bool = False) -> list[str]:
    return [name for name in _COLORS if name in row["values"] and not (but_base and name == row["base"])]


def rates(row: dict[str, Any]) -> str:
    """Spikes per step in percent / nonzero nibbles per byte, of the input and of each layer."""
    return ", ".join(f"{name} {100 * spikes:.1f}%/{nibbles:.2f}" for name, (spikes, nibbles) in row["rates"].items())


def answers(row: dict[str, Any]) -> str:
    """How far the answers differ from those of the reference."""
    compared = row.get("answers", {})
    if not compared:
        return "not compared"
    different = {name: d["spikes"] for name, d in compared.items() if d["spikes"]}
    text = "equal" if not different else ", ".join(f"{name} {d:.1e} differ" for name, d in different.items())
    gradients = [d["gradient"] for d in compared.values() if "gradient" in d]
    return text + (f"; gradients within {max(gradients):.0e}" if gradients else "")


def verdict(limit: dict[str, Any]) -> str:
    """What must be reached, what was, and whether that is enough."""
    text: str = limit["text"] + (" (×1.5, portable)" if limit["portable"] else "")
    if limit["met"] is None:
        return f"{text}: not measured"
    reached = limit["reached"]
    if limit["of"] is None and limit["quantity"] == "time":
        shown = amount(reached, "time")
    else:
        shown = f"{1 / reached:.1f}×" if "faster" in text else f"{reached:.2f}" + "×" * (limit["of"] is not None)
    return f"{text}: {shown} {'met' if limit['met'] else 'MISSED'}"


def show(result: dict[str, Any]) -> None:
    """Print the results, a small table for each case."""
    extra("rich", "the table of results")
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for row in result["rows"]:
        console.print(f"\n[bold]{row['case']}[/]: {row['title']}")
        console.print(f"[dim]spikes, nonzero nibbles per byte: {rates(row)}\nanswers: {answers(row)}")
        table = Table(box=None, show_header=False, padding=(0, 3, 0, 2))
        for justify in ("left", "right", "right", "left"):
            table.add_column(justify=justify)
        for name in rivals(row):
            ratio = row["ratios"][name]
            quartiles = f"[dim]{ratio['low']:.2f} .. {ratio['high']:.2f}"
            value = amount(median(row["values"][name]), row["quantity"])
            table.add_row(name, value, f"{ratio['median']:.2f}× {row['base']}", quartiles)
        console.print(table)
        for limit in row["limits"]:
            style = {True: "green", False: "red", None: "yellow"}[limit["met"]]
            console.print(f"  [{style}]{verdict(limit)}")
    clock = "process CPU time" if result["threads"] == 1 else "wall time"
    verdicts = [limit["met"] for row in result["rows"] for limit in row["limits"]]
    console.print(
        f"\n{result['threads']} thread(s), {clock}. Of {len(verdicts)} limits {verdicts.count(True)} are met, "
        f"{verdicts.count(False)} missed, {verdicts.count(None)} not measured."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """A picture: every rival's value relative to the base, one line per case."""
    extra("matplotlib", "the picture of results").use("agg")
    plt = extra("matplotlib.pyplot", "the picture of results")
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.3 * len(rows)), layout="constrained")
    for name, color in _COLORS.items():
        points = [
            (row["ratios"][name]["median"], i) for i, row in enumerate(rows) if name in rivals(row, but_base=True)
        ]
        if points:
            ours = name in OURS
            axes.scatter(*zip(*points, strict=True), color=color, label=name, s=50 if ours else 20, zorder=2 + ours)
    bars = False
    for i, row in enumerate(rows):
        for limit in row["limits"]:
            if limit["of"] == row["base"]:
                bars = True
                axes.plot([limit["at_most"]] * 2, [i - 0.4, i + 0.4], color="tab:blue", linewidth=1.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    quantities = {row["quantity"] for row in rows}
    what = " or ".join(["time"] * ("time" in quantities) + ["bytes"] * bool(quantities - {"time"}))
    copied = ", of the scan to a copy" * any(row["base"] == "copy" for row in rows)
    axes.set_xlabel(f"{what} relative to the ANN{copied}, log scale{'; bars: what must be reached' * bars}")
    axes.grid(alpha=0.3, axis="x")
    figure.suptitle(f"{result['machine'].get('cpu', '')}, {result['threads']} thread{'s' * (result['threads'] > 1)}")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)
