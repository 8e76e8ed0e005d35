"""What surrounds the training of a comparison: checks beforehand, a progress bar, the files afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..data import Dataset
from ..errors import UserError
from ..plots import report
from ..training.checkpoint import atomically, save_checkpoint
from ..training.comparison import Comparison
from ..training.recipe import Recipe

CHECKPOINT, TWIN, REPORT, SUMMARY = "model.safetensors", "twin.safetensors", "report.png", "summary.json"


def prepare(device: str, threads: int, seeds: int) -> None:
    """Checks and applies what the recipe does not hold."""
    if seeds < 1:
        raise UserError(f"seeds: expected at least 1, got {seeds}")
    if threads < 0:
        raise UserError(f"threads: expected 0 or more, got {threads}")
    set_device(device)
    if threads:
        torch.set_num_threads(threads)


def set_device(device: str) -> None:
    """Checks that the device exists."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


@contextmanager
def results_folder(folder: Path) -> Iterator[None]:
    """Makes the folder before the work, so that a bad one fails at once; takes it away again if nothing came of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made a folder ({error.strerror}): give another with --out") from error
    try:
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def progress(recipe: Recipe, data: Dataset, seeds: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar over all training steps; gives the callback of :func:`tandem_snn.training.compare`."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    steps = recipe.epochs * (len(data.train) // min(recipe.batch_size, len(data.train)))
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=2 * seeds * steps)

        def on_step(kind: str, seed: int) -> None:
            bar.update(task, advance=1, description=f"{kind}, seed {seed} ({seeds} in all)")

        yield on_step
        bar.update(task, description="trained")


def write_results(folder: Path, result: Comparison, data: Dataset) -> None:
    """The first seed's networks, the report and, last, the summary; each file appears whole or not at all."""
    first = result.runs[0]
    save_checkpoint(folder / CHECKPOINT, first.snn, result.recipe, kind="SNN")
    save_checkpoint(folder / TWIN, first.ann, result.recipe, kind="ANN")
    atomically(folder / REPORT, lambda path: report(path, result, data))
    atomically(folder / SUMMARY, lambda path: path.write_text(json.dumps(result.summary(), indent=2) + "\n"))
