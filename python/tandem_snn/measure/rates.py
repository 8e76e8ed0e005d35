"""Firing rates: measured, and as a penalty in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from .hooks import FIRING, evaluating, watching


def firing_rates(net: nn.Module, x: Any) -> dict[str, float]:
    """Spikes per neuron and time step, 0..1, of each layer with neurons, in evaluation mode.

    Args:
        net: a network of layers of ``tandem_snn.nn``.
        x: a batch of what ``net`` takes.

    Returns:
        The rate by the layer's name, in the order of execution.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3, norm=True), tnn.Readout(3, 2))
    >>> list(firing_rates(net, torch.rand(5, 4)))
    ['1']
    """
    rates: dict[str, float] = {}

    def record(name: str, layer: nn.Module, x: Any, kwargs: dict[str, Any], train: Any) -> None:
        if isinstance(train, SpikeTrain):
            rates[name] = (train.counts.double().mean() / train.T).item()

    with evaluating(net), watching(net, FIRING, record):
        net(x)
    return rates


class rate_penalty:  # used like a function: penalty = rate_penalty(net)
    """A regulariser on the firing rates of a network's last forward pass.

    Each layer with neurons contributes the mean of relu(rate - target) over its neurons and samples; the penalty is the
    mean over layers. Its gradient takes the counts' path, like that of the loss.

    Args:
        net: a network of layers of ``tandem_snn.nn``; it is watched until :meth:`remove`.
        target: the rate, in spikes per step, up to which firing is free.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3, norm=True), tnn.Readout(3, 2))
    >>> penalty = rate_penalty(net, target=0.1)
    >>> loss = net(torch.rand(5, 4)).square().mean() + 0.01 * penalty()
    >>> loss.backward()
    """

    def __init__(self, net: nn.Module, target: float = 0.0) -> None:
        if not 0 <= target <= 1:
            raise ValueError(f"target: expected a rate from 0 to 1, got {target}")
        self.target = target
        self._excess: dict[nn.Module, Tensor] = {}
        self._handles = [m.register_forward_hook(self._record) for m in net.modules() if isinstance(m, FIRING)]
        if not self._handles:
            raise ValueError("net: expected a network with spiking layers, found none")

    def _record(self, layer: nn.Module, args: Any, train: Any) -> None:
        if isinstance(train, SpikeTrain):
            self._excess[layer] = torch.relu(train.counts / train.T - self.target).mean()

    def __call__(self) -> Tensor:
        """The penalty of the last forward pass, a 0-dim tensor. It can be taken once per pass."""
        if not self._excess:
            raise RuntimeError("rate_penalty: run the network forward first; each pass gives one penalty")
        excess, self._excess = self._excess, {}
        return torch.stack(list(excess.values())).mean()

    def remove(self) -> None:
        """Stops watching the network."""
        for handle in self._handles:
            handle.remove()
