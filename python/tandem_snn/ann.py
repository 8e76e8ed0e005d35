"""The ANN twins of the layers in tandem_snn.nn: same names, same arguments, same state_dict keys, no spikes.

A network built from one module becomes its twin by importing the other. Arguments of neurons (threshold, v_init, ...)
and the encoder's T are accepted and ignored.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import AdaptiveAvgPool2d, Dropout, Flatten, MaxPool2d

from tandem_ext import SpikeTrain

from .nn.passing import Mode, Residual
from .nn.signals import effective_counts

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "Dropout",
    "Encoder",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Readout",
    "Residual",
]


class Encoder(nn.Module):
    """The identity, since an ANN has no time steps; a SpikeTrain is replaced by its effective counts.

    >>> from tandem_snn import ann
    >>> ann.Encoder(T=8)(torch.tensor([[0.5]]))
    tensor([[0.5000]])
    """

    def __init__(self, T: int = 1, mode: Mode = "direct", *, gain: float = 1.0) -> None:
        super().__init__()

    def forward(self, x: Tensor | SpikeTrain) -> Tensor:
        return effective_counts(x)


class AvgPool2d(nn.AvgPool2d):
    """``nn.AvgPool2d``, with the arguments of :class:`tandem_snn.nn.AvgPool2d`.

    >>> from tandem_snn import ann
    >>> ann.AvgPool2d(2)(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 3, 2, 2])
    """

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, **_: Any) -> None:
        super().__init__(kernel_size, stride, padding)


class _Activated(nn.Module):
    """Product, optional batch norm, optional residual, ReLU, and optional scaling by ``units``."""

    _norm_class: type[nn.Module] = nn.BatchNorm1d
    weight: Tensor
    norm: nn.Module | None
    units: nn.Module | None

    def __init__(self, *sizes: Any, norm: bool = False, **options: Any) -> None:
        torchs = options.keys() & inspect.signature(super().__init__).parameters.keys()
        super().__init__(*sizes, **{name: options[name] for name in torchs})
        names = ("eps", "momentum", "device", "dtype")
        known = {name: options[name] for name in names if options.get(name) is not None}
        self.norm = self._norm_class(len(self.weight), **known) if norm else None
        self.units = None

    def preactivation(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        z: Tensor = super().forward(x)
        z = z if self.norm is None else self.norm(z)
        return z if residual is None else z + residual

    def forward(self, x: Tensor, residual: Tensor | None = None, *, fire: bool = True) -> Tensor:
        z = self.preactivation(x, residual)
        if not fire:
            return z
        return torch.relu(z) if self.units is None else self.units(torch.relu(z))


class Readout(nn.Linear):
    """``nn.Linear``, with the arguments of :class:`tandem_snn.nn.Readout`.

    >>> from tandem_snn import ann
    >>> ann.Readout(3, 2)(torch.ones(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        super().__init__(in_features, out_features, bias, options.get("device"), options.get("dtype"))


class Linear(_Activated, nn.Linear):
    """``nn.Linear`` (+ ``nn.BatchNorm1d``) + ReLU: [B, in_features] -> [B, out_features].

    >>> from tandem_snn import ann
    >>> layer = ann.Linear(3, 2, norm=True, threshold=0.5)  # arguments of neurons are ignored
    >>> layer(torch.rand(5, 3)).shape, sorted(layer.state_dict()) == sorted(tnn.Linear(3, 2, norm=True).state_dict())
    (torch.Size([5, 2]), True)
    """


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
