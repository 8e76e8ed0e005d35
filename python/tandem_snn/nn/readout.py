"""Readout: the output layer of a spiking network, a linear map of spike counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_ext.functional.layer import autocast_dtype, by_channel
from tandem_ext.functional.neuron import cast
from tandem_ext.functional.products import LINEAR
from tandem_ext.ops import counts_dtype

from .quantise import check_bits, rounded
from .signals import Signal, check_input, map_counts


class Readout(nn.Linear):
    """The output layer of a spiking network: a linear map of spike counts to logits, without spikes.

    The result is the membrane potential that neurons without a threshold would reach after the whole window. Its
    gradient is exact. The bias is added once. If T exceeds the integers that a half-precision type represents, 256 in
    bfloat16 and 2,048 in float16, the product is computed in float32, also under autocast.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        weight_bits: as in :class:`NeuronOptions`.

    Shape: a signal or a tensor of counts [B, in_features] -> Tensor [B, out_features].

    Raises:
        ValueError: weight_bits is not allowed; or, when called, x has another number of features.
        TypeError: when called, x is neither a signal nor a tensor.

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
            x, weight = by_channel(x, self.weight, LINEAR)  # bit-identical to frozen networks
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
            return F.linear(cast(counts, weight.dtype), weight, self.bias)
        with torch.autocast(weight.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(counts.float(), weight.float(), bias).to(dtype)

    def used_weight(self, weight: Tensor | None = None) -> Tensor:
        """Return the weights that the layer computes with: ``weight`` or its own, rounded if it has ``weight_bits``."""
        return rounded(self.weight if weight is None else weight, self.weight_bits)
