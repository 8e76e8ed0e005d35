"""Currents that leave a layer, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tandem_ext import ConstantInput, SpikeTrain

from .signals import Signal, effective_counts


def residual_total(residual: SpikeTrain | Tensor) -> Tensor:
    """What a residual adds to z: its currents, summed over the window."""
    return residual.sum(0) if isinstance(residual, Tensor) else effective_counts(residual)


def step_currents(
    x: Signal, z: Tensor, product: Callable[[Tensor], Tensor], scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """The currents I[t] = scale·product(x[t]) + shift/T, [T, B, *features], whose gradient goes to z, their sum."""
    with torch.no_grad():
        if isinstance(x, SpikeTrain):
            steps = x.to_dense(z.dtype)
            y = product(steps.flatten(0, 1)).unflatten(0, steps.shape[:2])
        else:
            current = product(x.x)
            y = current.expand(x.T, *current.shape)
            if not isinstance(x, ConstantInput):
                y = torch.cat([y[:1], torch.zeros_like(y[1:])])
        y = y * x.gain
        scale, shift = (None if a is None else a.view(-1, *[1] * (z.dim() - 2)) for a in (scale, shift))
        y = y if scale is None else y * scale
        y = y if shift is None else y + shift / x.T
    return _Spread.apply(z, y)  # type: ignore[no-untyped-call]


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.mean(0), None
