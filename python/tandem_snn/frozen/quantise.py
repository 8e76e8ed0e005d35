"""Weights of few bits in a snapshot: rounded once and for all."""

from __future__ import annotations

import torch
from torch import nn

from .. import nn as tnn
from ..nn.quantise import rounded


@torch.no_grad()
def quantise_(net: nn.Module, bits: int | None) -> None:
    """Rounds the weights of layers and readouts in place to so many bits, or with None to each layer's own number."""
    for layer in net.modules():
        if isinstance(layer, tnn.SpikingLayer | tnn.Readout):
            layer.weight.copy_(rounded(layer.weight, layer.weight_bits if bits is None else bits))
            layer.weight_bits = None  # a grid's own grid may differ in the last bit
