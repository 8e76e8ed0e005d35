"""The ANN twins of the layers in tandem_snn.nn: same names, same arguments, same state_dict keys, no spikes.

A network built from one module becomes its twin by importing the other. Arguments of neurons (threshold, v_init, ...)
and the encoder's T are accepted and ignored; of those that are tensors, such as learned thresholds, a twin has no keys,
so that state_dicts load with ``strict=False``.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    Dropout,
    Flatten,
    MaxPool1d,
    MaxPool2d,
    Upsample,
)

from tandem_ext import SpikeTrain
from tandem_ext.functional.neuron import over_space

from .nn import attention
from .nn.attention import Attention, Permute
from .nn.batch_norm import AnyBatchNorm, as_rows
from .nn.passing import LEVELS, Mode, Numbers, Residual, check_units, pixel_counts
from .nn.signals import effective_counts
from .nn.synapses import by_token

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "Attention",
    "AvgPool1d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Dropout",
    "Encoder",
    "Flatten",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "Neurons",
    "Permute",
    "Readout",
    "ReadoutConv2d",
    "Residual",
    "SelfAttention",
    "Upsample",
]


class Encoder(nn.Module):
    """``gain * x``, since an ANN has no time steps; a SpikeTrain is replaced by its effective counts.

    Of "pixels", uint8, it is ``gain * (x/255 - mean)/std``.

    >>> from tandem_snn import ann
    >>> ann.Encoder(T=8)(torch.tensor([[0.5]]))
    tensor([[0.5000]])
    """

    def __init__(
        self, T: int = 1, mode: Mode = "direct", *, gain: float = 1.0, mean: Numbers | None = None, std: Numbers = 1.0
    ) -> None:
        super().__init__()
        check_units(mode, gain, mean, std)
        self.mode, self.gain, self.mean, self.std = mode, gain, mean, std

    def forward(self, x: Tensor | SpikeTrain) -> Tensor:
        if self.mode != "pixels":
            values = effective_counts(x)
            return values if self.gain == 1 else self.gain * values
        counts = pixel_counts(x, 1).stored[0].float() / LEVELS  # type: ignore[arg-type]
        of_channels = (torch.tensor(each, device=counts.device) for each in (self.mean or 0.0, self.std))
        mean, std = (over_space(each, counts.shape) for each in of_channels)
        return self.gain * ((counts - mean) / std)


class _Ignoring(nn.Module):
    """Base class of torch's layers that ignore arguments of neurons."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        torchs = options.keys() & inspect.signature(super().__init__).parameters.keys()
        super().__init__(*sizes, **{name: options[name] for name in torchs})


class AvgPool2d(_Ignoring, nn.AvgPool2d):
    """``nn.AvgPool2d``, with the arguments of :class:`tandem_snn.nn.AvgPool2d`.

    >>> from tandem_snn import ann
    >>> ann.AvgPool2d(2)(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 3, 2, 2])
    """


class AvgPool1d(_Ignoring, nn.AvgPool1d):
    """``nn.AvgPool1d``, with the arguments of :class:`tandem_snn.nn.AvgPool1d`.

    >>> from tandem_snn import ann
    >>> ann.AvgPool1d(2)(torch.ones(1, 3, 4)).shape
    torch.Size([1, 3, 2])
    """


