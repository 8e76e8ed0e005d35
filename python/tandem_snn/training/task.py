"""Loss, metric, optimizer and learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import TASKS
from ..errors import check_name
from .recipe import Recipe


class Classification:
    """Cross-entropy of logits [B, classes] and classes [B], int64; the accuracy, 0..1.

    ``loss`` is the mean of a batch, ``total`` the metric summed over its samples, each 0-dim. ``metric`` is its name
    in logs and results.

    Args:
        label_smoothing: as in ``torch.nn.functional.cross_entropy``.

    >>> task, logits = Classification(), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> task.total(logits, torch.tensor([0, 0])).item()
    1.0
    """

    metric = "accuracy"
    higher_is_better = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).double().sum()


class Regression:
    """Mean squared error of an output [B, ...] and a target of as many elements, [B, ...], as loss and as metric.

    >>> Regression().loss(torch.ones(2, 4), torch.zeros(2, 1, 2, 2)).item()
    1.0
    """

    metric = "mse"
    higher_is_better = False

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.flatten(1), target.reshape(len(target), -1))

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.flatten(1) - target.reshape(len(target), -1)).square().double().mean(1).sum()


Task = Classification | Regression
"""A loss and a metric."""


def make_task(name: str, label_smoothing: float = 0.0) -> Task:
    """The task with this name.

    Args:
        name: "classification" or "regression", see :attr:`tandem_snn.data.Dataset.task`.
        label_smoothing: of the cross-entropy.

    Raises:
        UserError: an unknown name.

    >>> make_task("regression").metric
    'mse'
    """
    check_name("task", name, TASKS)
    return Classification(label_smoothing) if name == "classification" else Regression()


_START = 1 / 25  # the one-cycle schedule's first learning rate, as a share of the peak
_RISE = 0.1  # the share of the steps in which it rises


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, for the parameters with ``requires_grad``.

    Weight decay applies to parameters with two or more dimensions, not to biases, batch norm and thresholds.

    >>> [len(group["params"]) for group in make_optimizer(torch.nn.Linear(3, 2), Recipe(weight_decay=0.1)).param_groups]
    [1, 1]
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=recipe.lr, fused=True)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run. A pure function: the schedule has no state.

    >>> [learning_rate(Recipe(epochs=10, lr=1.0), step, 10) for step in (0, 10, 55)]
    [0.04, 1.0, 0.5]
    """
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "multistep":
        return recipe.lr * recipe.lr_factor ** sum(step >= m * steps_per_epoch for m in recipe.milestones)
    if recipe.schedule == "constant":
        return recipe.lr
    rise = _RISE * total if recipe.schedule == "one-cycle" else 0.0
    if step < rise:
        return recipe.lr * (_START + (1 - _START) * (1 - math.cos(math.pi * step / rise)) / 2)
    return recipe.lr * (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2
