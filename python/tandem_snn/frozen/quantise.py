"""Weights of few bits in a snapshot: rounded once and for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tandem_ext.functional.neuron import over_inputs

from .. import nn as tnn
from ..nn.quantise import quantise


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
def quantise_(net: nn.Module, bits: int | None) -> dict[str, Grid]:
    """Rounds the weights of layers and readouts in place to so many bits, or with None to each layer's own number.

    Returns:
        The grids of the layers that were rounded, by name.
    """
    grids = {}
    for name, layer in net.named_modules():
        if isinstance(layer, tnn.SpikingLayer | tnn.Readout):
            wanted = layer.weight_bits if bits is None else bits
            if wanted is not None:
                q, step = quantise(layer.weight, wanted)
                grids[name] = Grid(q.to(torch.int8), step)
                layer.weight.copy_(grids[name].weight())
            layer.weight_bits = None  # a grid's own grid may differ in the last bit
    return grids
