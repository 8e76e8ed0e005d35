"""Lazy layers: they infer the size of their input from the first batch, then become ordinary layers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .options import NeuronOptions, shows_neuron_options
from .quantise import check_bits
from .readout import Readout
from .signals import Signal
from .synapses import Conv1d, Conv2d, Linear, Size

Device = torch.device | str | None


class _Lazy:
    """Adapts torch's lazy modules, which expect one tensor, to signals and further arguments."""

    def initialize_parameters(self, x: Signal | Tensor, *_: Any, **__: Any) -> None:
        super().initialize_parameters(torch.empty(x.shape, device="meta"))  # type: ignore[misc]


@shows_neuron_options
class LazyLinear(_Lazy, Linear, nn.LazyLinear):  # type: ignore[misc]
    """A :class:`Linear` that infers ``in_features`` from its first input.

    Args:
        out_features, bias, device, dtype: as in ``torch.nn.LazyLinear``; settings of the neurons as in :class:`Linear`.

    >>> layer = tnn.LazyLinear(10, norm=True)
    >>> layer(te.ConstantInput(torch.rand(2, 7), T=8)).shape
    torch.Size([2, 10])
    >>> layer
    Linear(
      in_features=7, out_features=10, bias=True
      (norm): BatchNorm1d(10, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    )
    """

    cls_to_become = Linear  # type: ignore[assignment]

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        nn.LazyLinear.__init__(self, out_features, bias, device, dtype)
        self._add_neurons(out_features, device, dtype, **neuron)


class _LazyConv(_Lazy):
    _torch: ClassVar[Any]
    _add_neurons: Any
    _lay_out: Any

    def __init__(
        self,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        self._torch.__init__(self, out_channels, *geometry, bias, "zeros", device, dtype)
        self._add_neurons(out_channels, device, dtype, **neuron)

    def initialize_parameters(self, *arguments: Any, **keywords: Any) -> None:
        super().initialize_parameters(*arguments, **keywords)
        self._lay_out()


@shows_neuron_options
class LazyConv1d(_LazyConv, Conv1d, nn.LazyConv1d):  # type: ignore[misc]
    """A :class:`Conv1d` that infers ``in_channels`` from its first input; the other arguments are the same.

    >>> tnn.LazyConv1d(8, 3)(te.ConstantInput(torch.rand(2, 4, 20), T=8)).shape
    torch.Size([2, 8, 18])
    """

    _torch: ClassVar[Any] = nn.LazyConv1d
    cls_to_become = Conv1d  # type: ignore[assignment]


@shows_neuron_options
class LazyConv2d(_LazyConv, Conv2d, nn.LazyConv2d):  # type: ignore[misc]
    """A :class:`Conv2d` that infers ``in_channels`` from its first input; the other arguments are the same.

    >>> tnn.LazyConv2d(8, 3, padding=1)(te.ConstantInput(torch.rand(2, 4, 5, 5), T=8)).shape
    torch.Size([2, 8, 5, 5])
    """

    _torch: ClassVar[Any] = nn.LazyConv2d
    cls_to_become = Conv2d  # type: ignore[assignment]


class LazyReadout(_Lazy, Readout, nn.LazyLinear):  # type: ignore[misc]
    """A :class:`Readout` that infers ``in_features`` from its first input; the other arguments are the same.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.LazyConv2d(4, 3), tnn.Flatten(), tnn.LazyReadout(10))
    >>> net(torch.rand(2, 1, 28, 28)).shape, net[3].in_features
    (torch.Size([2, 10]), 2704)
    """

    cls_to_become = Readout  # type: ignore[assignment]

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        *,
        weight_bits: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_bits(weight_bits)
        nn.LazyLinear.__init__(self, out_features, bias, device, dtype)
        self.weight_bits = weight_bits
