"""How well the counts c follow the ANN branch's activation a = ρ(z)/ϑ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from .. import nn as tnn
from .hooks import evaluating, watching


@dataclass(frozen=True)
class Mismatch:
    """One layer's counts c beside its activation a, and beside q = clip(⌊z/ϑ⌋, 0, T), what an ideal neuron would fire.

    Attributes:
        cosine: of the angle between c and a, as vectors over the layer's neurons; mean over samples.
        exact, over, under: shares of the neurons with c = q, c > q, c < q.
        spurious: share of the neurons that fire although z ≤ 0, so that no gradient reaches them.
    """

    cosine: float
    exact: float
    over: float
    under: float
    spurious: float


def mismatch(net: nn.Module, x: Any) -> dict[str, Mismatch]:
    """The mismatch of each layer of IF neurons at the real counts of its input, in evaluation mode.

    Args:
        net: a network of layers of ``tandem_snn.nn``.
        x: a batch of what ``net`` takes.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(64, 32, norm=True), tnn.Readout(32, 2))
    >>> mismatch(net, torch.rand(5, 64))["1"].cosine > 0.8
    True
    """
    return {name: _compare(counts, a, T) for name, counts, a, T in activations(net, x)}


def activations(net: nn.Module, x: Any) -> list[tuple[str, Tensor, Tensor, int]]:
    """(name, counts c, z/ϑ, T) of each layer of IF neurons, in evaluation mode."""
    found: list[tuple[str, Tensor, Tensor, int]] = []

    def record(name: str, layer: nn.Module, x: Any, kwargs: dict[str, Any], train: Any) -> None:
        if isinstance(train, SpikeTrain):
            assert isinstance(layer, tnn.SpikingLayer)
            z = layer.preactivation(x, kwargs.get("residual"))
            threshold = torch.as_tensor(layer.threshold, device=z.device)
            threshold = threshold.view(-1, *[1] * (z.dim() - 2)) if threshold.dim() else threshold
            found.append((name, train.counts, z / threshold, train.T))

    with evaluating(net), watching(net, (tnn.SpikingLayer,), record):
        net(x)
    return found


def _compare(counts: Tensor, a: Tensor, T: int) -> Mismatch:
    cosine = nn.functional.cosine_similarity(counts.flatten(1), a.relu().flatten(1), dim=1)
    ideal = a.floor().clamp(0, T)

    def share(which: Tensor) -> float:
        return which.double().mean().item()

    return Mismatch(
        cosine=cosine.double().mean().item(),
        exact=share(counts == ideal),
        over=share(counts > ideal),
        under=share(counts < ideal),
        spurious=share((counts > 0) & (a <= 0)),
    )
