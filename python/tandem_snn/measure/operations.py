"""Synaptic operations: what a network costs on hardware that works per spike, beside what its ANN twin costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from .. import nn as tnn
from ..nn.signals import Signal
from .hooks import SYNAPTIC, evaluating, watching


@dataclass(frozen=True)
class LayerOps:
    """Operations of one layer per sample: the ANN twin's MACs, and the SNN's ACs, or MACs for a real-valued input."""

    ann_macs: float
    macs: float
    acs: float


@dataclass(frozen=True)
class SynOps:
    """Operations of a network per sample, by layer and in all."""

    layers: dict[str, LayerOps]

    @property
    def ann(self) -> float:
        """MACs of the ANN twin: fan-in times neurons, over all layers."""
        return sum(layer.ann_macs for layer in self.layers.values())

    @property
    def snn(self) -> float:
        """Operations of the SNN: one AC per spike and synapse it reaches, and the MACs of a real-valued input, once."""
        return sum(layer.macs + layer.acs for layer in self.layers.values())

    @property
    def ratio(self) -> float:
        """snn / ann, an AC counting as much as a MAC."""
        return self.snn / self.ann


def synops(net: nn.Module, x: Any) -> SynOps:
    """Counts a network's synaptic operations on a batch, in evaluation mode.

        ANN = Σ_l fan-in_l · neurons_l  (MACs)        SNN = Σ_t Σ_l Σ_j fan-out_j · s_j[t]  (ACs)

    The fan-out of a spike is the number of synapses it reaches: exact at borders, strides, dilations and groups. The
    fan-in is that of a neuron whose window lies inside the image, as such figures are published: it is the products an
    ANN computes, padding included. A layer whose input is real-valued (direct encoding, mean counts) costs the ANN's
    MACs once, whatever T. Average pooling is a layer with k² synapses per neuron; a residual block's identity is one
    per spike. Pooling to counts has no synapses.

    Args:
        net: a network of layers of ``tandem_snn.nn``.
        x: a batch of what ``net`` takes.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> synops(net, torch.rand(5, 4)).layers["1"]
    LayerOps(ann_macs=12.0, macs=12.0, acs=0.0)
    """
    layers: dict[str, LayerOps] = {}

    def record(name: str, layer: nn.Module, x: Any, kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(layer, tnn.AvgPool2d) and not isinstance(output, SpikeTrain):
            return  # pooled to counts: no neurons, no synapses
        outputs = output.shape[1:] if isinstance(output, SpikeTrain) or output.dim() < 4 else output.shape[-3:]
        ops = _layer_ops(layer, x, outputs)
        shortcut = kwargs.get("residual")
        if isinstance(shortcut, SpikeTrain):
            spikes = shortcut.counts.double().sum().item() / len(shortcut)
            ops = LayerOps(ops.ann_macs + outputs.numel(), ops.macs, ops.acs + spikes)
        layers[name] = ops

    with evaluating(net), watching(net, SYNAPTIC, record):
        net(x)
    if not layers:
        raise ValueError("net: expected a network of layers of tandem_snn.nn, found none")
    return SynOps(layers)


def _layer_ops(layer: Any, x: Signal | Tensor, outputs: torch.Size) -> LayerOps:
    if isinstance(layer, tnn.AvgPool2d):
        fan_in, groups = layer.kernel_size[0] * layer.kernel_size[1], x.shape[1]
    else:
        fan_in, groups = layer.weight[0].numel(), getattr(layer, "groups", 1)
    macs = float(fan_in * outputs.numel())
    if not isinstance(x, SpikeTrain):
        return LayerOps(macs, macs, 0.0)
    spikes = x.counts.double().mean(0)  # per sample
    if spikes.dim() == 1:
        return LayerOps(macs, 0.0, spikes.sum().item() * outputs[-1])
    reached = fan_out(layer, spikes.shape[1:]) * (outputs[0] // groups)
    return LayerOps(macs, 0.0, (spikes.sum(0) * reached).sum().item())


def fan_out(layer: Any, space: torch.Size) -> Tensor:
    """How many output positions each input position reaches in a convolution or pooling layer: float64 [*space].

    It is the gradient of the sum over an all-ones product, whose kernel has one channel.

    >>> fan_out(tnn.Conv1d(1, 1, 3, padding=1), torch.Size([4]))
    tensor([2., 3., 3., 2.], dtype=torch.float64)
    """
    conv = nn.functional.conv1d if len(space) == 1 else nn.functional.conv2d
    ones = torch.ones(1, 1, *space, dtype=torch.float64, requires_grad=True)
    kernel = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    with torch.enable_grad():
        reached = conv(ones, kernel, None, layer.stride, layer.padding, getattr(layer, "dilation", 1)).sum()
    (gradient,) = torch.autograd.grad(reached, ones)
    return gradient[0, 0]
