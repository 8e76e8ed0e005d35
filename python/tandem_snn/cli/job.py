"""A training run with its surroundings: checks beforehand, a progress bar, the files afterwards."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from ..container import atomically
from ..errors import UserError
from ..machine import freed_is_kept, origin
from ..training.checkpoint import locked, save_checkpoint
from ..training.comparison import compare
from ..training.processes import Interruption, join
from ..training.recipe import PREFIXES, Recipe
from ..training.task import learning_rate
from ..training.trainer import Trainer

SUFFIX = {"frozen": ".tandem", "onnx": ".onnx", "nir": ".nir"}  # by the format of `tandem-snn export`
CHECKPOINT, TWIN, SUMMARY = "model.safetensors", "twin.safetensors", "summary.json"
# Files that `tandem-snn train`, `report` and `export` write, or once wrote, into a run's folder.
PRODUCTS = (CHECKPOINT, TWIN, SUMMARY, "report.html", "report.png", *(f"model{suffix}" for suffix in SUFFIX.values()))


def check_device(device: str) -> None:
    """Checks that the device exists."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def run(
    recipe: Recipe,
    folder: Path,
    command: str,
    *,
    twin: bool = True,
    twins: Path | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    workers: int = 0,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    interruption: Interruption | None = None,
    **store: Any,
) -> dict[str, Any] | None:
    """Trains, measures and writes the results; a finished run is only read. Other processes than the main one get None.

    Arguments as in :func:`tandem_snn.training.compare`; ``command`` reproduces the result. The caller checks its own
    ``interruption`` after the run, since a signal during the final measurements does not stop this run.
    """
    if resume and (restart or overwrite):
        raise UserError("--resume cannot be combined with --restart or --overwrite")
    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    started, start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    with join(device) as (world, device):
        if resume and (summary := finished(folder, recipe, twin)) is not None:
            return summary if world.is_main else None
        data = recipe.load(data_dir, workers).to(device)
        with (
            Interruption() if interruption is None else nullcontext(interruption) as interruption,
            locked(folder) if world.is_main else nullcontext(),
            freed_is_kept(),
            _progress(recipe, recipe.order(twin), world.is_main) as on_step,
        ):
            if world.is_main:
                _check_seeds(folder, recipe) if resume else _make_room(folder, restart, overwrite)
            result = compare(
                recipe, data, twin=twin, device=device, folder=folder, twins=twins, world=world, on_step=on_step,
                interruption=interruption, **store,
            )  # fmt: skip
            if not world.is_main:
                return None
            for name in PRODUCTS:  # of fewer epochs or seeds
                (folder / name).unlink(missing_ok=True)
            for kind, name in zip(result.kinds, (CHECKPOINT, TWIN), strict=False):
                save_checkpoint(folder / name, result.runs[0].nets[kind], recipe, kind=kind)
            seconds = round(time.monotonic() - start, 1)
            summary = result.summary() | origin(command)
            summary |= {"started": started, "seconds": seconds, "threads": torch.get_num_threads()}
            text = json.dumps(summary, indent=2) + "\n"
            atomically(folder / SUMMARY, lambda path: path.write_text(text))
            return summary


def finished(folder: Path, recipe: Recipe, twin: bool) -> dict[str, Any] | None:
    """The summary in the folder if it is of this very recipe with all its seeds, and has the twins that are wanted."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        same = Recipe.from_dict(found["recipe"]) == recipe
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it to write it again") from error
    wanted = [prefix for kind, prefix in PREFIXES.items() if kind in recipe.order(twin)]
    complete = all(any(name.startswith(f"{prefix}test") for name in found) for prefix in wanted)
    return found if same and complete else None


def _check_seeds(folder: Path, recipe: Recipe) -> None:
    """Checks that a resumed run keeps its seeds; it may have more."""
    wanted = {f"seed-{seed}" for seed in recipe.all_seeds}
    lost = sorted(path.name for path in folder.glob("seed-*") if path.name not in wanted)
    if lost:
        raise UserError(f"seeds: {folder} also contains {', '.join(lost)}, which the recipe's seeds do not include")


def _make_room(folder: Path, restart: bool, overwrite: bool) -> None:
    """Removes the files of an earlier run from the folder, if that is allowed. Other files stay."""
    products = [folder / name for name in PRODUCTS if (folder / name).exists()]
    seeds = list(folder.glob("seed-*"))
    if ((folder / SUMMARY).exists() or (products and not seeds)) and not overwrite:
        raise UserError(
            f"{folder} contains a finished run: choose another folder with --out, continue it with --resume, or "
            "replace it with --overwrite"
        )
    if any(folder.glob("seed-*/*/*.safetensors")) and not (restart or overwrite):
        raise UserError(
            f"{folder} contains an unfinished run: continue it with --resume, or start again with --restart"
        )
    for path in products:
        path.unlink()
    for path in seeds:
        shutil.rmtree(path)


@contextmanager
def _progress(
    recipe: Recipe, order: Sequence[str], visible: bool
) -> Iterator[Callable[[str, int, Trainer], None] | None]:
    """A progress bar over all training steps; yields ``on_step`` for :func:`tandem_snn.training.compare`."""
    if not visible:
        yield None
        return
    bar = Progress(
        "{task.description}", BarColumn(bar_width=24), MofNCompleteColumn(), "steps {task.fields[speed]}",
        TimeElapsedColumn(), "left", TimeRemainingColumn(),
    )  # fmt: skip
    task = bar.add_task("training", total=None, speed="")
    told: set[tuple[str, int]] = set()

    def on_step(kind: str, seed: int, trainer: Trainer) -> None:
        bar.start()  # only now, so that errors before the first step are printed without a bar
        if trainer.trained_on and (kind, seed) not in told:
            told.add((kind, seed))
            rate = learning_rate(recipe, trainer.step, trainer.steps_per_epoch)
            bar.console.print(
                f"{kind}, seed {seed}: trained for {trainer.trained_on[-1]['epochs']} epochs, continues to "
                f"{recipe.epochs}; the learning rate of schedule {recipe.schedule!r} is now {rate:.2g}"
            )
        steps = recipe.epochs * trainer.steps_per_epoch
        before = len(order) * recipe.all_seeds.index(seed) + order.index(kind)
        speed = trainer.totals.samples / trainer.totals.seconds if trainer.totals.seconds else 0
        bar.update(
            task,
            total=len(order) * recipe.seeds * steps,
            completed=before * steps + trainer.step,
            description=f"{kind}, seed {seed}, epoch {min(trainer.epochs + 1, recipe.epochs)}",
            speed=f"{speed:,.0f} images/s" if speed else "",
        )

    try:
        yield on_step
        bar.update(task, completed=bar.tasks[0].total, description="trained", speed="")
    finally:
        if bar.live.is_started:
            bar.stop()
