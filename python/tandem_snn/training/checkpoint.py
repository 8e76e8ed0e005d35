"""Checkpoints: a network's weights, with the recipe that trained it; the folder of a training run, which holds them."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from torch import Tensor, nn

from .. import container
from ..container import Facts, atomically
from ..errors import UserError, extra
from ..measure import Monitor
from ..nn.hooks import evaluating
from .recipe import Recipe
from .trainer import Trainer, is_finite, spikes

_FORMAT = "tandem_snn 1"
pack = partial(container.pack, format=_FORMAT)
unpack = partial(container.unpack, format=_FORMAT, kind="checkpoint", writer="`tandem-snn train`")


def save_checkpoint(path: str | os.PathLike[str], net: nn.Module, recipe: Recipe, **facts: Any) -> None:
    """Writes the network's state_dict, with the recipe and further facts.

    Args:
        path: a file name ending in .safetensors.
        facts: values that JSON can represent.

    Raises:
        UserError: the file cannot be written.

    >>> save_checkpoint("net.safetensors", torch.nn.Linear(3, 2), Recipe(), note="any JSON value")
    """
    content = pack(net.state_dict(), {"recipe": recipe.to_dict(), **facts})
    atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe a checkpoint was trained by.

    Raises:
        UserError: no such file, not a checkpoint, or damaged.

    >>> net = torch.nn.Linear(3, 2)
    >>> save_checkpoint("net.safetensors", net, Recipe(T=4))
    >>> read_recipe("net.safetensors").T
    4
    """
    path = Path(path)
    _, facts = unpack(path)
    return recipe_of(path, facts)


def recipe_of(path: Path, facts: Facts) -> Recipe:
    if "recipe" not in facts:
        raise UserError(f"{path} contains no recipe")
    return Recipe.from_dict(facts["recipe"])


def load_checkpoint(path: str | os.PathLike[str], net: nn.Module) -> Facts:
    """Loads a checkpoint's weights into ``net``.

    Returns:
        The checkpoint's facts.

    Raises:
        UserError: no such file, a damaged one, or the checkpoint of another model.

    >>> recipe = Recipe(model="FC16")
    >>> net = recipe.build(recipe.load())
    >>> save_checkpoint("net.safetensors", net, recipe, epoch=3)
    >>> load_checkpoint("net.safetensors", net)["epoch"]
    3
    """
    path = Path(path)
    tensors, facts = unpack(path)
    load_weights(path, tensors, net)
    return facts


def load_weights(path: Path, state: Mapping[str, Tensor], net: nn.Module) -> None:
    """Copies ``state``, read from ``path``, into ``net``. Every entry must fit."""
    own = net.state_dict()
    differing = [name for name in {**own, **state} if _shape(own, name) != _shape(state, name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} is the checkpoint of another model: {name} is {_shape(state, name)} there and {_shape(own, name)} "
            f"in the model ({len(differing)} entries differ)"
        )
    net.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(list(state[name].shape)) if name in state else "absent"


NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
MODEL, LAST, RESULT = "model.safetensors", "last.safetensors", "result.json"


