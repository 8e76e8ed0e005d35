"""Conv1d and Conv2d: convolutional synapses and IF neurons."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import Unpack

import tandem_ext as te

from .neuron import NeuronOptions, SpikingLayer
from .signature import shows_neuron_options


class _Conv(SpikingLayer):
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups


@shows_neuron_options
class Conv1d(_Conv, nn.Conv1d):  # type: ignore[misc]  # its forward gives a train
    """A convolutional layer of IF neurons, in the place of ``nn.Conv1d`` (+ ``nn.BatchNorm1d``) + ``nn.ReLU``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as
            ``torch.nn.Conv1d``; padding may be "same" or "valid".
        norm, threshold, leak, v_init, gain, gate, eps, momentum, bn_stats, gamma, weight_bits: see
            :class:`SpikingLayer`.

    Shape: signal [B, in_channels, L] -> SpikeTrain [B, out_channels, L'].

    >>> tnn.Conv1d(4, 8, 3, padding="same")(te.ConstantInput(torch.rand(2, 4, 20), T=8)).shape
    torch.Size([2, 8, 20])
    """

    _if = staticmethod(te.functional.conv1d_if)
    _bn_if = staticmethod(te.functional.conv1d_bn_if)
    _product = staticmethod(F.conv1d)
    _norm_class = nn.BatchNorm1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        nn.Conv1d.__init__(self, in_channels, out_channels, *geometry, bias, "zeros", device, dtype)
        self._add_neurons(out_channels, device, dtype, **neuron)


@shows_neuron_options
class Conv2d(_Conv, nn.Conv2d):  # type: ignore[misc]  # its forward gives a train
    """A convolutional layer of IF neurons, in the place of ``nn.Conv2d`` (+ ``nn.BatchNorm2d``) + ``nn.ReLU``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as
            ``torch.nn.Conv2d``; padding may be "same" or "valid".
        norm, threshold, leak, v_init, gain, gate, eps, momentum, bn_stats, gamma, weight_bits: see
            :class:`SpikingLayer`.

    Shape: signal [B, in_channels, H, W] -> SpikeTrain [B, out_channels, H', W'].

    >>> tnn.Conv2d(1, 8, 3, stride=2, padding=1, norm=True)(te.ConstantInput(torch.rand(2, 1, 28, 28), T=8)).shape
    torch.Size([2, 8, 14, 14])
    """

    _if = staticmethod(te.functional.conv2d_if)
    _bn_if = staticmethod(te.functional.conv2d_bn_if)
    _product = staticmethod(F.conv2d)
    _norm_class = nn.BatchNorm2d

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        nn.Conv2d.__init__(self, in_channels, out_channels, *geometry, bias, "zeros", device, dtype)
        self._add_neurons(out_channels, device, dtype, **neuron)
