"""Linear, Conv1d and Conv2d: layers of synapses and integrate-and-fire neurons."""

from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Unpack

from tandem_ext.functional.products import Product, convolution

from .neuron import SpikingLayer
from .options import NeuronOptions, shows_neuron_options

Size = int | tuple[int, ...]


@shows_neuron_options
class Linear(SpikingLayer, nn.Linear):  # type: ignore[misc]  # its forward gives a train
    """A fully connected layer of IF neurons; replaces ``nn.Linear`` (+ ``nn.BatchNorm1d``) + ``nn.ReLU``.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: signal [B, in_features] -> SpikeTrain [B, out_features].

    State: ``weight`` and ``bias`` as in ``nn.Linear``; ``norm.*`` as in ``nn.BatchNorm1d``.

    Raises:
        TypeError, ValueError: a setting has the wrong type or is out of range; or, when called, x is a plain tensor or
            does not fit.

    >>> layer = tnn.Linear(784, 800, norm=True, threshold=0.5)
    >>> layer(te.ConstantInput(torch.rand(2, 784), T=8))
    SpikeTrain(T=8, shape=[2, 800], gain=0.5, device=cpu)
    """

    _norm_class = nn.BatchNorm1d

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._add_neurons(out_features, **neuron)


class _Conv(SpikingLayer):
    _torch: ClassVar[Any]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        self._torch.__init__(self, in_channels, out_channels, *geometry, bias, "zeros", device, dtype)
        self._add_neurons(out_channels, **neuron)

    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def synapses(self) -> Product:
        return convolution(self.kernel_size, *self._geometry())


@shows_neuron_options
class Conv1d(_Conv, nn.Conv1d):  # type: ignore[misc]  # its forward gives a train
    """A 1-d convolutional layer of IF neurons; replaces ``nn.Conv1d`` (+ ``nn.BatchNorm1d``) + ``nn.ReLU``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in
            ``torch.nn.Conv1d``; padding may be "same" or "valid".
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: signal [B, in_channels, L] -> SpikeTrain [B, out_channels, L'].

    State and errors: as in :class:`Linear`.

    >>> tnn.Conv1d(4, 8, 3, padding="same")(te.ConstantInput(torch.rand(2, 4, 20), T=8)).shape
    torch.Size([2, 8, 20])
    """

    _torch: ClassVar[Any] = nn.Conv1d
    _norm_class = nn.BatchNorm1d


@shows_neuron_options
class Conv2d(_Conv, nn.Conv2d):  # type: ignore[misc]  # its forward gives a train
    """A 2-d convolutional layer of IF neurons; replaces ``nn.Conv2d`` (+ ``nn.BatchNorm2d``) + ``nn.ReLU``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in
            ``torch.nn.Conv2d``; padding may be "same" or "valid".
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: signal [B, in_channels, H, W] -> SpikeTrain [B, out_channels, H', W'].

    State and errors: as in :class:`Linear`, with ``norm.*`` as in ``nn.BatchNorm2d``.

    >>> tnn.Conv2d(1, 8, 3, stride=2, padding=1, norm=True)(te.ConstantInput(torch.rand(2, 1, 28, 28), T=8)).shape
    torch.Size([2, 8, 14, 14])
    """

    _torch: ClassVar[Any] = nn.Conv2d
    _norm_class = nn.BatchNorm2d
