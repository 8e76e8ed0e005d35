"""A training run with its surroundings: checks beforehand, a progress bar, the files afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from ..container import atomically
from ..data import Dataset
from ..errors import UserError
from ..machine import origin
from ..memory import freed_is_kept
from ..training.checkpoint import save_checkpoint
from ..training.comparison import Comparison, compare
from ..training.processes import Interruption, join
from ..training.recipe import Recipe
from ..training.store import LAST, NEWEST, PREVIOUS, RESULT, locked
from ..training.task import learning_rate
from ..training.trainer import Trainer

SUFFIX = {"frozen": ".tandem", "onnx": ".onnx", "nir": ".nir"}  # by the format of `tandem-snn export`
CHECKPOINT, TWIN, SUMMARY = "model.safetensors", "twin.safetensors", "summary.json"
# Files that `tandem-snn train`, `report` and `export` write, or once wrote, into a run's folder.
PRODUCTS = (CHECKPOINT, TWIN, SUMMARY, "report.html", "report.png", *(f"model{suffix}" for suffix in SUFFIX.values()))


@dataclass(frozen=True)
class Job:
    """A recipe, and the settings that do not change its result.

    The fields are options of ``tandem-snn train`` and arguments of :func:`tandem_snn.training.compare` and
    :class:`tandem_snn.training.Store`; ``command`` is the command that reproduces the result.
    """

    recipe: Recipe
    folder: Path
    command: str
    twin: bool = True
    twins: Path | None = None
    data_dir: Path | None = None
    device: str = "cpu"
    threads: int = 0
    workers: int = 0
    resume: bool = False
    restart: bool = False
    overwrite: bool = False
    train_on: bool = False
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.resume and (self.restart or self.overwrite):
            raise UserError("--resume cannot be combined with --restart or --overwrite")
        check_device(self.device)


def check_device(device: str) -> None:
    """Checks that the device exists."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def run(job: Job, interruption: Interruption | None = None) -> Comparison:
    """Trains, measures and writes the results. Of several processes only the main one writes.

    Args:
        interruption: from a caller that checks it after the run, since a signal during the final measurements does not
            stop this run.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    started = datetime.now(timezone.utc)
    with join(job.device) as (world, device):
        data = job.recipe.load(job.data_dir, job.workers).to(device)
        with (
            Interruption() if interruption is None else nullcontext(interruption) as interruption,
            _holding(job, world.is_main),
            freed_is_kept(),
            _progress(job, data, world.is_main) as on_step,
        ):
            result = compare(
                job.recipe, data, twin=job.twin, device=device, folder=job.folder, twins=job.twins, world=world,
                on_step=on_step, interruption=interruption, seconds=job.checkpoint_seconds, steps=job.checkpoint_steps,
                tensorboard=job.tensorboard, train_on=job.train_on,
            )  # fmt: skip
            if world.is_main:
                _write(job.folder, result, _origin(job.command, started))
    return result


@contextmanager
def _holding(job: Job, is_main: bool) -> Iterator[None]:
    """Locks the folder and removes the files of another run from it."""
    if not is_main:
        yield
        return
    with locked(job.folder):
        if job.resume:
            _keep_seeds(job)
        else:
            _make_room(job)
        yield


def _keep_seeds(job: Job) -> None:
    """Checks that a resumed run keeps its seeds; it may have more."""
    wanted = {f"seed-{seed}" for seed in job.recipe.all_seeds}
    lost = sorted(path.name for path in job.folder.glob("seed-*") if path.name not in wanted)
    if lost:
        raise UserError(f"seeds: {job.folder} also contains {', '.join(lost)}, which the recipe's seeds do not include")


def _make_room(job: Job) -> None:
    """Removes the files of an earlier run from the folder, if the job allows it. Other files stay."""
    folder = job.folder
    if _finished(folder) and not job.overwrite:
        raise UserError(
            f"{folder} contains a finished run: choose another folder with --out, continue it with --resume, or "
            "replace it with --overwrite"
        )
    if not job.restart and not job.overwrite and _begun(folder):
        raise UserError(
            f"{folder} contains an unfinished run: continue it with --resume, or start again with --restart"
        )
    _remove(folder, PRODUCTS)
    for seed in folder.glob("seed-*"):
        shutil.rmtree(seed)


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _finished(folder: Path) -> bool:
    """Whether the folder holds files to protect: a summary, or a run's files without a training folder."""
    if (folder / SUMMARY).exists():
        return True
    return not any(folder.glob("seed-*")) and any((folder / name).exists() for name in PRODUCTS)


