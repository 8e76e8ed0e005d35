"""``tandem-snn train``: an SNN and its ANN twin by the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..training.recipe import Recipe

_DEFAULT = Recipe()


def train(
    data: Annotated[str, typer.Option(help="digits, mnist or fashion-mnist.")] = _DEFAULT.data,
    data_dir: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)
        typer.Option(help="Folder that holds MNIST/raw or FashionMNIST/raw.", envvar="TANDEM_DATA"),
    ] = None,
    model: Annotated[str, typer.Option(help="cnn or mlp.")] = _DEFAULT.model,
    steps: Annotated[int, typer.Option("--T", help="Number of time steps, 1 to 255.")] = _DEFAULT.T,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = _DEFAULT.epochs,
    batch_size: Annotated[int, typer.Option(help="Images per training step.")] = _DEFAULT.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = _DEFAULT.lr,
    width: Annotated[float, typer.Option(help="Multiplier of the model's channels.")] = _DEFAULT.width,
    seeds: Annotated[int, typer.Option(help="Number of runs, with seeds 0, 1, ...")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the results (default: runs/DATA)."),
    ] = None,
) -> None:
    """Train an SNN and its ANN twin, compare them, write the results.

    Without options: a small convolutional network on scikit-learn's handwritten digits, T=8, three seeds, two minutes.
    """
    from ..data import load
    from ..training.comparison import compare
    from .job import prepare, progress, results_folder, write_results
    from .show import show_comparison

    recipe = Recipe(data, model, steps, epochs, batch_size, lr, width)
    folder = out if out is not None else Path("runs") / data
    prepare(device, threads, seeds)
    dataset = load(data, data_dir, validation=False).to(device)
    with results_folder(folder):
        with progress(recipe, dataset, seeds) as on_step:
            result = compare(recipe, dataset, range(seeds), on_step)
        write_results(folder, result, dataset)
    show_comparison(result)
    typer.echo(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))
