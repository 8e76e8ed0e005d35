"""Linear, convolutions and transposed convolutions: layers of synapses and integrate-and-fire neurons."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from tandem_ext import checks
from tandem_ext.functional.products import LINEAR, Product, convolution, transposed

from .batch_norm import AnyBatchNorm
from .neuron import SpikingLayer
from .options import NeuronOptions, shows_neuron_options
from .places import padding_of, placed
from .signals import check_signal, features_first, features_last

Size = int | tuple[int, ...]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@shows_neuron_options
class Linear(SpikingLayer, nn.Linear):  # type: ignore[misc]  # its forward gives a train
    """A fully connected layer of IF neurons; replaces ``nn.Linear`` (+ ``nn.BatchNorm1d``) + ``nn.ReLU``.

    Args:
        in_features, out_features, bias, device, dtype: as in ``torch.nn.Linear``.
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: signal [B, in_features] -> SpikeTrain [B, out_features]; or tokens [B, N, in_features], or [B, H, W,
    in_features], of which batch norm and settings of each channel take the last dimension as channels.

    State: ``weight`` and ``bias`` as in ``nn.Linear``; ``norm.*`` as in ``nn.BatchNorm1d``.

    Raises:
        TypeError, ValueError: a setting has the wrong type or is out of range; or, when called, x is a plain tensor or
            does not fit.

    >>> layer = tnn.Linear(784, 800, norm=True, threshold=0.5)
    >>> layer(te.ConstantInput(torch.rand(2, 784), T=8))
    SpikeTrain(T=8, shape=[2, 800], gain=0.5, device=cpu)
    """

    _norm_class = AnyBatchNorm

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
        self._add_neurons(out_features, self.weight, **neuron)

    def synapses(self, axes: int = 0) -> Product:
        return LINEAR if axes == 0 else convolution((1,) * axes, 1, 0, 1, 1)

    def forward(self, x: Any, residual: Any = None) -> Any:
        check_signal(x, type(self).__name__)  # while it has its own shape
        return by_token(super().forward, self.in_features, x, residual)

    def preactivation(self, x: Any, residual: Any = None) -> Tensor:
        z: Tensor = by_token(super().preactivation, self.in_features, x, residual)
        return z

    def potentials(self, x: Any, residual: Any = None) -> Tensor:
        v: Tensor = by_token(super().potentials, self.in_features, x, residual)
        return v


def by_token(f: Callable[..., Any], features: int, x: Any, residual: Any = None) -> Any:
    """Call f with the features of tokens as channels, of which f(x) is a convolution with a kernel of one pixel."""
    axes = len(getattr(x, "shape", ())) - 2
    if axes < 1:
        return f(x, residual)
    if axes > 2:
        raise ValueError(f"x: Linear takes [B, features], [B, N, features] or [B, H, W, features], got {list(x.shape)}")
    if x.shape[-1] != features:
        last = "those of tokens are the last dimension, those of an image follow tandem_snn.nn.Flatten"
        raise ValueError(f"x has {x.shape[-1]} features (shape {list(x.shape)}), but Linear takes {features}: {last}")
    return features_last(f(features_first(x, axes), features_first(residual, axes)), axes)


class _Conv(SpikingLayer):
    _geometry = ("stride", "padding", "dilation", "groups", "padding_mode")
    _torch: ClassVar[Any]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]
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
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        checks.one_of("padding_mode", padding_mode, get_args(PaddingMode))
        geometry = (kernel_size, stride, padding, dilation, groups)
        self._torch.__init__(self, in_channels, out_channels, *geometry, bias, padding_mode, device, dtype)
        self._add_neurons(out_channels, self.weight, **neuron)

    def synapses(self, axes: int = 0) -> Product:
        padding = self.padding if self.padding_mode == "zeros" else 0
        return convolution(self.kernel_size, self.stride, padding, self.dilation, self.groups)

    @property
    def arranges(self) -> bool:
        return self.padding_mode != "zeros"

    def arranged(self, x: Any) -> Any:
        if not self.arranges:
            return x
        return placed(x, padding_of(self.padding_mode, self._reversed_padding_repeated_twice))


@shows_neuron_options
class Conv1d(_Conv, nn.Conv1d):  # type: ignore[misc]  # its forward gives a train
    """A 1-d convolutional layer of IF neurons; replaces ``nn.Conv1d`` (+ ``nn.BatchNorm1d``) + ``nn.ReLU``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device, dtype: as in
            ``torch.nn.Conv1d``; padding may be "same" or "valid".
        padding_mode: as in ``torch.nn.Conv1d``. Other modes than "zeros" repeat spikes of the input.
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
        padding_mode: as in ``torch.nn.Conv2d``. Other modes than "zeros" repeat spikes of the input.
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: signal [B, in_channels, H, W] -> SpikeTrain [B, out_channels, H', W'].

    State and errors: as in :class:`Linear`, with ``norm.*`` as in ``nn.BatchNorm2d``.

    >>> tnn.Conv2d(1, 8, 3, stride=2, padding=1, norm=True)(te.ConstantInput(torch.rand(2, 1, 28, 28), T=8)).shape
    torch.Size([2, 8, 14, 14])
    """

    _torch: ClassVar[Any] = nn.Conv2d
    _norm_class = nn.BatchNorm2d


class _ConvTranspose(SpikingLayer):
    _geometry = ("stride", "padding", "output_padding", "dilation", "groups")
    _torch: ClassVar[Any]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        geometry = (kernel_size, stride, padding, output_padding, groups, bias, dilation)
        self._torch.__init__(self, in_channels, out_channels, *geometry, "zeros", device, dtype)
        axes = zip(self.output_padding, self.stride, self.dilation, strict=True)
        if any(more >= max(s, d) for more, s, d in axes):
            raise ValueError(f"output_padding: expected less than stride or dilation, got {output_padding}")
        self._add_neurons(out_channels, self.weight, **neuron)

    def synapses(self, axes: int = 0) -> Product:
        sizes = zip(self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation, strict=True)
        sides = [(d * (k - 1) - p, d * (k - 1) - p + more - s + 1) for k, s, p, more, d in sizes]
        product = convolution(self.kernel_size, 1, 0, self.dilation, self.groups)
        return product._replace(sides=tuple(side for pair in reversed(sides) for side in pair), spacing=self.stride)

    def kernel_of(self, weight: Tensor) -> Tensor:
        return transposed(weight, self.groups)


@shows_neuron_options
class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]  # its forward gives a train
    """A 1-d transposed convolution with IF neurons; replaces ``nn.ConvTranspose1d`` (+ batch norm) + ``nn.ReLU``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, device, dtype:
            as in ``torch.nn.ConvTranspose1d``.
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: signal [B, in_channels, L] -> SpikeTrain [B, out_channels, L'].

    State and errors: as in :class:`Linear`, with ``weight`` [in_channels, out_channels / groups, kernel_size].

    >>> tnn.ConvTranspose1d(4, 8, 4, stride=2, padding=1)(te.ConstantInput(torch.rand(2, 4, 20), T=8)).shape
    torch.Size([2, 8, 40])
    """

    _torch: ClassVar[Any] = nn.ConvTranspose1d
    _norm_class = nn.BatchNorm1d


@shows_neuron_options
class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]  # its forward gives a train
    """A 2-d transposed convolution with IF neurons; replaces ``nn.ConvTranspose2d`` (+ batch norm) + ``nn.ReLU``.

    It is exact as a convolution is: zeros go between the spikes of the input, and the kernel is flipped.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, device, dtype:
            as in ``torch.nn.ConvTranspose2d``.
        norm and other settings of the neurons: see :class:`NeuronOptions`.

    Shape: signal [B, in_channels, H, W] -> SpikeTrain [B, out_channels, H', W'].

    State and errors: as in :class:`Linear`, with ``weight`` [in_channels, out_channels / groups, *kernel_size] and
    ``norm.*`` as in ``nn.BatchNorm2d``.

    >>> tnn.ConvTranspose2d(4, 8, 2, stride=2)(te.SpikeTrain.from_dense(torch.ones(8, 2, 4, 7, 7))).shape
    torch.Size([2, 8, 14, 14])
    """

    _torch: ClassVar[Any] = nn.ConvTranspose2d
    _norm_class = nn.BatchNorm2d
