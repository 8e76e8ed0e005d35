"""Weights of few bits: symmetric, one step per output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import nn as tnn


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The integers q (as floats) in [-(2^(bits-1) - 1), 2^(bits-1) - 1] and steps [N] with weight ≈ step·q.

    >>> q, step = quantise(torch.tensor([[0.5, -1.0]]), 8)
    >>> q, step
    (tensor([[  64., -127.]]), tensor([0.0079]))
    """
    largest = 2 ** (bits - 1) - 1
    rows = weight.flatten(1)
    peak = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    step = torch.where(peak > 0, peak / largest, torch.ones_like(peak))
    q = (weight / step.view(-1, *[1] * (weight.dim() - 1))).round().clamp(-largest, largest)
    return q, step


@torch.no_grad()
def quantise_(net: nn.Module, bits: int) -> nn.Module:
    """Rounds the weights of layers and readouts in place, each output channel to multiples of its step."""
    for layer in net.modules():
        if isinstance(layer, tnn.SpikingLayer | tnn.Readout):
            q, step = quantise(layer.weight, bits)
            layer.weight.copy_(q * step.view(-1, *[1] * (q.dim() - 1)))
    return net
