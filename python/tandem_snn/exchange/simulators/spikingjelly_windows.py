"""SpikingJelly modules for timing "window": in a pipeline, every layer works on its own window in each step."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import base
from torch import Tensor


class _Clocked(base.MemoryModule):  # type: ignore[misc]
    """A module that counts steps; ``functional.reset_net`` resets it."""

    t: int
    kept: list[Tensor]  # values of earlier steps

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T
        self.register_memory("t", 0)
        self.register_memory("kept", [])

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(x, self.t % self.T == 0)
        self.t += 1
        return y

    def step(self, x: Tensor, first: bool) -> Tensor:
        raise NotImplementedError


class AtOnce(_Clocked):
    """Neurons that start each window at their initial potential."""

    def __init__(self, neuron: Any, T: int) -> None:
        super().__init__(T)
        self.neuron = neuron

    def step(self, x: Tensor, first: bool) -> Tensor:
        if first:
            self.neuron.reset()
        return self.neuron(x)


class Waiting(AtOnce):
    """Neurons that sum the currents of a window and fire in the next."""

    def step(self, x: Tensor, first: bool) -> Tensor:
        charge = x * 0
        if first:
            charge = charge + sum(self.kept[1:], self.kept[0]) if self.kept else charge
            self.kept = []
        self.kept = [*self.kept, x]
        return super().step(charge, first)


class Late(_Clocked):
    """Delays values by some windows: for a shortcut around layers with timing "window"."""

    def __init__(self, T: int, windows: int) -> None:
        super().__init__(T)
        self.windows = windows

    def step(self, x: Tensor, first: bool) -> Tensor:
        self.kept = [*self.kept, x]
        if len(self.kept) <= self.T * self.windows:
            return x * 0
        then, *self.kept = self.kept
        return then
