"""Readout: from the last spike counts to the network's answer, without spikes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_ext.functional.layer import autocast_dtype, by_channel
from tandem_ext.functional.products import LINEAR
from tandem_ext.ops import counts_dtype

from .quantise import check_bits, rounded
from .signals import Signal, check_input, map_counts


class Readout(nn.Linear):
    """The network's output layer: a linear map of the counts, which is the free aggregate membrane potential.

    Its gradient is exact. The bias counts once for the whole window. Counts that a half-precision type does not hold,
    above 256 in bfloat16 and 2,048 in float16, are multiplied in float32, under autocast too.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``.
        weight_bits: as of :class:`NeuronOptions`.

    Shape: a signal [B, in_features], or counts as a tensor [B, in_features] -> Tensor [B, out_features].

    >>> train = te.SpikeTrain.from_dense(torch.ones(8, 2, 3))
    >>> tnn.Readout(3, 10)(train).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_bits(weight_bits)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight_bits = weight_bits

    def forward(self, x: Signal | Tensor) -> Tensor:
        check_input(x, "Readout")
        shape, weight = x.shape, None
        T = 1 if isinstance(x, Tensor) else x.T
        if not isinstance(x, Tensor):
            x, weight = by_channel(x, self.weight, LINEAR)  # as frozen networks have it, to the bit
        if shape[-1] != self.in_features or (len(shape) > 2 and not isinstance(x, Tensor)):
            raise ValueError(
                f"x: Readout takes {self.in_features} features per sample, got shape {list(shape)}"
                + (": put tnn.Flatten() before it" if len(shape) > 2 else "")
            )
        return map_counts(x, lambda counts: self._product(counts, weight, T))

    def _product(self, counts: Tensor, weight: Tensor | None, T: int) -> Tensor:
        weight = self.used_weight(weight)
        dtype = autocast_dtype(weight)
        if counts_dtype(dtype, T) == dtype:
            return F.linear(counts.to(weight.dtype), weight, self.bias)
        with torch.autocast(weight.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(counts.float(), weight.float(), bias).to(dtype)

    def used_weight(self, weight: Tensor | None = None) -> Tensor:
        """As of :class:`SpikingLayer`; ``weight`` replaces the layer's own."""
        return rounded(self.weight if weight is None else weight, self.weight_bits)
