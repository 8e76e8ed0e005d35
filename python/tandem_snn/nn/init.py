"""Initialise a whole network for its number of time steps T."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from .batch_norm import initial_gamma
from .encoder import Encoder
from .neuron import SpikingLayer

Net = TypeVar("Net", bound=nn.Module)


def init_gamma_(net: Net, T: int | None = None) -> Net:
    """Set γ of the batch norm in every spiking layer to :func:`initial_gamma` for T and the layer's timing, in place.

    Args:
        net: any module that contains layers of this package.
        T: the number of time steps; None: the T of the network's Encoder.

    Returns:
        net.

    Raises:
        ValueError: T is None and the network has no Encoder, or Encoders with different T.

    >>> net = init_gamma_(torch.nn.Sequential(tnn.Encoder(T=4), tnn.Linear(64, 10, norm=True)))
    >>> net[1].norm.weight[0].item() == tnn.initial_gamma(4)
    True
    """
    if T is None:
        windows = {module.T for module in net.modules() if isinstance(module, Encoder)}
        if len(windows) != 1:
            found = f"Encoders with T = {sorted(windows)}" if windows else "no Encoder"
            raise ValueError(f"T: expected an int, because the network has {found}")
        (T,) = windows
    for layer in net.modules():
        if isinstance(layer, SpikingLayer) and layer.norm is not None:
            nn.init.constant_(layer.norm.weight, initial_gamma(T, layer.timing))
    return net
