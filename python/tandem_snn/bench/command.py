"""``tandem-snn bench``: the command and its table."""

from __future__ import annotations

import json
import shlex
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..machine import origin
from .measure import choose, measure, ratio


def bench(
    case: Annotated[
        Optional[list[str]],  # noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)
        typer.Option(help="Only cases of this name; wildcards are allowed, and the option may be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(help="1: process CPU time; 2 or more: wall time.", min=1)] = 1,
    quick: Annotated[bool, typer.Option(help="Few samples, without compiled rivals.")] = False,
    out: Annotated[Path, typer.Option(help="The result as JSON.")] = Path("runs/bench/bench.json"),
    list_cases: Annotated[bool, typer.Option("--list", help="Print the names of the cases.")] = False,
) -> None:
    """Compare this package with the ANN, plain PyTorch and other libraries, print a table, write JSON.

    The machine should be idle. All cases take about half an hour, with --quick a few minutes.
    """
    cases = choose(case or [])
    if list_cases:
        print("\n".join(f"{c.name:24} {c.title}" for c in cases))
        return
    options = [*(part for name in case or [] for part in ("--case", name)), "--threads", str(threads)]
    command = shlex.join(["tandem-snn", "bench", *options, *["--quick"] * quick, "--out", str(out)])
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    result = origin(command) | {"date": date, "threads": threads, "quick": quick, "rows": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    for i, chosen in enumerate(cases, 1):
        typer.echo(f"{i} of {len(cases)}: {chosen.title}", err=True)
        try:
            result["rows"].append(measure(chosen, threads, quick))
        except subprocess.CalledProcessError as error:
            raise UserError(f"measuring {chosen.name} failed with status {error.returncode}, see above") from error
        # After every case, since all of them take long.
        out.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    show(result)


def show(result: dict[str, Any]) -> None:
    """Print the results, a small table for each case."""
    console = Console(highlight=False)
    for row in result["rows"]:
        console.print(f"\n[bold]{row['case']}[/]: {row['title']}")
        console.print(f"[dim]spikes, nonzero nibbles per byte: {rates(row)}\nanswers: {answers(row)}")
        table = Table(box=None, show_header=False, padding=(0, 3, 0, 2))
        for justify in ("left", "right", "right", "left"):
            table.add_column(justify=justify)
        for name, values in row["values"].items():
            found = ratio(row, name)
            quartiles = f"[dim]{found['low']:.2f} .. {found['high']:.2f}"
            table.add_row(
                name, amount(median(values), row["quantity"]), f"{found['median']:.2f}× {row['base']}", quartiles
            )
        console.print(table)
    clock = "process CPU time" if result["threads"] == 1 else "wall time"
    console.print(f"\n{result['threads']} thread(s), {clock}.")


def amount(value: float, quantity: str) -> str:
    """A median, with its unit."""
    if quantity == "kept":
        return f"{value:.3g} B"
    if quantity == "peak":
        return f"{value / 2**20:.0f} MiB"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def rates(row: dict[str, Any]) -> str:
    """Spikes per step in percent / nonzero nibbles per byte, of the input and of each layer."""
    return ", ".join(f"{name} {100 * spikes:.1f}%/{nibbles:.2f}" for name, (spikes, nibbles) in row["rates"].items())


def answers(row: dict[str, Any]) -> str:
    """Differences between the answers and the reference's, in words."""
    compared = row.get("answers", {})
    if not compared:
        return "not compared"
    different = {name: d["spikes"] for name, d in compared.items() if d["spikes"]}
    text = "equal" if not different else ", ".join(f"{name} {d:.1e} differ" for name, d in different.items())
    gradients = [d["gradient"] for d in compared.values() if "gradient" in d]
    return text + (f"; gradients within {max(gradients):.0e}" if gradients else "")
