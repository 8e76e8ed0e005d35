"""``tandem-snn train``: an SNN and its ANN twin by the same recipe."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin

import typer
from rich.console import Console
from rich.table import Table

from ..report import tables
from ..training import recipe as recipes
from ..training.recipe import Recipe, type_hints
from .job import run

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
    chosen, command = recipes.load_recipe(recipe).override(settings or [], **keys), ["tandem-snn", *sys.argv[1:]]
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
    for name in recipes.list_recipes():
        recipe = recipes.load_recipe(name)
        network = recipe.model + ("" if recipe.width == 1 else f" × {recipe.width:g}")
        numbers = f"T={recipe.T}, {recipe.epochs} epochs, {recipe.seeds} seed{'s' * (recipe.seeds > 1)}"
        table.add_row(name, f"{recipes.describe(name)}\n[dim]{recipe.data}, {network}, {numbers}[/]")
    Console().print(table)
