"""fit: from an untrained network to a tested one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from tandem_ext.checks import TooFewSamples

from ..data import Dataset, as_dataset
from ..errors import Interrupted, UserError
from ..machine import PeakMemory
from .checkpoint import Store
from .processes import Interruption, World, synchronised
from .recipe import Recipe
from .trainer import Trainer

OnStep = Callable[[Trainer], None]


@dataclass(frozen=True)
class Fitted:
    """The result of a training run.

    Attributes:
        history: one record per epoch: loss, metric, learning rate, seconds, and the same of the validation split.
        epoch: the epoch whose weights were kept, counted from 1: the best on the validation split, else the last.
        test: loss and metric of these weights on the test split, measured once.
        peak_memory: bytes by which the process grew in training, or that were allocated on the GPU; None if the system
            does not report it.
        trained_on: see :class:`Trainer`; empty unless the number of epochs was raised.
    """

    history: list[dict[str, Any]]
    epoch: int
    test: dict[str, float]
    peak_memory: int | None
    trained_on: list[dict[str, int]] = field(default_factory=list)

    @property
    def seconds_per_epoch(self) -> float:
        """Training time without validation, mean over the epochs."""
        return sum(record["seconds"] for record in self.history) / len(self.history)


def fit(
    net: nn.Module,
    data: Dataset | Mapping[str, Any],
    recipe: Recipe,
    *,
    store: Store | None = None,
    world: World | None = None,
    on_step: OnStep | None = None,
    interruption: Interruption | None = None,
) -> Fitted:
    """Trains ``net`` in place by the recipe, and tests it once at the end.

    Args:
        net: on the device where it is to be trained.
        data: from the recipe's :meth:`~Recipe.load`, or your own {"train": ..., "validation": ..., "test": ...}, see
            :meth:`tandem_snn.data.Dataset.of`; "validation" may be missing.
        recipe: its ``model`` and the model's keys are ignored: ``net`` is given.
        store: where checkpoints and logs go. An unfinished run in it resumes; a finished one is only loaded.
        world: the processes that train together.
        on_step: called with the trainer after every step, and once before the first.
        interruption: says after every step whether to stop.

    Raises:
        UserError: the loss is not finite, a batch is too small for batch norm, or a file cannot be written.
        Interrupted: ``interruption`` asked for a stop; a checkpoint is written.

    >>> data = tandem_snn.data.load("digits")
    >>> recipe = Recipe(model="mlp", epochs=2)
    >>> fit(recipe.build(data), data, recipe).test["accuracy"] > 0.8
    True
    """
    data = as_dataset(data)
    if store is not None and (result := store.result(net, recipe)) is not None:
        return Fitted(**result)
    world = World() if world is None else world
    with synchronised(net, world):
        trainer = Trainer(net, data, recipe, world)
        if store is not None and store.restore(trainer):
            store.log(trainer.history)
        if on_step is not None:
            on_step(trainer)
        with PeakMemory(trainer.device) as memory:
            try:
                _train(trainer, store, on_step, interruption)
            except UserError as error:
                if store is None or store.last_good() in str(error):
                    raise
                raise UserError(f"{error}; {store.last_good()}") from error
            except TooFewSamples as error:
                raise UserError(f"batch_size: {error}") from error
    if store is not None:
        store.keep(trainer)
    if trainer.best is not None:
        net.load_state_dict(trainer.best.weights)
    trainer.release()
    epoch = trainer.epochs if trainer.best is None else trainer.best.epoch
    fitted = Fitted(trainer.history, epoch, trainer.evaluate(data.test), memory.grown, trainer.trained_on)
    if store is not None:
        store.finish(net, recipe, asdict(fitted), epoch=epoch)
    return fitted


def _train(trainer: Trainer, store: Store | None, on_step: OnStep | None, interruption: Interruption | None) -> None:
    while not trainer.finished:
        for _ in trainer.epoch():
            if on_step is not None:
                on_step(trainer)
            if _asked_to_stop(trainer, interruption):
                where = f"stopped {trainer.position()}"
                if store is not None:
                    store.save(trainer)
                    where += ": a checkpoint was written, --resume continues from it"
                raise Interrupted(where, (interruption and interruption.signal) or signal.SIGTERM)
            if store is not None and store.due(trainer):
                store.save(trainer)
        trainer.finish_epoch()
        if store is not None:
            store.log(trainer.history)
            store.log_layers(trainer)
            if store.due(trainer):
                store.save(trainer)


def _asked_to_stop(trainer: Trainer, interruption: Interruption | None) -> bool:
    """Whether any process was asked to stop: then all processes stop after the same step."""
    asked = interruption is not None and interruption.requested()
    if trainer.world.size == 1:
        return asked
    return bool(trainer.world.sum(torch.tensor(float(asked), device=trainer.device)).item())
