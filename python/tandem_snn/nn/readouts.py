"""Layers that answer: linear maps of spike counts to numbers, exact wherever counts are known."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_ext import SpikeTrain
from tandem_ext._load import has_kernels
from tandem_ext.functional.autograd import apply
from tandem_ext.functional.currents import RealProduct
from tandem_ext.functional.layer import Input, by_channel, window_product
from tandem_ext.functional.neuron import cast, fold, over_space, started
from tandem_ext.functional.products import LINEAR, Product, autocast_dtype, convolution, torch_product
from tandem_ext.ops import compute_dtype
from tandem_ext.rule import divided, fixed_point
from tandem_ext.signal import needs_grad
from tandem_ext.train import with_flags

from .currents import real_product
from .quantise import byte_integers, check_bits, integers, rounded
from .signals import MeanCounts, check_images, check_input, effective_counts, features_first, features_last, means_of


class _FewBits(nn.Module):
    """Base class of readouts: their weights may be of few bits."""

    weight: Tensor
    weight_bits: int | None

    def extra_repr(self) -> str:
        bits = "" if self.weight_bits is None else f", weight_bits={self.weight_bits}"
        return super().extra_repr() + bits

    def used_weight(self) -> Tensor:
        """Return the weights that the layer computes with: rounded if it has ``weight_bits``."""
        return rounded(self.weight, self.weight_bits)


class Readout(_FewBits, nn.Linear):
    """The output layer of a spiking network: a linear map of spike counts to logits, without spikes.

    The result is the membrane potential that neurons without a threshold would reach after the whole window, with the
    ANN's gradient. Of a train, and of mean counts that come straight from a pooling or its ``Flatten``, it is an exact
    sum, rounded in float32, with the same bits everywhere (docs/rule.md); of other numbers it is torch's product.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        weight_bits: as in :class:`NeuronOptions`.

    Shape: a signal, currents or a tensor of counts [B, in_features] -> Tensor [B, out_features]; or tokens [B, N,
    in_features], or [B, H, W, in_features].

    Raises:
        ValueError: weight_bits is out of range; or, when called, x has another number of features.
        TypeError: weight_bits is not an int; or, when called, x is neither a signal nor a tensor.

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

    def synapses(self, axes: int = 0) -> Product:
        return LINEAR if axes == 0 else convolution((1,) * axes, 1, 0, 1, 1)

    def forward(self, x: Input | Tensor) -> Tensor:
        check_input(x, "Readout")
        shape = x.shape
        axes = len(shape) - 2
        if shape[-1] != self.in_features or axes > 2:
            raise ValueError(
                f"x: Readout takes {self.in_features} features per sample or token, got shape {list(shape)}"
                + (": put tnn.Flatten() before it" if axes > 0 else "")
            )
        if axes == 0:
            return read_out(self, x, LINEAR)
        answer: Tensor = features_last(read_out(self, features_first(x, axes), self.synapses(axes)), axes)
        return answer


class ReadoutConv2d(_FewBits, nn.Conv2d):
    """The output layer of a network that answers for each pixel: a convolution of spike counts, without spikes.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in
            ``torch.nn.Conv2d``; padding may be "same" or "valid".
        weight_bits: as in :class:`NeuronOptions`.

    Shape: a signal, currents or a tensor of counts [B, in_channels, H, W] -> Tensor [B, out_channels, H', W'].

    Raises:
        ValueError: a setting is out of range; or, when called, x does not fit.
        TypeError: a setting has the wrong type; or, when called, x is neither a signal nor a tensor.

    >>> train = te.SpikeTrain.from_dense(torch.ones(8, 2, 3, 5, 5))
    >>> tnn.ReadoutConv2d(3, 10, 1)(train).shape
    torch.Size([2, 10, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        weight_bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_bits(weight_bits)
        geometry: Any = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, "zeros", device, dtype)  # type: ignore[call-arg]
        self.weight_bits = weight_bits

    def synapses(self, axes: int = 0) -> Product:
        return convolution(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: Input | Tensor) -> Tensor:
        check_images(x, "ReadoutConv2d")
        return read_out(self, x, self.synapses())


def read_out(layer: Any, x: Input | Tensor, synapses: Product) -> Tensor:
    """Return the answer of a readout: from exact sums of counts or mean counts; of real numbers torch's product."""
    weight, bias, bits = layer.weight, layer.bias, layer.weight_bits
    pixels = [1] * (2 + len(synapses.stride) - weight.dim())  # of the kernel of tokens
    if pixels:
        weight = weight.view(*weight.shape, *pixels)
    means = means_of(x)
    counted = x if isinstance(x, SpikeTrain) else means
    if counted is None:
        return real_answer(effective_counts(x), rounded(weight, bits), bias, synapses)
    counted, used = by_channel(counted, weight, synapses)
    step = None
    if bits is not None:
        learns = torch.is_grad_enabled() and needs_grad(used)
        used, step = (integers if learns else byte_integers)(used, bits)
    y = answer(counted, used, step, counted.gain, bias, synapses, autocast_dtype(weight))
    if means is None or not torch.is_grad_enabled():
        return y
    return apply(RealProduct, x, rounded(weight, bits), bias, y.detach(), synapses)


def real_answer(x: Tensor, weight: Tensor, bias: Tensor | None, synapses: Product) -> Tensor:
    """Return torch's product with real numbers, plus the bias."""
    x = cast(x, weight.dtype)
    if not synapses.stride:
        return F.linear(x, weight, bias)
    y = real_product(x, weight, synapses)
    return y if bias is None else y + over_space(cast(bias, y.dtype), y.shape)  # in any order of the products


def answer(
    x: SpikeTrain | MeanCounts, weight: Tensor, step: Tensor | None, gain: Any, bias: Tensor | None, synapses: Product,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return (step·gain)·u + bias, where u is the exact sum of weights times counts, rounded once; docs/rule.md."""
    if isinstance(x, SpikeTrain) and x.offset is not None:
        of_offset = synapses.of_offset(x.offset, cast(weight, autocast_dtype(weight)))
        constant = apply(RealProduct, x.offset, weight, None, of_offset, synapses)
        scale, bias = fold(None, bias, None, None, step, gain, len(weight), weight)
        x, bias = x.replace(offset=None), started(bias, scale, constant, compute_dtype(weight.dtype))
    u = _sum_counts(x, weight, synapses) if isinstance(x, SpikeTrain) else _sum_means(x, weight, synapses)
    scale = gain if step is None else cast(step, u.dtype) * gain
    if isinstance(scale, Tensor) or scale != 1.0:
        u = u * over_space(scale, u.shape)
    if bias is not None:
        u = u + over_space(cast(bias, u.dtype), u.shape)
    return cast(u, dtype)


def _sum_counts(x: SpikeTrain, weight: Tensor, synapses: Product) -> Tensor:
    """Return the kernels' product; without kernels, where layers multiply by torch's, the sum of the same integers."""
    if has_kernels(weight.device, weight.dtype) or weight.device.type == "mps":  # which has no float64
        return window_product(x, weight, synapses)
    counts = x.clean_counts()
    u = _sum_means(MeanCounts(counts.detach(), 1, x.gain, x.bad), weight, synapses)
    return apply(RealProduct, counts, weight, None, u, synapses)


@torch.no_grad()
def _sum_means(x: MeanCounts, weight: Tensor, synapses: Product) -> Tensor:
    sums = (x.counts.double() * x.n).round()
    u = torch_product(sums, fixed_point(cast(weight, autocast_dtype(weight))), synapses)
    return with_flags(cast(divided(u, x.n), compute_dtype(weight.dtype)), x.bad)
