"""The commands, put together."""

from __future__ import annotations

import typer

from ..bench.cli import bench
from .evaluate import evaluate
from .export import export
from .info import info
from .report import report
from .sweep import sweep
from .train import train

app = typer.Typer(
    help="Train spiking neural networks with the tandem learning rule, beside the ANN they are.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(train)
app.command()(sweep)
app.command("eval")(evaluate)
app.command()(report)
app.command()(export)
app.command()(bench)
app.command()(info)
