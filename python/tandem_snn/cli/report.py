"""``tandem-snn report``: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .train import DataDir


def report(
    run: Annotated[Path, typer.Argument(help="Folder that `tandem-snn train` wrote.")],
    out: Annotated[Optional[Path], typer.Option(help="The file (default: RUN/report.html).")] = None,  # noqa: UP045
    data_dir: DataDir = None,
) -> None:
    """Write one self-contained HTML page about a run: curves, confusions, spikes, rates, accuracy against time."""
    from ..report import write_report

    typer.echo(write_report(run, out, data_dir))
