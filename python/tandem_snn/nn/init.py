"""Where γ of the batch norm starts: at values that use the counts' range."""

from __future__ import annotations

from torch import nn

from .encoder import Encoder
from .neuron import SpikingLayer


def gamma(T: int) -> float:
    """The initial γ for a window of T steps, by the measurement in docs/initialisation.md."""
    return 3.0


def init_gamma_(net: nn.Module, T: int | None = None) -> nn.Module:
    """Sets γ of every batch norm of the network's layers to :func:`gamma` of T, in place.

    Args:
        net: any module that contains layers of this package.
        T: the number of time steps; None takes that of the network's Encoder.

    Returns:
        net.

    Raises:
        ValueError: T is None and there is no Encoder, or several that differ.

    >>> net = init_gamma_(nn.Sequential(Encoder(T=8), Linear(64, 10, norm=True)))
    >>> net[1].norm.weight[0].item() == gamma(8)
    True
    """
    if T is None:
        windows = {m.T for m in net.modules() if isinstance(m, Encoder)}
        if len(windows) != 1:
            raise ValueError(f"T: the network has {len(windows)} encoders' T: give T")
        (T,) = windows
    for layer in net.modules():
        if isinstance(layer, SpikingLayer) and layer.norm is not None:
            nn.init.constant_(layer.norm.weight, gamma(T))
    return net
