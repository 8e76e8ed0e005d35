"""Accuracy against time: what the readout says after each step, and when it is sure enough to stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tandem_ext import SpikeTrain

if TYPE_CHECKING:
    from ..frozen import FrozenNetwork

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def accuracy_over_time(frozen: FrozenNetwork, batches: Iterable[tuple[Any, Tensor]]) -> list[float]:
    """The share of right answers after 1, 2, ..., T steps.

    Args:
        frozen: a network that streams, see :meth:`tandem_snn.FrozenNetwork.step`.
        batches: (inputs, classes), such as ``data.test.batches(500)``.

    Raises:
        ValueError: the network cannot stream.

    >>> from tandem_snn import freeze
    >>> net = torch.nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
    >>> len(accuracy_over_time(freeze(net), [(torch.rand(6, 3), torch.ones(6).long())]))
    4
    """
    right: list[int] = []
    samples = 0
    for x, targets in batches:
        frozen.reset()
        if isinstance(x, SpikeTrain):
            frozen.T = x.T
        steps = x.to_dense() if isinstance(x, SpikeTrain) else [x] * (frozen.T or 0)
        correct = [int((frozen.step(x_t).argmax(1) == targets).sum()) for x_t in steps]
        right = [a + b for a, b in zip(right or [0] * len(correct), correct, strict=True)]
        samples += len(targets)
    frozen.reset()
    return [correct / samples for correct in right]


@dataclass(frozen=True)
class Exit:
    """What comes of stopping as soon as the softmax of the readout reaches ``confidence``: the accuracy, 0..1, and the
    mean number of steps.
    """

    confidence: float
    accuracy: float
    steps: float


def early_exit(
    frozen: FrozenNetwork, batches: Iterable[tuple[Any, Tensor]], confidences: Sequence[float] = CONFIDENCES
) -> list[Exit]:
    """Accuracy and time against the confidence at which a sample is done.

    Args:
        frozen: a network that streams, see :meth:`tandem_snn.FrozenNetwork.anytime`.
        batches: (inputs, classes).
        confidences: each in (0, 1].

    Raises:
        ValueError: the network cannot stream, or a confidence is out of range.

    >>> from tandem_snn import freeze
    >>> net = torch.nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
    >>> early_exit(freeze(net), [(torch.rand(6, 3), torch.ones(6).long())], [1.0])[0].steps
    4.0
    """
    sums = torch.zeros(len(confidences), 2)
    samples = 0
    for x, targets in batches:
        for i, confidence in enumerate(confidences):
            logits, steps = frozen.anytime(x, confidence)
            sums[i] += torch.tensor([(logits.argmax(1) == targets).sum(), steps.sum()])
        samples += len(targets)
    means = (sums.double() / samples).tolist()
    return [Exit(c, accuracy, steps) for c, (accuracy, steps) in zip(confidences, means, strict=True)]
