"""Synaptic operations as a penalty in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .hooks import SYNAPTIC, check_layers, given
from .operations import costs, neurons


class synops_penalty:  # used like a function: penalty = synops_penalty(net)
    """A regulariser on the synaptic operations of a network's last forward pass with gradients.

        penalty = Σ_l Σ_j fan-out_j · c_j  /  Σ_l MACs_l

    per sample: the accumulations that the spike counts c cost, over the multiplications of the ANN twin; what
    :func:`synops` counts, but for a real-valued input. Spikes of a layer that feeds many synapses are dearer than those
    of one that feeds few. The gradient takes the counts' path, like that of the loss.

    Args:
        net: a network of layers of ``tandem_snn.nn``; it is watched until :meth:`remove`.

    Raises:
        ValueError: there are no such layers.
        RuntimeError: on a call, no forward pass since the last one.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3, norm=True), tnn.Readout(3, 2))
    >>> penalty = synops_penalty(net)
    >>> loss = net(torch.rand(5, 4)).square().mean() + 0.1 * penalty()
    >>> loss.backward()
    """

    def __init__(self, net: nn.Module) -> None:
        self._spent: dict[nn.Module, tuple[float, Tensor]] = {}
        check_layers(net, SYNAPTIC)
        layers = [m for m in net.modules() if isinstance(m, SYNAPTIC)]
        self._handles = [m.register_forward_hook(self._record, with_kwargs=True) for m in layers]

    def _record(self, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        outputs = neurons(layer, output)
        if outputs is None or not torch.is_grad_enabled():
            return
        x, further = given(args, kwargs)
        self._spent[layer] = costs(layer, x, further.get("residual"), outputs)

    def __call__(self) -> Tensor:
        """The penalty of the last forward pass, a 0-dim tensor. It can be taken once per pass."""
        if not self._spent:
            raise RuntimeError("synops_penalty: run the network forward first; each pass gives one penalty")
        spent, self._spent = self._spent, {}
        macs, acs = zip(*spent.values(), strict=True)
        return sum(acs, torch.zeros((), dtype=torch.float64)) / sum(macs)

    def remove(self) -> None:
        """Stops watching the network."""
        for handle in self._handles:
            handle.remove()
