"""The training loop for classification."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from ..data import Dataset, Split
from ..errors import UserError
from .recipe import Recipe


@dataclass(frozen=True)
class Epoch:
    """One epoch's mean loss and accuracy while training, and the test accuracy after it."""

    loss: float
    train_accuracy: float
    test_accuracy: float


def train_epoch(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[float, float]:
    """One pass over ``batches`` with cross-entropy.

    Returns:
        (mean loss, accuracy) of the batches as they were met.

    Raises:
        UserError: the loss is not finite; the message says at which step.
    """
    net.train()
    loss_sum, correct, seen = 0.0, 0, 0
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the loss became {value} at step {step + 1} of the epoch: try a smaller learning rate")
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        loss_sum += value * len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
        if on_step is not None:
            on_step()
    return loss_sum / seen, correct / seen


@torch.no_grad()
def accuracy(net: nn.Module, split: Split, batch_size: int = 512) -> float:
    """The share of right answers, 0..1, in evaluation mode."""
    net.eval()
    return sum(int((net(x).argmax(1) == y).sum()) for x, y in split.batches(batch_size)) / len(split)


def fit(
    net: nn.Module, data: Dataset, recipe: Recipe, seed: int, on_step: Callable[[], None] | None = None
) -> list[Epoch]:
    """Trains ``net`` in place by the recipe; the order of the images follows from the seed.

    Returns:
        One record per epoch. Nothing is selected by the test accuracy: the network is that of the last epoch.
    """
    batch_size = min(recipe.batch_size, len(data.train))
    steps = recipe.epochs * (len(data.train) // batch_size)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.lr)
    scheduler = OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    history = []
    for epoch in range(recipe.epochs):
        batches = data.train.batches(batch_size, seed=1_000_000 * seed + epoch)
        loss, train_accuracy = train_epoch(net, batches, optimizer, scheduler, on_step)
        history.append(Epoch(loss, train_accuracy, accuracy(net, data.test)))
    return history
