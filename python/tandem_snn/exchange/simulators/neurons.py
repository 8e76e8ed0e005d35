"""Neurons of NIR and of other simulators, and their translation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...frozen.stages import Stage


@dataclass(frozen=True)
class Neuron:
    """A neuron with the step v ← v + factor·I + offset;  spike = v ≥ ϑ;  v ← λ·v − ϑ·spike.

    Attributes:
        threshold: ϑ, one number or one per channel.
        leak: λ.
        v_init: the membrane potential before the first step.
        factor: a factor of the input current.
        offset: a constant current at every step.
        timing: as in :class:`tandem_snn.nn.NeuronOptions`.
    """

    threshold: float | Tensor = 1.0
    leak: float = 1.0
    v_init: float | Tensor = 0.0
    factor: float = 1.0
    offset: float | Tensor = 0.0
    timing: str = "step"

    @property
    def is_plain(self) -> bool:
        """Whether it is an IF neuron with threshold 1 that starts at 0."""
        values = (self.threshold, self.leak, self.v_init, self.factor, self.offset)
        return not any(isinstance(value, Tensor) for value in values) and values == (1.0, 1.0, 0.0, 1.0, 0.0)

    def settings(self) -> dict[str, Any]:
        """Return the settings of a layer of this package, for currents in the unit of the potential."""
        return {"threshold": self.threshold, "leak": self.leak, "v_init": self.v_init}

    def in_unit(self) -> Neuron:
        """Return the same neuron with its potential in units of ``factor``, so that currents need no factor.

        >>> Neuron(threshold=1.0, leak=0.5, factor=0.5, offset=0.25).in_unit()
        Neuron(threshold=2.0, leak=0.5, v_init=0.0, factor=1.0, offset=0.5, timing='step')
        """
        threshold, v_init, offset = (value / self.factor for value in (self.threshold, self.v_init, self.offset))
        return replace(self, threshold=threshold, v_init=v_init, factor=1.0, offset=offset)

    def leaks_its_reset(self) -> Neuron:
        """Return the equivalent of a neuron whose step is v ← λ·v + I;  spike = v ≥ ϑ;  v ← v − ϑ·spike.

        In that neuron the next leak also reduces the reset, so that only λϑ is subtracted. With a = (1 − λ)ϑ and
        u = v − a, it is our neuron with threshold λϑ, an additional current (λ − 1)a at each step, and the initial
        potential λ(v_init − a).

        >>> Neuron(threshold=1.0, leak=0.5).leaks_its_reset()
        Neuron(threshold=0.5, leak=0.5, v_init=-0.25, factor=1.0, offset=-0.25, timing='step')
        """
        a = (1 - self.leak) * self.threshold
        v_init, offset = self.leak * (self.v_init - a), self.offset - (1 - self.leak) * a
        return replace(self, threshold=self.leak * self.threshold, v_init=v_init, offset=offset)

    def with_leaking_reset(self) -> Neuron:
        """The inverse of :meth:`leaks_its_reset`.

        >>> Neuron(threshold=0.5, leak=0.5).with_leaking_reset()
        Neuron(threshold=1.0, leak=0.5, v_init=0.5, factor=1.0, offset=0.25, timing='step')
        """
        threshold = self.threshold / self.leak
        a = (1 - self.leak) * threshold
        v_init, offset = self.v_init / self.leak + a, self.offset + (1 - self.leak) * a
        return replace(self, threshold=threshold, v_init=v_init, offset=offset)


def neuron_of(layer: Stage) -> Neuron:
    v_init = 0.0 if layer.v_init is None else layer.v_init.detach().float()
    if isinstance(v_init, Tensor) and bool((v_init == v_init.flatten()[0]).all()):
        v_init = v_init.flatten()[0].item()
    return Neuron(layer.threshold, layer.leak, v_init)


class Firing(nn.Module):
    """A stand-in for the neurons of another simulator; ``tells``: its forward also returns the membrane potential."""

    def __init__(self, neuron: Neuron, tells: bool) -> None:
        super().__init__()
        self.neuron, self.tells = neuron, tells

    def forward(self, x: Tensor, *state: Any) -> Any:
        spikes = torch.relu(x)
        return (spikes, torch.neg(x)) if self.tells else spikes

    def init_leaky(self) -> None:
        raise ValueError("its forward makes new potentials")
