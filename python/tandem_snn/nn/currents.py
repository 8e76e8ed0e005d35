"""Currents that leave a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tandem_ext import ConstantInput, SpikeTrain
from tandem_ext.functional.autograd import apply
from tandem_ext.planes import spikes_at
from tandem_ext.train import spoiled

from .signals import Signal, effective_counts

NEVER = torch.finfo(torch.float32).max  # a threshold that no potential reaches


def residual_total(residual: SpikeTrain | Tensor, z: Tensor) -> Tensor:
    """What a residual adds to z: its currents, summed over the window where they are not already."""
    if isinstance(residual, Tensor):
        return residual.sum(0) if residual.dim() > z.dim() else residual
    return effective_counts(residual)


def step_currents(x: Signal, z: Tensor | None, potential: Callable[[Signal, int], Tensor]) -> Tensor:
    """The currents I[t] of a layer, [T, B, *features], whose gradient goes to z, their sum.

    Args:
        potential: (x, T) -> the potential, after the one step of x, of neurons that begin at 0 and never fire, in a
            window of T steps: the current of that step, by the very kernel that would have fed it to neurons.
    """
    with torch.no_grad():
        if isinstance(x, SpikeTrain):  # all steps are samples of one batch
            steps = x.to_dense(torch.uint8).flatten(0, 1).unsqueeze(0)
            samples = potential(SpikeTrain.unchecked(steps, 1, None, x.gain, x._dtype), x.T)
            currents = samples.unflatten(0, (x.T, x.shape[0]))
            if x.bad is not None:  # one step is enough: potentials keep it
                currents = torch.cat([spoiled(currents[0], x.bad).unsqueeze(0), currents[1:]])
        else:
            first = potential(step_of(x, 0), x.T)
            later = first if isinstance(x, ConstantInput) else potential(step_of(x, 1), x.T)
            currents = torch.cat([first.unsqueeze(0), later.expand(x.T - 1, *later.shape)])
    return currents if z is None else apply(_Spread, z, currents)


def potential_trace(T: int, v: float | Tensor, after: Callable[[int, float | Tensor], Tensor]) -> Tensor:
    """The potentials after steps 0 .. T-1, [T, ...], where ``after(t, v)`` is that after step t, which v is before."""
    trace = []
    for t in range(T):
        v = after(t, v)
        trace.append(v)
    return torch.stack(trace)


def step_of(x: Signal, t: int) -> Signal:
    """Step t of a signal, as a signal of one step."""
    if isinstance(x, SpikeTrain):
        return SpikeTrain.unchecked(spikes_at(x.planes, t).unsqueeze(0), 1, None, x.gain, x._dtype)
    silent = t > 0 and not isinstance(x, ConstantInput)
    return ConstantInput.unchecked(torch.zeros_like(x.x) if silent else x.x, 1, x.gain)


class _Spread(torch.autograd.Function):
    """Currents [T, ...] with the gradient of their sum z: a loss sees them summed, so each step has the same one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, currents: Tensor) -> Tensor:
        return currents.view_as(currents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.mean(0), None
