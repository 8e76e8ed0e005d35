"""``tandem-snn sweep``: many recipes, or variants of them, one after another. It resumes after an interruption."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..container import atomically
from ..errors import Interrupted, UserError
from ..training.library import list_recipes, load_recipe
from ..training.processes import Interruption, launched
from .job import check_device, finished, run
from .train import DataDir, Device, Settings, Threads, Twin, Workers

# ruff: noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)

ALL, TWINS, RESULTS = "all", "twins", "results"


@dataclass(frozen=True)
class Entry:
    """One run of a sweep: a recipe, and its changed keys."""

    recipe: str
    settings: tuple[str, ...]
    varied: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the run's folder and result.

        >>> Entry("mnist", ("epochs=5",), ("T=4", "gamma=2")).name
        'mnist+T=4+gamma=2'
        """
        return "+".join([Path(self.recipe).stem, *self.varied]).replace("/", "_")

    @property
    def changes(self) -> tuple[str, ...]:
        return self.settings + self.varied

    def command(self, twin: bool) -> str:
        changed = [part for setting in self.changes for part in ("--set", setting)]
        return shlex.join(["tandem-snn", "train", self.recipe, *changed, *["--no-twin"] * (not twin)])


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
    entries = list(_entries(names, fixed, vary or []))
    recipes = [load_recipe(entry.recipe).override(entry.changes) for entry in entries]
    kept = out / RESULTS if results is None else results
    failed = []
    with Interruption() as interruption:
        for i, (entry, recipe) in enumerate(zip(entries, recipes, strict=True), 1):
            if interruption.signal is not None:
                raise Interrupted(f"stopped before {entry.name}: the same command resumes", interruption.signal)
            folder = out / entry.name
            try:
                done = finished(folder, recipe, twin) is not None
                typer.echo(f"{i} of {len(entries)}: {entry.name}{': finished' if done else ''}", err=not list_runs)
                if list_runs:
                    continue
                summary = run(
                    recipe, folder, entry.command(twin), twin=twin, twins=out / TWINS, data_dir=data_dir,
                    device=device, threads=threads, workers=workers, resume=True, interruption=interruption,
                )  # fmt: skip
                kept.mkdir(parents=True, exist_ok=True)
                text = json.dumps(summary, separators=(",", ":")) + "\n"  # one line, since results are committed
                atomically(kept / f"{entry.name}.json", partial(Path.write_text, data=text))
            except UserError as error:
                failed += [entry.name] * (not list_runs)
                typer.echo(f"{entry.name}: {error}", err=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(entries)} runs failed: {', '.join(failed)}")


def _entries(names: Sequence[str], settings: Sequence[str], vary: Sequence[str]) -> Iterator[Entry]:
    """Every combination of recipe and varied values."""
    choices = []
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not all(values.split(",")):
            raise UserError(f"--vary {text}: expected KEY=V1,V2,...")
        choices.append([f"{key}={value}" for value in values.split(",")])
    recipes = [r for name in names for r in (list_recipes() if name == ALL else [name])]
    seen: dict[str, Entry] = {}
    for recipe, varied in itertools.product(recipes, itertools.product(*choices)):
        entry = Entry(recipe, tuple(settings), varied)
        if seen.setdefault(entry.name, entry) != entry:
            raise UserError(f"two runs would have the name {entry.name}: use two sweeps, each with its own --out")
    yield from seen.values()
