"""Firing rates."""

from __future__ import annotations

from typing import Any

from torch import nn

from tandem_ext import SpikeTrain

from .hooks import FIRING, check_layers, evaluating, watching


def firing_rates(net: nn.Module, x: Any) -> dict[str, float]:
    """Spikes per neuron and time step, 0..1, of each layer with neurons, in evaluation mode.

    Args:
        net: a network of layers of ``tandem_snn.nn``.
        x: a batch of what ``net`` takes.

    Returns:
        The rate by the layer's name, in the order of execution.

    Raises:
        ValueError: there are no such layers.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3, norm=True), tnn.Readout(3, 2))
    >>> list(firing_rates(net, torch.rand(5, 4)))
    ['1']
    """
    rates: dict[str, float] = {}

    def record(name: str, layer: nn.Module, x: Any, kwargs: dict[str, Any], train: Any) -> None:
        if isinstance(train, SpikeTrain):
            rates[name] = (train.counts.double().mean() / train.T).item()

    check_layers(net, FIRING)
    with evaluating(net), watching(net, FIRING, record):
        net(x)
    return rates
