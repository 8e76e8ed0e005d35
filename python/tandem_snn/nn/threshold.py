"""Thresholds from data."""

from __future__ import annotations

from torch import Tensor

from .general import Neurons
from .neuron import SpikingLayer

_SAMPLE = 2**20  # activations that are kept of one batch


def positive_sample(activations: Tensor) -> Tensor:
    """The positive ones among a million activations at most, evenly spaced: float32 [N] on the CPU."""
    values = activations.flatten()
    values = values[:: 1 + values.numel() // _SAMPLE]
    return values[values > 0].float().cpu()


def percentile_of(values: Tensor, percentile: float) -> float:
    """The value that ``percentile`` per cent of the values [N] do not exceed.

    >>> percentile_of(torch.arange(101.0), 99)
    99.0
    """
    rank = round((len(values) - 1) * percentile / 100)
    return values.kthvalue(rank + 1).values.item()


def set_threshold(layer: SpikingLayer | Neurons, value: float) -> None:
    """Sets a layer's threshold, in place where it is a tensor. The initial potential keeps its ratio to it."""
    threshold, v_init = layer.threshold, layer.v_init
    ratio = value / float(threshold)
    if isinstance(threshold, Tensor):
        threshold.data.fill_(value)
    else:
        layer.threshold = value
    if isinstance(v_init, Tensor):
        v_init.data.mul_(ratio)
    else:
        layer.v_init = v_init * ratio
