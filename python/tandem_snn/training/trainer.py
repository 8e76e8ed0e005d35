"""Trainer: one network in training. Its whole state can be saved and restored at any step."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as tnn
from ..data import Dataset, Split, as_dataset, as_split
from ..errors import UserError, check_name
from ..machine import return_freed
from ..measure import synops_penalty
from ..nn.hooks import FIRING, evaluating
from .processes import World
from .recipe import Recipe
from .task import Task, learning_rate, make_optimizer, make_task

TIDY_STEPS = 64  # steps between returns of freed memory, which take milliseconds
_ONLY_WITH = {  # keys of a recipe that need another's value
    "momentum": ("optimizer", "sgd"),
    "milestones": ("schedule", "multistep"),
    "lr_factor": ("schedule", "multistep"),
}
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Totals:
    """Sums over the samples of an epoch, over all processes."""

    loss: float = 0.0
    metric: float = 0.0
    samples: int = 0
    seconds: float = 0.0


@dataclass
class Best:
    """The epoch with the best validation result, counted from 1, and its weights."""

    epoch: int
    value: float
    weights: dict[str, Tensor]


class Trainer:
    """A network, its optimizer, and the progress of its training.

    The order of the samples, augmentation and dropout depend only on the seed and the number of the step. So the
    weights, the optimizer's state and the step number are the whole state of a run, and a resumed run ends with
    bit-identical weights.

    Args:
        net: trained in place, on its device.
        data: as for :func:`fit`; its training and validation splits are used.
        recipe: the training's settings.
        world: the processes that train together; each has its own copy of ``net``.

    Attributes:
        step: the number of steps taken.
        history: one record per finished epoch, of plain numbers.
        best: the best epoch on the validation split, or None.
        trained_on: if the number of epochs was changed: each earlier number, and the steps taken by then.

    >>> data = tandem_snn.data.load("digits")
    >>> recipe = Recipe(model="mlp", epochs=1)
    >>> trainer = Trainer(recipe.build(data), data, recipe)
    >>> for step in trainer.epoch():
    ...     pass
    >>> sorted(trainer.finish_epoch())[:3]
    ['accuracy', 'epoch', 'images_per_second']
    """

    def __init__(
        self, net: nn.Module, data: Dataset | Mapping[str, Any], recipe: Recipe, world: World | None = None
    ) -> None:
        if recipe.schedule == "multistep" and not recipe.milestones:
            raise UserError("milestones: schedule multistep needs the epochs at which it lowers the learning rate")
        for name, (other, needed) in _ONLY_WITH.items():
            if getattr(recipe, name) != getattr(Recipe, name) and getattr(recipe, other) != needed:
                raise UserError(f"{name}: has an effect only if {other} is {needed}, got {getattr(recipe, other)}")
        self.net = net
        self.data = data = as_dataset(data)
        if recipe.label_smoothing and data.task != "classification":
            raise UserError(f"label_smoothing: has an effect only on classification, got {data.task}")
        self.recipe = recipe
        self.world = World() if world is None else world
        self.device = next(net.parameters()).device
        self.task = make_task(data.task, recipe.label_smoothing)
        self.optimizer = make_optimizer(net, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self._penalty = synops_penalty(net) if recipe.synops_penalty and spikes(net) else None
        self._model = self.world.wrap(net)
        if (loader := getattr(data.train, "batch_size", None)) not in (None, recipe.batch_size):
            raise UserError(
                f"batch_size: {recipe.batch_size} in the recipe, {loader} in the DataLoader: make them equal"
            )
        whole = min(recipe.batch_size, len(data.train))
        if not whole:
            raise UserError("data: there are no training samples")
        if whole % self.world.size:
            raise UserError(f"batch_size: {whole} samples cannot be divided evenly among {self.world.size} processes")
        self.batch_size = whole // self.world.size
        self.steps_per_epoch = len(data.train) // whole
        self.step = 0
        self.totals = Totals()
        self.history: list[dict[str, Any]] = []
        self.best: Best | None = None
        self.trained_on: list[dict[str, int]] = []
        self._gates: dict[tnn.SpikingLayer, str] = {}  # the layers' own, if the first epochs have another
        if recipe.first_gate:
            self._gates = {layer: layer.gate for layer in net.modules() if isinstance(layer, tnn.SpikingLayer)}
            if not self._gates:
                raise UserError("first_gate: has an effect only on spiking layers, and the network has none")
            try:
                self._set_gates()
            except ValueError as error:
                raise UserError(f"first_gate: {error}") from error

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        return self.epochs == self.recipe.epochs

    def epoch(self) -> Iterator[int]:
        """Takes the remaining steps of the current epoch; yields the number of each step after it is done."""
        self._set_gates()
        done = self.step - self.epochs * self.steps_per_epoch
        batches = self.data.train.batches(
            self.batch_size,
            seed=derive(self.recipe.seed, "order", self.epochs),
            start=done,
            rank=self.world.rank,
            world=self.world.size,
        )
        start = time.perf_counter()
        for inputs, targets in batches:
            self.train_step(inputs, targets)
            if self.step % TIDY_STEPS == 0:
                return_freed()
            self.totals.seconds += time.perf_counter() - start
            yield self.step
            start = time.perf_counter()

    def train_step(self, inputs: Any, targets: Tensor) -> None:
        """One step of the optimizer.

        Raises:
            UserError: the loss is not finite. The weights are those before the step.
        """
        torch.manual_seed(derive(self.recipe.seed, "step", self.step, self.world.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, self.steps_per_epoch)
        self.net.train()
        self.optimizer.zero_grad()
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        output = _output(self._model, inputs, self.device, self.recipe.precision)
        loss = self.task.loss(output, targets)
        if self._penalty is not None:
            loss = loss + self.recipe.synops_penalty * self._penalty()
        with torch.no_grad():
            n = len(targets)
            sums = torch.stack([loss.double() * n, self.task.total(output, targets), loss.new_tensor(n).double()])
        loss_sum, metric, samples = self.world.sum(sums).tolist()
        if not math.isfinite(loss_sum):
            raise UserError(f"the loss became {loss_sum / samples} {self.position()}: try a smaller learning rate")
        self.scaler.scale(loss).backward()
        if self.recipe.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.totals.loss += loss_sum
        self.totals.metric += metric
        self.totals.samples += int(samples)
        self.step += 1

    def finish_epoch(self) -> dict[str, Any]:
        """Measures the network on the validation split, keeps its weights if they are the best so far, and returns the
        record of the epoch.

        Raises:
            RuntimeError: the epoch has steps left.
            UserError: a weight is not finite.
        """
        if self.step != (self.epochs + 1) * self.steps_per_epoch:
            raise RuntimeError(
                f"finish_epoch: the epoch is not finished {self.position()}; epoch() takes the remaining steps"
            )
        if not is_finite(self.net.state_dict()):
            raise UserError(f"weights became infinite or NaN {self.position()}: try a smaller learning rate")
        totals, metric = self.totals, self.task.metric
        record: dict[str, Any] = {
            "epoch": self.epochs + 1,
            "step": self.step,
            "lr": learning_rate(self.recipe, self.step - 1, self.steps_per_epoch),
            "loss": totals.loss / totals.samples,
            metric: totals.metric / totals.samples,
        }
        if self.data.validation is not None:
            measured = self.evaluate(self.data.validation)
            record |= {f"validation_{name}": value for name, value in measured.items()}
            value = measured[metric]
            sign = 1 if self.task.higher_is_better else -1
            # Of equals the later: it was trained for longer, at a smaller learning rate.
            if self._first_gate() is None and (self.best is None or sign * value >= sign * self.best.value):
                self.best = Best(self.epochs + 1, value, {name: t.clone() for name, t in self.net.state_dict().items()})
        record |= {"seconds": totals.seconds, "images_per_second": totals.samples / max(totals.seconds, 1e-9)}
        self.history.append(record)
        self.totals = Totals()
        return record

    def _first_gate(self) -> str | None:
        """The recipe's gate for the first epochs, in these epochs."""
        first = self.recipe.first_gates()
        return first[0] if first and self.epochs < first[1] else None

    def _set_gates(self) -> None:
        """Gives the layers the gate of the current epoch, if the first epochs have another."""
        first = self._first_gate()
        for layer, own in self._gates.items():
            layer.gate = first or own

    def release(self) -> None:
        """Leaves the network without hooks."""
        if self._penalty is not None:
            self._penalty.remove()

    def evaluate(self, split: Split) -> dict[str, float]:
        """Loss and metric of the current network, see :func:`evaluate`."""
        return evaluate(self.net, split, self.task, world=self.world, precision=self.recipe.precision)

    def position(self) -> str:
        """The progress of the training, in words."""
        done = self.step - self.epochs * self.steps_per_epoch
        within = f" and {done} of {self.steps_per_epoch} steps" if done else ""
        return f"after {self.epochs} of {self.recipe.epochs} epochs{within}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of the run: tensors, and facts that JSON can hold."""
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if value is not None}
        facts: dict[str, Any] = {
            "recipe": self.recipe.to_dict(),
            "step": self.step,
            "totals": asdict(self.totals),
            "history": self.history,
            "scaler": self.scaler.state_dict(),
            "best": None,
            "trained_on": self.trained_on,
        }
        if self.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.weights.items()}
            facts["best"] = {"epoch": self.best.epoch, "value": self.best.value}
        return tensors, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`. The recipe may have another number of epochs."""
        groups: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor.to(self.device)
        self.net.load_state_dict(groups["net"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, key = name.partition(".")
            like = parameters[int(index)]
            # In the parameter's memory format; the counter of steps stays where the optimizer keeps it, on the CPU.
            whole = (
                torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape and tensor.dim() else tensor.cpu()
            )
            states.setdefault(int(index), {})[key] = whole
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        self.scaler.load_state_dict(dict(facts["scaler"]))
        self.step = facts["step"]
        self.totals = Totals(**facts["totals"])
        self.history = list(facts["history"])
        self.best = None if facts["best"] is None else Best(**facts["best"], weights=groups["best"])
        self.trained_on = list(facts.get("trained_on", []))
        if facts["recipe"]["epochs"] != self.recipe.epochs:
            self.trained_on.append({"epochs": facts["recipe"]["epochs"], "steps": self.step})


def evaluate(
    net: nn.Module,
    split: Split | Any,
    task: Task,
    *,
    batch_size: int = 512,
    world: World | None = None,
    precision: str = "fp32",
) -> dict[str, float]:
    """The mean loss and metric over a split, in evaluation mode; afterwards the network is in the mode it was in.

    Args:
        net: the network, on the device where it is to run.
        split: a split, a data set, a DataLoader or a pair of tensors; every sample is used once.
        task: the loss and the metric.
        batch_size: samples at a time.
        world: processes that share the samples; all of them get the result.
        precision: as in a :class:`Recipe`.

    >>> data = tandem_snn.data.load("digits")
    >>> sorted(evaluate(Recipe().build(data), data.test, make_task("classification")))
    ['accuracy', 'loss']
    """
    world, split = World() if world is None else world, as_split(split, "split")
    device = next(net.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with evaluating(net):
        for inputs, targets in split.batches(batch_size, rank=world.rank, world=world.size):
            inputs, targets = inputs.to(device), targets.to(device)
            output, n = _output(net, inputs, device, precision), len(targets)
            sums += torch.stack(
                [task.loss(output, targets).double() * n, task.total(output, targets), sums.new_tensor(n)]
            )
    loss, metric, samples = world.sum(sums).tolist()
    return {"loss": loss / samples, task.metric: metric / samples}


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating-point value is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


def spikes(net: nn.Module) -> bool:
    """Whether the network has neurons."""
    return any(isinstance(layer, FIRING) for layer in net.modules())


def _output(net: nn.Module, inputs: Any, device: torch.device, precision: str) -> Tensor:
    """The network's answer with automatic mixed precision, in float32 or float64."""
    check_name("precision", precision, AUTOCAST)
    dtype = AUTOCAST[precision]
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        output: Tensor = net(inputs)
    return output if output.dtype == torch.float64 else output.float()


def derive(*parts: int | str) -> int:
    """A seed that depends on these parts alone; different parts give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