class Store:
    """The folder of a training run, from which it resumes after an interruption.

    While the run is unfinished, the folder holds the last two checkpoints, ``checkpoint.safetensors`` and
    ``checkpoint.previous.safetensors``. Afterwards it holds ``model.safetensors``, ``result.json``, and
    ``last.safetensors``, the state from which training can continue. The records of the epochs are always in
    ``metrics.jsonl``, and in TensorBoard's files if wanted.

    Args:
        folder: created if it does not exist.
        seconds, steps: write a checkpoint when this much time, or this many steps, have passed since the last.
        tensorboard: write event files to ``folder/tensorboard`` too.
        writes: False in processes that only read (all but one of a distributed run).
        train_on: continue a run of the same recipe, finished or not, with another number of epochs. The next step
            has the learning rate of the new schedule. Any other difference between the recipes is an error. Paths,
            devices and workers are not part of a recipe.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        seconds: float = 60.0,
        steps: int | None = None,
        tensorboard: bool = False,
        writes: bool = True,
        train_on: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.seconds = seconds
        self.steps = steps
        self.writes = writes
        self.train_on = train_on
        self._last_time = time.monotonic()
        self._last_step = 0
        self._good: str | None = None
        self._tensorboard: Any = None
        if writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            if tensorboard:
                board = extra("torch.utils.tensorboard", "--tensorboard")
                self._tensorboard = board.SummaryWriter(self.folder / "tensorboard")

    def restore(self, trainer: Trainer) -> bool:
        """Restores a trainer from the newest intact checkpoint.

        Returns:
            Whether there is one.

        Raises:
            UserError: the checkpoint is of another recipe or model, it is beyond the recipe's epochs, or all
                checkpoints are damaged.
        """
        damage = None
        for path in (self.folder / name for name in (NEWEST, PREVIOUS, LAST)):
            if not path.exists():
                continue
            try:
                tensors, facts = unpack(path)
            except UserError as error:
                damage = damage or error
                continue
            _check_equal(path, recipe_of(path, facts), trainer.recipe, self.train_on)
            if facts["step"] > trainer.recipe.epochs * trainer.steps_per_epoch:
                raise UserError(
                    f"epochs: {path} was trained for {facts['step']} steps already, more than {trainer.recipe.epochs} "
                    f"epochs of {trainer.steps_per_epoch}"
                )
            trainer.restore(tensors, facts)
            self._note(trainer)
            return True
        if damage is not None:
            raise damage
        return False

    def due(self, trainer: Trainer) -> bool:
        """Whether it is time for a checkpoint."""
        if self.steps is not None and trainer.step - self._last_step >= self.steps:
            return True
        return time.monotonic() - self._last_time >= self.seconds

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint; the newest so far becomes the previous one.

        Raises:
            UserError: it cannot be written, or a weight is not finite. Earlier checkpoints are unchanged.
        """
        if not self.writes:
            return
        tensors, facts = trainer.state()
        if not is_finite(tensors):
            raise UserError(f"weights became infinite or NaN {trainer.position()}; {self.last_good()}")
        content = pack(tensors, facts)
        self._write(NEWEST, content, keep=self.folder / PREVIOUS)
        self._note(trainer)

    def keep(self, trainer: Trainer) -> None:
        """Writes the state after the last epoch, from which a finished run can continue."""
        if self.writes:
            self._write(LAST, pack(*trainer.state()))

    def _note(self, trainer: Trainer) -> None:
        self._last_time, self._last_step = time.monotonic(), trainer.step
        self._good = trainer.position()

    def last_good(self) -> str:
        """The last good checkpoint, in words."""
        good = self._good
        return "no checkpoint was written before" if good is None else f"the last good checkpoint was written {good}"

    def log(self, history: Sequence[dict[str, Any]]) -> None:
        """Writes the records of the epochs so far."""
        if not self.writes or not history:
            return
        self._write("metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history).encode())
        if self._tensorboard is not None:
            for name, value in history[-1].items():
                self._tensorboard.add_scalar(name, value, history[-1]["epoch"])
            self._tensorboard.flush()

    def log_layers(self, trainer: Trainer) -> None:
        """Writes the firing rate of each layer, and of its neurons as a histogram, if TensorBoard is wanted: in
        evaluation mode, on the first validation samples.
        """
        net, split = trainer.net, trainer.data.validation or trainer.data.train
        if self._tensorboard is None or not spikes(net):
            return
        x: Any = next(split.batches(256))[0].to(trainer.device)
        with evaluating(net), Monitor(net, samples=1) as monitor:
            net(x)
        for name, layer in monitor.items():
            self._tensorboard.add_scalar(f"firing_rate/{name}", layer.rates.mean().item(), trainer.epochs)
            self._tensorboard.add_histogram(f"firing_rates/{name}", layer.rates.flatten(), trainer.epochs)

    def finish(self, net: nn.Module, recipe: Recipe, result: dict[str, Any], **facts: Any) -> None:
        """Writes the trained network and its result, which marks the run as finished, and removes checkpoints."""
        if self.writes:
            (self.folder / RESULT).unlink(missing_ok=True)  # a result of fewer epochs is not of these weights
            self._write(MODEL, pack(net.state_dict(), {"recipe": recipe.to_dict(), **facts}))
            self._write(RESULT, (json.dumps({"recipe": recipe.to_dict(), **result}, indent=2) + "\n").encode())
            for name in (NEWEST, PREVIOUS):
                (self.folder / name).unlink(missing_ok=True)

    def result(self, net: nn.Module, recipe: Recipe) -> dict[str, Any] | None:
        """The result of a finished run, whose weights are loaded into ``net``; None if it is unfinished or is to be
        continued.

        Raises:
            UserError: the result is of another recipe, damaged, or of more epochs.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        try:
            result: dict[str, Any] = json.loads(path.read_text())
            there = Recipe.from_dict(result.pop("recipe"))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): start again with --restart") from error
        _check_equal(path, there, recipe, self.train_on)
        if there.epochs == recipe.epochs:
            load_checkpoint(self.folder / MODEL, net)
            return result
        if recipe.epochs < there.epochs:
            raise UserError(
                f"epochs: expected more than {there.epochs}, for which {path} was trained already, got {recipe.epochs}"
            )
        if not (last := self.folder / LAST).exists():
            raise UserError(f"{path} cannot be continued: {last}, the state after its last epoch, is missing")
        return None

    def _write(self, name: str, content: bytes, keep: Path | None = None) -> None:
        path = self.folder / name
        try:
            atomically(path, lambda temporary: temporary.write_bytes(content), keep=keep)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): {self.last_good()}") from error


def _check_equal(path: Path, there: Recipe, here: Recipe, train_on: bool) -> None:
    ours, theirs = here.to_dict(), there.to_dict()
    for name in ours:
        if ours[name] == theirs[name]:
            continue
        if name != "epochs":
            raise UserError(
                f"{path} belongs to another recipe: {name} is {theirs[name]} there and {ours[name]} here, and only the "
                "epochs may change: choose another folder with --out, or start again with --restart"
            )
        if not train_on:
            raise UserError(
                f"{path} belongs to a training of {there.epochs} epochs, not {here.epochs}: continue it with "
                "`tandem-snn train --resume` or Store(..., train_on=True), or choose another folder with --out"
            )


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Creates the folder and locks it for one run; ``wait`` for the lock. Removes empty folders afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}): choose another folder with --out"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"{folder} is in use by another run: choose another folder with --out") from None
    try:
        yield
    finally:
        for path in sorted((folder, *folder.rglob("*/")), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        os.close(handle)
