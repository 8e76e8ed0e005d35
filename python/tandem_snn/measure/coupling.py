"""The mismatch between the counts c and the ANN branch's activation a = ρ(z)/ϑ."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain
from tandem_ext.functional.neuron import over_space

from .. import nn as tnn
from ..nn.hooks import check_layers, evaluating, watching
from ..nn.signals import called, effective_counts

_PASSING = (tnn.AvgPool2d, tnn.AdaptiveAvgPool2d, tnn.MaxPool2d, tnn.Flatten, tnn.Dropout)
_READING = (tnn.SpikingLayer, tnn.Readout)


@dataclass(frozen=True)
class Mismatch:
    """One layer's counts c compared with its activation a, and with q = clip(⌊(z + v_init)/ϑ⌋, 0, T), the count of an
    ideal neuron, which with timing "window" is c.

    Attributes:
        cosine: of the angle between c and a, as vectors over the layer's neurons; mean over samples.
        correlation: Pearson's, between the products W c and W a of the next layer, over its outputs and the samples;
            NaN if there are none or they are constant.
        exact, over, under: shares of the neurons with c = q, c > q, c < q.
        spurious: share of the neurons that fire although z ≤ 0, so that they get no gradient.
        note: why the correlation is NaN; empty if it is not.
    """

    cosine: float
    correlation: float
    exact: float
    over: float
    under: float
    spurious: float
    note: str = ""


@dataclass
class Activation:
    """A layer's counts c, a = z/ϑ (not rectified), T, v_init in thresholds, and the products W c and W ρ(a) of the next
    layer.
    """

    name: str
    counts: Tensor
    a: Tensor
    T: int
    v_init: Tensor
    products: tuple[Tensor, Tensor] | None = None


def mismatch(net: nn.Module, x: Any) -> dict[str, Mismatch]:
    """The mismatch of each layer with neurons, at the real counts of its input, see :func:`activations`.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(64, 32, timing="window"), tnn.Readout(32, 2))
    >>> result = mismatch(net, 4 * torch.rand(5, 64))["1"]
    >>> result.cosine > 0.8, result.correlation > 0.8
    (True, True)
    """
    return {layer.name: _compare(layer) for layer in activations(net, x)}


def activations(net: nn.Module, x: Any) -> list[Activation]:
    """Counts and activations of each layer of ``tandem_snn.nn`` with neurons, in the order of execution, in evaluation
    mode. If a layer is used more than once, "_again" is added to its name.

    Args:
        net: a network of layers of ``tandem_snn.nn``.
        x: a batch of inputs of ``net``.

    Raises:
        ValueError: the network has no such layers.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(64, 32), tnn.Readout(32, 2))
    >>> [(layer.name, layer.counts.shape, layer.a.shape) for layer in activations(net, torch.rand(5, 64))]
    [('1', torch.Size([5, 32]), torch.Size([5, 32]))]
    """
    check_layers(net, (tnn.SpikingLayer,), x)
    found: list[Activation] = []
    # By the identity of a train: (train, the activation in its place, its layer).
    ideal: dict[int, tuple[Any, Tensor, Activation]] = {}

    def record(name: str, layer: Any, x: Any, kwargs: dict[str, Any], y: Any) -> None:
        if id(x) in ideal:
            _, activation, source = ideal[id(x)]
            if isinstance(layer, _PASSING):
                activation = layer.forward(activation)  # type: ignore[assignment]  # a tensor gives a tensor
                ideal[id(y)] = (y, activation, source)
            elif source.products is None:
                source.products = _product(layer, effective_counts(x)), _product(layer, activation)
        if isinstance(layer, tnn.SpikingLayer) and isinstance(y, SpikeTrain):
            while any(other.name == name for other in found):
                name += "_again"  # as exports name it
            z = layer.preactivation(x, kwargs.get("residual"))
            threshold = over_space(torch.as_tensor(layer.threshold_for(y.T), device=z.device), z.shape)
            v_init = over_space(torch.as_tensor(layer.initial_potential / layer.fires_at, device=z.device), z.shape)
            found.append(Activation(name, y.counts, z / threshold, y.T, v_init))
            ideal[id(y)] = (y, found[-1].a.relu() * over_space(y.gain, y.shape), found[-1])

    with evaluating(net), watching(net, (*_PASSING, *_READING), record):
        called(net, x)
    return found


def _product(layer: Any, counts: Tensor) -> Tensor:
    """W·counts, without the bias."""
    if isinstance(layer, tnn.Readout | tnn.Linear):
        return nn.functional.linear(counts.to(layer.weight.dtype), layer.used_weight())
    return layer.real_product(layer.arranged(counts))


def _compare(layer: Activation) -> Mismatch:
    counts, a = layer.counts, layer.a
    cosine = nn.functional.cosine_similarity(counts.flatten(1), a.relu().flatten(1), dim=1)
    ideal = (a + layer.v_init).floor().clamp(0, layer.T)

    def share(mask: Tensor) -> float:
        return mask.double().mean().item()

    correlation, note = math.nan, ""
    if layer.products is None:
        note = "no layer of tandem_snn.nn reads the counts"
    elif constant := [name for name, u in zip(("W c", "W a"), layer.products, strict=True) if u.min() == u.max()]:
        note = f"constant: {' and '.join(constant)} of the next layer" + ("" if counts.any() else "; no neuron fires")
    else:
        correlation = torch.corrcoef(torch.stack([u.double().flatten() for u in layer.products]))[0, 1].item()
    return Mismatch(
        cosine=cosine.double().mean().item(),
        correlation=correlation,
        exact=share(counts == ideal),
        over=share(counts > ideal),
        under=share(counts < ideal),
        spurious=share((counts > 0) & (a <= 0)),
        note=note,
    )
