"""``tandem-snn train``: an SNN and its ANN twin by the same recipe, and the tables that compare them."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin

import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from ..measure import Mismatch
from ..measure.quality import points
from ..training import Comparison, library
from ..training.recipe import CONTINUED, Recipe, type_hints
from .job import Job, outputs, run

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
    chosen, command = library.load_recipe(recipe).override(settings or [], **keys), ["tandem-snn", *sys.argv[1:]]
    job = Job(
        chosen, folder, shlex.join(command), twin,
        data_dir=data_dir, device=device, threads=threads, workers=workers, resume=resume, restart=restart,
        overwrite=overwrite, train_on=resume, checkpoint_seconds=checkpoint_seconds, checkpoint_steps=checkpoint_steps,
        tensorboard=tensorboard,
    )  # fmt: skip
    result = run(job)
    if result.measures is not None:
        show_comparison(result)
        typer.echo(f"{folder}: " + ", ".join(outputs(folder)))


OPERATIONS = "operations at inference"
CAPTION = (
    "Accuracies: difference in points, [95 % interval by the number of test samples]. Time: on this machine. "
    "Operations: one per spike and synapse it reaches / the twin's multiply-accumulates, an estimate for event-driven "
    "hardware."
)


def show_comparison(result: Comparison) -> None:
    recipe, seeds, measures = result.recipe, len(result.runs), result.measures
    assert measures is not None
    ann_time = f"{measures['ann_step_time_ms']:.2f} ms" if "ann_step_time_ms" in measures else ""
    ratio = f"{measures['step_time_ratio']:.2f}" if "step_time_ratio" in measures else ""
    ann = result.test("ANN") if "ANN" in result.kinds else None
    rows = [compared(result.metric, result.test("SNN"), ann, result.samples["test"])]
    if CONTINUED in result.kinds:
        longer = compared(result.metric, result.test("SNN"), result.test(CONTINUED), result.samples["test"])
        rows.append(("the twin, trained as long", "", *longer[2:]))
    rows += [
        ("time per training step", f"{measures['step_time_ms']:.2f} ms", ann_time, ratio),
        (OPERATIONS, "", "", f"{measures['synops_ratio']:.2f}"),
    ]
    title = f"{recipe.data}, {recipe.model}, T={recipe.T}, mean of {seeds} seed{'s' * (seeds > 1)}"
    show_networks(title, rows)
    show_layers(result.runs[0].nets["SNN"], measures["firing_rates"])


def compared(metric: str, snn: float, ann: float | None, samples: int) -> tuple[str, str, str, str]:
    """The row of the test metric: accuracies in percent and their difference in points, errors and their ratio."""
    accuracy, label = metric == "accuracy", f"test {metric}"

    def shown(value: float) -> str:
        return f"{100 * value:.2f} %" if accuracy else f"{value:.5f}"

    if ann is None:
        return label, shown(snn), "", ""
    return label, shown(snn), shown(ann), points(snn, ann, samples) if accuracy else f"{snn / ann:.3f}"


def show_recipes() -> None:
    """The recipes of the package."""
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name in library.list_recipes():
        recipe = library.load_recipe(name)
        network = recipe.model + ("" if recipe.width == 1 else f" × {recipe.width:g}")
        numbers = f"T={recipe.T}, {recipe.epochs} epochs, {recipe.seeds} seed{'s' * (recipe.seeds > 1)}"
        table.add_row(name, f"{library.describe(name)}\n[dim]{recipe.data}, {network}, {numbers}[/]")
    Console().print(table)


def show_networks(title: str, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Each row is (name, value of the SNN, value of its twin, comparison)."""
    table = Table(title=title, caption=CAPTION, caption_justify="left")
    table.add_column()
    for column in ("SNN", "ANN twin", "SNN / ANN"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_layers(net: nn.Module, rates: Mapping[str, float], matches: Mapping[str, Mismatch] | None = None) -> None:
    """Firing rates and, if measured, the mismatch between the counts c and the ANN branch's activation a."""
    table = Table(title="layers with neurons")
    table.add_column("layer")
    for column in ("firing rate", *(("cosine of c and a", "c as expected") if matches else ())):
        table.add_column(column, justify="right")
    for name, rate in rates.items():
        match = matches.get(name) if matches else None
        cells = [f"{match.cosine:.3f}", f"{100 * match.exact:.1f} %"] if match else []
        table.add_row(f"{name} ({type(net.get_submodule(name)).__name__})", f"{100 * rate:.1f} %", *cells)
    Console().print(table)
