"""The commands, put together."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import tandem_ext

from ..bench.command import bench
from .evaluate import evaluate
from .export import export
from .info import info
from .report import report
from .sweep import sweep
from .train import train


def _plain(parameters: list[Any]) -> list[Any]:
    """Flags take no value, so help shows none."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tandem-snn {tandem_ext.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Group,
    help="Train spiking neural networks with the tandem learning rule, beside the ANN they are.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for name, command in (
    ("train", train), ("sweep", sweep), ("eval", evaluate), ("report", report), ("export", export), ("bench", bench),
    ("info", info),
):  # fmt: skip
    app.command(name, cls=Command)(command)
