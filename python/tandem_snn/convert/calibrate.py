"""calibrate: thresholds from data."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from .. import ann
from .. import nn as tnn
from ..measure.hooks import evaluating, watching
from ..nn import general
from ..nn.signals import describe, effective_counts
from ..nn.threshold import percentile_of, positive_sample, set_threshold
from .to_ann import to_ann


@torch.no_grad()
def calibrate(net: nn.Module, loader: Iterable[Any], percentile: float | None = None) -> nn.Module:
    """Sets the threshold of each layer so that its counts just cover the ANN's activations.

    ϑ = a/T, where a is the given percentile of the layer's activations that are not zero, over all neurons and all of
    the loader's inputs, in the ANN twin and in evaluation mode. Larger ones saturate: a count cannot exceed T. The
    initial potentials keep their ratio to the thresholds.

    Args:
        net: a network whose layers' spikes are worth their threshold (``gain="threshold"``), such as :func:`convert`
            returns; its thresholds are changed in place. Layers with other gains keep theirs.
        loader: batches of what ``net`` takes, or tuples or lists whose first item is one.
        percentile: in (0, 100]. None: 100 - 8/T, but with timing "step" 99 at least: the more steps there are, the less
            do larger thresholds cost, and the more does it count what saturates.

    Returns:
        net.

    Raises:
        TypeError: a batch of something else.
        ValueError: percentile out of range, no layer to calibrate, an empty loader, or T unknown.

    >>> from tandem_snn import convert
    >>> snn = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), T=8)
    >>> _ = calibrate(snn, [torch.rand(10, 6)])
    >>> snn.get_submodule("0").threshold.item() < 0.5
    True
    """
    if percentile is not None and not (isinstance(percentile, Real) and 0 < percentile <= 100):
        raise ValueError(f"percentile: expected a number in (0, 100], got {percentile!r:.80}")
    firing = (tnn.SpikingLayer, general.Neurons)
    layers = {n: m for n, m in net.named_modules() if isinstance(m, firing) and m.gain == "threshold"}
    if not layers:
        raise ValueError('net: no layer has gain="threshold", as those of convert() have')
    windows = {m.T for m in net.modules() if isinstance(m, tnn.Encoder)}
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, layer: nn.Module, x: Any, keywords: dict[str, Any], activation: Tensor) -> None:
        if name in seen and keywords.get("fire", True):
            seen[name].append(positive_sample(activation))

    twin = to_ann(net)
    with (
        evaluating(net),
        evaluating(twin),
        watching(twin, (ann.Linear, ann.Conv1d, ann.Conv2d, nn.ReLU, nn.Hardtanh), keep),
    ):
        for batch in loader:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor | SpikeTrain):
                raise TypeError(
                    f"loader: expected tensors or SpikeTrains, or tuples that begin with one, got {describe(x)}"
                )
            if isinstance(x, SpikeTrain):
                windows.add(x.T)
                x = effective_counts(x)
            twin(x)
    if not any(seen.values()):
        raise ValueError("loader: it gave no batch")
    if len(windows) != 1:
        raise ValueError(f"T: expected one, the network and its inputs have {sorted(windows)}")
    (T,) = windows
    for name, layer in layers.items():
        covered = _covered(T, layer.timing) if percentile is None else percentile
        values = torch.cat([*seen[name], torch.empty(0)])
        if len(values):  # a projection's own neurons never fire, nor does a layer that is silent throughout
            set_threshold(layer, percentile_of(values, covered) / T)
    return net


def _covered(T: int, timing: str) -> float:
    """The percentile of a layer's activations that its counts are to cover."""
    share = 100 - 8 / T
    return share if timing == "window" else max(99.0, share)
