"""Round the weights of a snapshot to few bits."""

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
    """Weights as integers times a quantisation step per output channel.

    Attributes:
        q: the integers, as floats or int8, with the shape of the weight, [N, ...].
        step: the quantisation steps [N], in the dtype of the weight.
    """

    q: Tensor
    step: Tensor

    def weight(self) -> Tensor:
        """Return the weights step·q."""
        if self.q.dim() < 2 or self.step.shape != self.q.shape[:1]:
            raise ValueError(f"steps of shape {list(self.step.shape)} for weights of shape {list(self.q.shape)}")
        return self.q.to(self.step.dtype) * over_inputs(self.step, self.q)


@torch.no_grad()
def round_(net: nn.Module, bits: int | None) -> None:
    """Round the weights of layers and readouts in place to ``bits``; None: to the ``weight_bits`` of each layer.

    If gains differ by channel, layers round their weights times the gain when they run.

    Raises:
        ValueError: neurons use the general way, in which torch's operators multiply the weights.
    """
    general = next((name for name, layer in net.named_modules() if isinstance(layer, Neurons)), None)
    if bits is not None and general is not None:
        raise ValueError(f"weight_bits: {general!r} uses the general way, in which weights cannot be rounded")
    layers: list[Any] = [layer for layer in net.modules() if isinstance(layer, tnn.SpikingLayer | tnn.Readout)]
    firing = [layer for layer in layers if isinstance(layer, tnn.SpikingLayer) and layer.gain == "threshold"]
    by_channel = any(isinstance(layer.threshold, Tensor) and layer.threshold.dim() for layer in firing)
    for layer in layers:
        layer.weight_bits = layer.weight_bits if bits is None else bits
        if layer.weight_bits is not None and not by_channel:
            layer.weight.copy_(Grid(*quantise(layer.weight, layer.weight_bits)).weight())


@torch.no_grad()
def grids_of(net: nn.Module) -> dict[str, Grid]:
    """Return the grids of the layers with ``weight_bits``, by name."""
    if isinstance(net, Stages):
        return {stage.name: Grid(stage.weight, stage.step) for stage in net.stages if stage.step is not None}
    grids = {}
    for name, layer in net.named_modules():
        if getattr(layer, "weight_bits", None) is not None:
            q, step = quantise(layer.weight, layer.weight_bits)
            grids[name] = Grid(q.to(torch.int8), step)
    return grids