def _begun(folder: Path) -> bool:
    """Whether the folder, without a summary, holds trainings."""
    names = (NEWEST, PREVIOUS, LAST, RESULT)
    return any((part / name).exists() for part in folder.glob("seed-*/*") for name in names)


def _summed_up(summary: Path) -> str | None:
    """The digest of the results in the summary."""
    try:
        digest: str | None = json.loads(summary.read_text())["results"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return digest


def _digest(folder: Path) -> str | None:
    """The digest of the trainings' results in the folder; None if there are none."""
    results = sorted(folder.glob(f"seed-*/*/{RESULT}"))
    digest = hashlib.sha256()
    for path in results:
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest() if results else None


@contextmanager
def _progress(job: Job, data: Dataset, visible: bool) -> Iterator[Callable[[str, int, Trainer], None] | None]:
    """A progress bar over all training steps; yields ``on_step`` for :func:`tandem_snn.training.compare`."""
    if not visible:
        yield None
        return
    whole = Column(no_wrap=True)  # a narrow terminal shortens the bar, not the figures
    columns = (
        TextColumn("{task.description:<21}", table_column=whole),
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=whole),
        TextColumn("steps {task.fields[speed]}", table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TextColumn("left", table_column=whole),
        TimeRemainingColumn(table_column=whole),
    )
    order, bar = job.recipe.order(job.twin), Progress(*columns)
    task = bar.add_task("training", total=None, speed="")
    told: set[tuple[str, int]] = set()

    def on_step(kind: str, seed: int, trainer: Trainer) -> None:
        bar.start()  # only now: what is wrong before the first step is said without a bar
        if trainer.trained_on and (kind, seed) not in told:
            told.add((kind, seed))
            bar.console.print(f"{kind}, seed {seed}: {_goes_on(trainer)}")
        steps = job.recipe.epochs * trainer.steps_per_epoch
        before = len(order) * job.recipe.all_seeds.index(seed) + order.index(kind)
        speed = trainer.totals.samples / trainer.totals.seconds if trainer.totals.seconds else 0
        bar.update(
            task,
            total=len(order) * job.recipe.seeds * steps,
            completed=before * steps + trainer.step,
            description=f"{kind}, seed {seed}, epoch {min(trainer.epochs + 1, job.recipe.epochs)}",
            speed=f"{speed:,.0f} images/s" if speed else "",
        )

    try:
        yield on_step
        bar.update(task, completed=bar.tasks[0].total, description="trained", speed="")
    finally:
        if bar.live.is_started:
            bar.stop()


def _goes_on(trainer: Trainer) -> str:
    """How a run with more epochs continues, in words."""
    recipe, before = trainer.recipe, trainer.trained_on[-1]
    rate = learning_rate(
        recipe, min(trainer.step, recipe.epochs * trainer.steps_per_epoch - 1), trainer.steps_per_epoch
    )
    return (
        f"trained for {before['epochs']} epochs, continues to {recipe.epochs}; the learning rate is now {rate:.2g}, "
        f"from schedule {recipe.schedule!r} over {recipe.epochs} epochs after {trainer.step} steps"
    )


def _origin(command: str, started: datetime) -> dict[str, Any]:
    """The origin of a result, and its time."""
    finished = datetime.now(timezone.utc)
    return origin(command) | {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 1),
        "threads": torch.get_num_threads(),
    }


def _write(folder: Path, result: Comparison, origin: dict[str, Any]) -> None:
    """Writes the first seed's networks and, last, the summary, each atomically."""
    if _summed_up(folder / SUMMARY) != _digest(folder):
        _remove(folder, set(PRODUCTS) - {SUMMARY})  # they belong to earlier results
    first = result.runs[0]
    for kind, name in zip(result.kinds, (CHECKPOINT, TWIN), strict=False):
        save_checkpoint(folder / name, first.nets[kind], result.recipe, kind=kind)
    summary = json.dumps({**result.summary(), **origin, "results": _digest(folder)}, indent=2) + "\n"
    atomically(folder / SUMMARY, lambda path: path.write_text(summary))


def outputs(folder: Path) -> Sequence[str]:
    """The files of a finished job."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())
