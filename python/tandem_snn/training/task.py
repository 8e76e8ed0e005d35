"""What a network is trained for: the loss, and the metric that is reported."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from ..data import TASKS
from ..errors import check_name


class Task(Protocol):
    """A loss and a metric.

    Attributes:
        metric: its name in logs and results.
        higher_is_better: whether it grows as the network gets better.
    """

    metric: str
    higher_is_better: bool

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss of a batch, 0-dim."""
        ...

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        """The metric, summed over the samples of a batch, 0-dim."""
        ...


class Classification:
    """Cross-entropy of logits [B, classes] and classes [B], int64; the accuracy, 0..1.

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
    """Mean squared error of an output [B, ...] and a target of as many elements, as loss and as metric.

    >>> Regression().loss(torch.ones(2, 4), torch.zeros(2, 1, 2, 2)).item()
    1.0
    """

    metric = "mse"
    higher_is_better = False

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output.flatten(1), target.flatten(1))

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.flatten(1) - target.flatten(1)).square().double().mean(1).sum()


def make_task(name: str, label_smoothing: float = 0.0) -> Task:
    """The task by its name, as :class:`tandem_snn.data.Dataset` has it: "classification" or "regression".

    Args:
        name: one of :data:`tandem_snn.data.TASKS`.
        label_smoothing: of the cross-entropy.

    Raises:
        UserError: another name.

    >>> make_task("regression").metric
    'mse'
    """
    check_name("task", name, TASKS)
    return Classification(label_smoothing) if name == "classification" else Regression()
