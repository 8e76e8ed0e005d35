"""Weights of few bits in a snapshot, rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext.functional.neuron import over_inputs

from .. import nn as tnn
from ..nn.general import Neurons
from ..nn.quantise import quantise
from .stages import Stages


@dataclass(frozen=True, eq=False)
class Grid:
    """Weights that are integers times a step per output channel.

    Attributes:
        q: the integers, as floats or int8, of the weight's shape [N, ...].
        step: [N], in the weight's dtype.
    """

    q: Tensor
    step: Tensor

    def weight(self) -> Tensor:
        """The weights step·q."""
        if self.q.dim() < 2 or self.step.shape != self.q.shape[:1]:
            raise ValueError(f"steps of shape {list(self.step.shape)} for weights of shape {list(self.q.shape)}")
        return self.q.to(self.step.dtype) * over_inputs(self.step, self.q)


@torch.no_grad()
def round_(net: nn.Module, bits: int | None) -> None:
    """Rounds the weights of layers and readouts in place to so many bits, or with None to each layer's own number.

    If gains differ by channel, layers round their weights times the gain when they run.

    Raises:
        ValueError: neurons whose currents come the general way: torch's own operators have their weights.
    """
    general = next((name for name, layer in net.named_modules() if isinstance(layer, Neurons)), None)
    if bits is not None and general is not None:
        raise ValueError(f"weight_bits: the currents of {general!r} come the general way, with weights as they are")
    layers: list[Any] = [layer for layer in net.modules() if isinstance(layer, tnn.SpikingLayer | tnn.Readout)]
    firing = [layer for layer in layers if isinstance(layer, tnn.SpikingLayer) and layer.gain == "threshold"]
    by_channel = any(isinstance(layer.threshold, Tensor) and layer.threshold.dim() for layer in firing)
    for layer in layers:
        layer.weight_bits = layer.weight_bits if bits is None else bits
        if layer.weight_bits is not None and not by_channel:
            layer.weight.copy_(Grid(*quantise(layer.weight, layer.weight_bits)).weight())


@torch.no_grad()
def grids_of(net: nn.Module) -> dict[str, Grid]:
    """The grids of the layers whose weights have few bits, by name."""
    if isinstance(net, Stages):
        return {stage.name: Grid(stage.weight, stage.step) for stage in net.stages if stage.step is not None}
    grids = {}
    for name, layer in net.named_modules():
        if getattr(layer, "weight_bits", None) is not None:
            q, step = quantise(layer.weight, layer.weight_bits)
            grids[name] = Grid(q.to(torch.int8), step)
    return grids
