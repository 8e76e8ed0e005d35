"""``tandem-snn bench``: this package against the ANN, plain PyTorch and other libraries."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import UserError


def bench(
    case: Annotated[
        Optional[list[str]],  # noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)
        typer.Option(help="Only cases of this name; wildcards are allowed, and the option may be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(help="1: process CPU time; 2 or more: wall time.", min=1)] = 1,
    quick: Annotated[bool, typer.Option(help="Few samples, and nothing that has to be compiled first.")] = False,
    out: Annotated[Path, typer.Option(help="The result as JSON; a picture is drawn beside it.")] = Path(
        "runs/bench/bench.json"
    ),
    list_cases: Annotated[bool, typer.Option("--list", help="Print the names of the cases.")] = False,
) -> None:
    """Measure every case of the performance contract, print whether it is met, write JSON and a picture.

    The machine should be otherwise idle. All of it takes about half an hour, with --quick a few minutes.
    """
    from .run import choose, describe, measure
    from .show import draw, show

    cases = choose(case or [])
    if list_cases:
        print("\n".join(f"{c.name:24} {c.title}" for c in cases))
        return
    options = [*(part for name in case or [] for part in ("--case", name)), "--threads", str(threads)]
    command = shlex.join(["tandem-snn", "bench", *options, *["--quick"] * quick, "--out", str(out)])
    result = describe(command, threads, quick)
    out.parent.mkdir(parents=True, exist_ok=True)
    for i, chosen in enumerate(cases, 1):
        typer.echo(f"{i} of {len(cases)}: {chosen.title}", err=True)
        try:
            result["rows"].append(measure(chosen, threads, quick))
        except subprocess.CalledProcessError as error:
            raise UserError(f"measuring {chosen.name} failed with status {error.returncode}, see above") from error
        out.write_text(json.dumps(result, indent=1) + "\n")  # after every case: all of them take long
    draw(result, out.with_suffix(".png"))
    show(result)
