"""``tandem-snn train``: an SNN and its ANN twin by the same recipe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

# typer reads annotations at run time, on Python 3.10 too: hence Optional.
# ruff: noqa: UP045

DataDir = Annotated[Optional[Path], typer.Option(help="Folder with the data sets' files.", envvar="TANDEM_DATA")]
Settings = Annotated[
    Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="Another value for any key of the recipe.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")]
Workers = Annotated[int, typer.Option(help="Processes that decode the images of a stream (imagenet); 0: this one.")]
Seeds = Annotated[
    Optional[int], typer.Option(help="Number of runs, whose seeds count up from the recipe's (default: the recipe's).")
]
Twin = Annotated[bool, typer.Option(help="Train the ANN twin as well.")]


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or YAML file.")] = "digits",
    settings: Settings = None,
    data: Annotated[Optional[str], typer.Option(help="The data set's name, such as mnist.")] = None,
    data_dir: DataDir = None,
    model: Annotated[Optional[str], typer.Option(help="The network's name, or its layers, such as 32C3-FC256.")] = None,
    time_steps: Annotated[Optional[int], typer.Option("--T", help="Number of time steps, 1 to 255.")] = None,
    epochs: Annotated[Optional[int], typer.Option(help="Passes over the training samples.")] = None,
    batch_size: Annotated[Optional[int], typer.Option(help="Samples per training step.")] = None,
    lr: Annotated[Optional[float], typer.Option(help="The (peak) learning rate.")] = None,
    width: Annotated[Optional[float], typer.Option(help="Multiplier of the model's channels.")] = None,
    seed: Annotated[Optional[int], typer.Option(help="The first seed.")] = None,
    seeds: Seeds = None,
    twin: Twin = True,
    device: Device = "cpu",
    threads: Threads = 0,
    workers: Workers = 0,
    out: Annotated[Optional[Path], typer.Option(help="Folder of the results (default: runs/RECIPE).")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with what is in the folder; by as many threads, to the same weights. With other --epochs the "
            "run is trained on: the schedule is that of the new number of epochs, from the step it has reached. With "
            "more --seeds, those are added. Paths, device, threads and workers are free, all else must be as it was.",
        ),
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what was begun in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also replace a finished run in the folder.")] = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="Time between checkpoints.")] = 60.0,
    checkpoint_steps: Annotated[Optional[int], typer.Option(help="Steps between checkpoints.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard too.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="Print the recipes of the package.")] = False,
) -> None:
    """Train an SNN and its ANN twin, compare them, write the results.

    Without options: a small convolutional network on scikit-learn's handwritten digits, T=8, three seeds, one minute.
    Ctrl-C finishes the step and writes a checkpoint, from which --resume goes on. Under torchrun the processes share
    each batch.
    """
    from ..training.library import load_recipe
    from .job import Job, outputs, run
    from .show import show_comparison, show_recipes

    if list_recipes:
        show_recipes()
        return
    named = {
        "data": data, "model": model, "T": time_steps, "epochs": epochs, "batch_size": batch_size, "lr": lr,
        "width": width, "seed": seed, "seeds": seeds,
    }  # fmt: skip
    given = [f"{key}={value}" for key, value in named.items() if value is not None]
    chosen = load_recipe(recipe).override([*(settings or []), *given])
    folder = out if out is not None else Path("runs") / Path(recipe).stem
    job = Job(
        recipe=chosen,
        folder=folder,
        command=shlex.join(["tandem-snn", *sys.argv[1:]]),
        twin=twin,
        data_dir=data_dir,
        device=device,
        threads=threads,
        workers=workers,
        resume=resume,
        restart=restart,
        overwrite=overwrite,
        train_on=resume,
        checkpoint_seconds=checkpoint_seconds,
        checkpoint_steps=checkpoint_steps,
        tensorboard=tensorboard,
    )
    result = run(job)
    if result.measures is not None:
        show_comparison(result)
        typer.echo(f"{folder}: " + ", ".join(outputs(folder)))
