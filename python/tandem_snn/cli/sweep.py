"""``tandem-snn sweep``: many recipes, or variants of them, one after another. It resumes after an interruption."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..container import atomically
from ..errors import Interrupted, UserError
from ..training.processes import Interruption, launched
from ..training.recipe import Recipe, list_recipes, load_recipe
from .job import check_device, finished, run
from .train import DataDir, Device, Settings, Threads, Twin, Workers

# ruff: noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)

ALL, TWINS, RESULTS = "all", "twins", "results"


def sweep(
    names: Annotated[list[str], typer.Argument(help="Recipes: names, YAML files, or all.")],
    settings: Settings = None,
    vary: Annotated[
        Optional[list[str]],
        typer.Option(metavar="KEY=V1,V2,...", help="A run for each value; given twice, for each combination."),
    ] = None,
    seeds: Annotated[Optional[int], typer.Option(help="Number of runs of each (default: the recipe's).")] = None,
    twin: Twin = True,
    data_dir: DataDir = None,
    device: Device = "cpu",
    threads: Threads = 0,
    workers: Workers = 0,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    results: Annotated[
        Optional[Path], typer.Option(help=f"Folder of one JSON file per run (default: OUT/{RESULTS}).")
    ] = None,
    list_runs: Annotated[bool, typer.Option("--list", help="Print the runs, and which are finished.")] = False,
) -> None:
    """Run recipes one after another, each with its ANN twin, and write a JSON file for each.

    Finished runs are not repeated and interrupted runs resume, so the same command continues a sweep. Runs that differ
    only in their neurons share one twin. If a run fails, the error is printed and the others still run.

    Example, accuracy against synaptic operations: tandem-snn sweep mnist --vary gamma=1,2,3 --vary T=4,8
    """
    if launched():
        raise UserError("sweep: one process runs the recipes; under torchrun use `tandem-snn train`")
    fixed = [*(settings or []), *([] if seeds is None else [f"seeds={seeds}"])]
    check_device(device)
    runs = _runs(names, fixed, vary or [], twin)
    kept = out / RESULTS if results is None else results
    failed = []
    with Interruption() as interruption:
        for i, (name, (recipe, command)) in enumerate(runs.items(), 1):
            if interruption.signal is not None:
                raise Interrupted(f"stopped before {name}: the same command resumes", interruption.signal)
            folder = out / name
            try:
                done = finished(folder, recipe, twin) is not None
                typer.echo(f"{i} of {len(runs)}: {name}{': finished' if done else ''}", err=not list_runs)
                if list_runs:
                    continue
                summary = run(
                    recipe, folder, command, twin=twin, twins=out / TWINS, data_dir=data_dir,
                    device=device, threads=threads, workers=workers, resume=True, interruption=interruption,
                )  # fmt: skip
                kept.mkdir(parents=True, exist_ok=True)
                text = json.dumps(summary, separators=(",", ":")) + "\n"  # one line, since results are committed
                atomically(kept / f"{name}.json", partial(Path.write_text, data=text))
            except UserError as error:
                failed += [name] * (not list_runs)
                typer.echo(f"{name}: {error}", err=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def _runs(
    names: Sequence[str], settings: Sequence[str], vary: Sequence[str], twin: bool
) -> dict[str, tuple[Recipe, str]]:
    """Every combination of recipe and varied values, and the command that trains it, by the name of its folder."""
    choices = []
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not all(values.split(",")):
            raise UserError(f"--vary {text}: expected KEY=V1,V2,...")
        choices.append([f"{key}={value}" for value in values.split(",")])
    recipes = [r for name in names for r in (list_recipes() if name == ALL else [name])]
    chosen: dict[str, tuple[str, list[str]]] = {}
    for recipe, varied in itertools.product(recipes, itertools.product(*choices)):
        name, one = "+".join([Path(recipe).stem, *varied]).replace("/", "_"), (recipe, [*settings, *varied])
        if chosen.setdefault(name, one) != one:
            raise UserError(f"two runs would have the name {name}: use two sweeps, each with its own --out")

    def command(recipe: str, changes: Sequence[str]) -> str:
        options = [part for change in changes for part in ("--set", change)] + ["--no-twin"] * (not twin)
        return shlex.join(["tandem-snn", "train", recipe, *options])

    return {
        name: (load_recipe(one).override(changes), command(one, changes)) for name, (one, changes) in chosen.items()
    }
