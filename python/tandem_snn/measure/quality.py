"""Accuracy over time: the readout after each step, early exit; confidence intervals of accuracies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nn.signals import describe

if TYPE_CHECKING:
    from ..frozen import FrozenNetwork

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
Batches = Iterable[tuple[Any, Tensor]]
Readouts = Iterable[tuple[Tensor, Tensor]]


def right_answers(output: Tensor, targets: Tensor) -> Tensor:
    """The number of outputs [B, classes] with their maximum at the target [B]."""
    return (output.argmax(1) == targets).sum()


def metric_over_time(
    frozen: FrozenNetwork, batches: Batches, total: Callable[[Tensor, Tensor], Tensor] = right_answers
) -> list[float]:
    """A metric after 1, 2, ..., T steps, per sample; by default the accuracy.

    The readout after t steps is t/T of a whole window's, so it is multiplied by T/t.

    Args:
        frozen: a network that streams, see :meth:`tandem_snn.FrozenNetwork.step`.
        batches: (inputs, targets), such as ``data.test.batches(500)``.
        total: the metric of (outputs, targets), summed over a batch, such as ``make_task("regression").total``.

    Raises:
        TypeError: the network is not a frozen one.
        ValueError: the network cannot stream.

    >>> from tandem_snn import freeze
    >>> net = torch.nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
    >>> len(metric_over_time(freeze(net), [(torch.rand(6, 3), torch.ones(6).long())]))
    4
    """
    return total_over_time(readouts_of(frozen, batches), total)


def total_over_time(readouts: Readouts, total: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """As :func:`metric_over_time`, from results of :func:`readouts_of`."""
    sums: list[float] = []
    samples = 0
    for answers, targets in readouts:
        parts = [float(total(answer * len(answers) / t, targets)) for t, answer in enumerate(answers, 1)]
        sums = [a + b for a, b in zip(sums or [0.0] * len(parts), parts, strict=True)]
        samples += len(targets)
    return [value / samples for value in sums]


@dataclass(frozen=True)
class Exit:
    """Early exit when the softmax of the readout reaches ``confidence``: accuracy, 0..1, and mean number of steps."""

    confidence: float
    accuracy: float
    steps: float


def early_exit(frozen: FrozenNetwork, batches: Batches, confidences: Sequence[float] = CONFIDENCES) -> list[Exit]:
    """Accuracy and time for each confidence at which a sample stops, as in :meth:`tandem_snn.FrozenNetwork.anytime`.

    Args:
        frozen: a network that streams.
        batches: (inputs, classes).
        confidences: each in (0, 1].

    Raises:
        TypeError: the network is not a frozen one.
        ValueError: the network cannot stream, a confidence is out of range, or the classes are not [B].

    >>> from tandem_snn import freeze
    >>> net = torch.nn.Sequential(tnn.Encoder(T=4), tnn.Linear(3, 5), tnn.Readout(5, 2))
    >>> early_exit(freeze(net), [(torch.rand(6, 3), torch.ones(6).long())], [1.0])[0].steps
    4.0
    """
    return exits(readouts_of(frozen, batches), confidences)


def exits(readouts: Readouts, confidences: Sequence[float] = CONFIDENCES) -> list[Exit]:
    """As :func:`early_exit`, from results of :func:`readouts_of`."""
    for confidence in confidences:
        if not 0 < confidence <= 1:
            raise ValueError(f"confidences: expected numbers in (0, 1], got {confidence}")
    sums = torch.zeros(len(confidences), 2, dtype=torch.float64)
    samples = 0
    for answers, targets in readouts:
        highest = answers.softmax(2).amax(2)
        if not isinstance(targets, Tensor) or targets.shape != answers.shape[1:2]:
            raise ValueError(f"batches: expected classes [{answers.shape[1]}] with the inputs, got {describe(targets)}")
        right = answers.argmax(2) == targets
        for i, confidence in enumerate(confidences):
            sure = highest >= confidence
            sure[-1] = True
            last = sure.int().argmax(0)  # the first such step
            sums[i, 0] += right.gather(0, last[None]).sum()
            sums[i, 1] += (last + 1).sum()
        samples += len(targets)
    return [Exit(c, *means) for c, means in zip(confidences, (sums / samples).tolist(), strict=True)]


def readouts_of(frozen: FrozenNetwork, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The readouts of all steps, [T, B, outputs], and the targets of each batch."""
    if not hasattr(frozen, "readouts"):
        raise TypeError(f"frozen: expected the result of tandem_snn.freeze(net), got {type(frozen).__name__}")
    samples = 0
    for x, targets in batches:
        yield frozen.readouts(x), targets
        samples += len(targets)
    if not samples:
        raise ValueError("batches: there are no samples; an iterator can be read only once")


Z = 1.959964  # 95 % of a normal distribution lie within ±Z


def difference_interval(first: float, second: float, samples: int) -> tuple[float, float]:
    """The 95 % interval of first - second, two accuracies 0..1 on ``samples`` test samples each.

    By Newcombe's method 10 (Statistics in Medicine 17, 1998), as if errors were independent. Networks err on the same
    samples, so it is rather too wide. It does not include the variation over seeds or training data.
    """
    (low1, high1), (low2, high2) = (_wilson(p, samples) for p in (first, second))
    return (
        first - second - math.hypot(first - low1, high2 - second),
        first - second + math.hypot(high1 - first, second - low2),
    )


def _wilson(p: float, n: int) -> tuple[float, float]:
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    width = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return centre - width, centre + width


def points(first: float, second: float, samples: int, digits: int = 2) -> str:
    """The difference of two accuracies 0..1 in points, with its 95 % interval."""
    low, high = difference_interval(first, second, samples)
    return f"{100 * (first - second):+.{digits}f} [{100 * low:+.{digits}f}, {100 * high:+.{digits}f}]"
