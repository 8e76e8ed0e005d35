"""``tandem-snn train``: an SNN and its ANN twin by the same recipe; ``tandem-snn sweep``: many recipes in turn."""

from __future__ import annotations

import inspect
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin

import typer
from rich.console import Console
from rich.table import Table

from ..container import atomically
from ..errors import Interrupted, UserError
from ..report import tables
from ..training.processes import Interruption, launched
from ..training.recipe import Recipe, describe, list_recipes, load_recipe, type_hints
from .job import check_device, finished, run

# typer reads annotations at run time, on Python 3.10 too: hence Optional.
# ruff: noqa: UP045

DataDir = Annotated[Optional[Path], typer.Option(help="Folder with the data sets' files.", envvar="TANDEM_DATA")]
Settings = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for any key; the key's own option wins."),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.", min=0)]
Workers = Annotated[int, typer.Option(help="Processes that decode image files (imagenet); 0: this one.", min=0)]
Twin = Annotated[bool, typer.Option(help="Train the ANN twin as well.")]


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each key of a recipe, as :class:`Recipe` declares it; ``command`` gets those that
    were given as keyword arguments. Lists are given with commas, or by an option for each item.
    """

    def run(**given: Any) -> None:
        keys = {name: given.pop(name) for name in options}
        keys = {name: value for name, value in keys.items() if value not in (None, [])}
        lists = {name: ",".join(value).split(",") for name, value in keys.items() if isinstance(value, list)}
        command(**given, **keys | lists)

    options = {}
    for one in fields(Recipe):
        hint = type_hints()[one.name]
        kind, *_ = get_args(hint) if get_origin(hint) not in (None, tuple, dict) else (hint,)
        if get_origin(kind) is dict:
            continue  # --set options.NAME=VALUE
        kind = list[str] if get_origin(kind) is tuple else kind
        flag = "--" + one.name.replace("_", "-")
        flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        option = typer.Option(flags, help=one.metadata["help"], rich_help_panel="Recipe", show_default=False)
        options[one.name] = inspect.Parameter(
            one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Optional[kind], option]
        )
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "keys"]
    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature([*own, *options.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *options.values())}
    return run


@with_recipe_options
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")] = "digits",
    settings: Settings = None,
    data_dir: DataDir = None,
    twin: Twin = True,
    device: Device = "cpu",
    threads: Threads = 0,
    workers: Workers = 0,
    out: Annotated[Optional[Path], typer.Option(help="Folder of the results (default: runs/RECIPE).")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run in the folder; with the same number of threads it ends with bit-identical weights. "
            "With another number of --epochs training continues from the step reached, by the schedule of the new "
            "number. With more --seeds, these are added. Paths, device, threads and workers may change, nothing else.",
        ),
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an unfinished run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also discard a finished run in the folder.")] = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.", min=0)] = 60.0,
    checkpoint_steps: Annotated[Optional[int], typer.Option(help="Steps between checkpoints.", min=1)] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="Print the recipes of the package.")] = False,
    **keys: Any,
) -> None:
    """Train an SNN and its ANN twin, compare them, write the results.

    Without options: a small convolutional network on scikit-learn's handwritten digits, T=8, three seeds, one minute.
    Ctrl-C finishes the step and writes a checkpoint, from which --resume continues. Under torchrun the processes share
    each batch.
    """
    if list_recipes:
        show_recipes()
        return
    folder = out if out is not None else Path("runs") / Path(recipe).stem
    chosen, command = load_recipe(recipe).override(settings or [], **keys), ["tandem-snn", *sys.argv[1:]]
    summary = run(
        chosen, folder, shlex.join(command), twin=twin, data_dir=data_dir, device=device, threads=threads,
        workers=workers, resume=resume, restart=restart, overwrite=overwrite, train_on=resume,
        seconds=checkpoint_seconds, steps=checkpoint_steps, tensorboard=tensorboard,
    )  # fmt: skip
    if summary is not None:
        Console().print(*tables(summary), sep="\n")
        typer.echo(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())))


def show_recipes() -> None:
    """The recipes of the package."""
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name in list_recipes():
        recipe = load_recipe(name)
        network = recipe.model + ("" if recipe.width == 1 else f" × {recipe.width:g}")
        numbers = f"T={recipe.T}, {recipe.epochs} epochs, {recipe.seeds} seed{'s' * (recipe.seeds > 1)}"
        table.add_row(name, f"{describe(name)}\n[dim]{recipe.data}, {network}, {numbers}[/]")
    Console().print(table)


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