class _Activated(_Ignoring):
    """Product, optional batch norm, optional residual, ReLU, and optional scaling by ``units``."""

    _norm_class: type[nn.Module] = nn.BatchNorm1d
    _channels = "out_channels"
    norm: nn.Module | None
    units: nn.Module | None

    def __init__(self, *sizes: Any, norm: bool = False, neurons: bool = True, **options: Any) -> None:
        super().__init__(*sizes, **options)
        names = ("eps", "momentum", "device", "dtype")
        known = {name: options[name] for name in names if options.get(name) is not None}
        self.norm = self._norm_class(getattr(self, self._channels), **known) if norm else None
        self.neurons, self.units = neurons, None

    def _product(self, x: Tensor) -> Tensor:
        z: Tensor = super().forward(x)
        return z

    def _preactivation(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self._product(x)
        z = z if self.norm is None else as_rows(self.norm, z)
        return z if residual is None else z + residual

    def preactivation(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._preactivation(x, residual)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z = self._preactivation(x, residual)
        if not self.neurons:
            return z
        return torch.relu(z) if self.units is None else self.units(torch.relu(z))


class Neurons(_Activated, nn.Identity):
    """Optional batch norm, ReLU, and optional scaling by ``units``.

    >>> from tandem_snn import ann
    >>> ann.Neurons(3, norm=True)(torch.rand(5, 3)).shape
    torch.Size([5, 3])
    """

    _norm_class = AnyBatchNorm

    def __init__(self, channels: int | None = None, **options: Any) -> None:
        self.out_channels = channels
        super().__init__(**options)


class Readout(_Ignoring, nn.Linear):
    """``nn.Linear``, with the arguments of :class:`tandem_snn.nn.Readout`.

    >>> from tandem_snn import ann
    >>> ann.Readout(3, 2)(torch.ones(5, 3)).shape
    torch.Size([5, 2])
    """


class ReadoutConv2d(_Ignoring, nn.Conv2d):
    """``nn.Conv2d``, with the arguments of :class:`tandem_snn.nn.ReadoutConv2d`.

    >>> from tandem_snn import ann
    >>> ann.ReadoutConv2d(3, 2, 1)(torch.ones(5, 3, 4, 4)).shape
    torch.Size([5, 2, 4, 4])
    """


class Linear(_Activated, nn.Linear):
    """``nn.Linear`` (+ ``nn.BatchNorm1d``) + ReLU: [B, in_features] -> [B, out_features], or tokens.

    >>> from tandem_snn import ann
    >>> layer = ann.Linear(3, 2, norm=True, threshold=0.5)  # arguments of neurons are ignored
    >>> layer(torch.rand(5, 3)).shape, sorted(layer.state_dict()) == sorted(tnn.Linear(3, 2, norm=True).state_dict())
    (torch.Size([5, 2]), True)
    """

    _norm_class, _channels = AnyBatchNorm, "out_features"

    def _product(self, x: Tensor) -> Tensor:
        return super()._product(x) if x.dim() == 2 else super()._product(x.movedim(1, -1)).movedim(-1, 1)

    def preactivation(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z: Tensor = by_token(self._preactivation, self.in_features, x, residual)
        return z

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        a: Tensor = by_token(super().forward, self.in_features, x, residual)
        return a


class Conv1d(_Activated, nn.Conv1d):
    """``nn.Conv1d`` (+ ``nn.BatchNorm1d``) + ReLU: [B, in_channels, L] -> [B, out_channels, L'].

    >>> from tandem_snn import ann
    >>> ann.Conv1d(1, 4, 3)(torch.rand(5, 1, 8)).shape
    torch.Size([5, 4, 6])
    """


class Conv2d(_Activated, nn.Conv2d):
    """``nn.Conv2d`` (+ ``nn.BatchNorm2d``) + ReLU: [B, in_channels, H, W] -> [B, out_channels, H', W'].

    >>> from tandem_snn import ann
    >>> ann.Conv2d(1, 4, 3, padding=1, norm=True)(torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 4, 8, 8])
    """

    _norm_class = nn.BatchNorm2d


class ConvTranspose1d(_Activated, nn.ConvTranspose1d):  # type: ignore[misc]  # no output_size
    """``nn.ConvTranspose1d`` (+ ``nn.BatchNorm1d``) + ReLU: [B, in_channels, L] -> [B, out_channels, L'].

    >>> from tandem_snn import ann
    >>> ann.ConvTranspose1d(1, 4, 2, stride=2)(torch.rand(5, 1, 8)).shape
    torch.Size([5, 4, 16])
    """


class ConvTranspose2d(_Activated, nn.ConvTranspose2d):  # type: ignore[misc]  # no output_size
    """``nn.ConvTranspose2d`` (+ ``nn.BatchNorm2d``) + ReLU: [B, in_channels, H, W] -> [B, out_channels, H', W'].

    >>> from tandem_snn import ann
    >>> ann.ConvTranspose2d(1, 4, 2, stride=2, norm=True)(torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 4, 16, 16])
    """

    _norm_class = nn.BatchNorm2d


class SelfAttention(attention.SelfAttention):
    """The twin of :class:`tandem_snn.nn.SelfAttention`: ReLU in the place of neurons, and no softmax either.

    >>> from tandem_snn import ann
    >>> ann.SelfAttention(64, heads=4)(torch.rand(2, 16, 64)).shape
    torch.Size([2, 16, 64])
    """

    _layers = (Linear, Neurons)
