"""Optimizers and learning rates by recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .recipe import Recipe

_START = 1 / 25  # where the one-cycle schedule begins, as a share of the peak
_RISE = 0.1  # the share of the steps over which it rises


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer for the parameters that are trained.

    Weight decay is for those of two and more dimensions: biases, γ and β of batch norm, and thresholds are spared.

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
    """The learning rate of a step, counted from 0 over the whole run: a function of the step, without a state.

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
