"""Neurons on currents: their spikes, in parts of eight steps, and the trace of their potentials."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tandem_ext import ConstantInput, SpikeTrain, checks
from tandem_ext.functional import if_scan
from tandem_ext.functional.layer import current_if
from tandem_ext.functional.neuron import channels_of, fold, over_space, tensors_of
from tandem_ext.functional.settings import Settings
from tandem_ext.planes import pack

from .currents import AT_ONCE, Currents, spikes_of
from .signals import effective_counts


def fire(u: Currents, settings: Settings, gain: float | Tensor = 1.0) -> Any:
    """Run neurons on currents times a gain, as ``product_if`` does on a product. With timing "step" without gradients.

    Then the residual may be currents, of which only eight steps are made at a time.
    """
    outcome, mean, var = _fire(u, settings, gain)
    train = outcome[0] if settings.return_v else outcome
    train = train if train._dtype == u.dtype else train.to(u.dtype)
    return (train, outcome[1]) if settings.return_v else train, mean, var


def _fire(u: Currents, settings: Settings, gain: float | Tensor) -> Any:
    if settings.timing == "window":
        return current_if(u.total, "impulse", gain, settings)
    if u.constant:
        return current_if(u.steps(0, 1)[0], "constant", gain, settings)
    first = u.steps(0, min(AT_ONCE, u.T))
    if isinstance(settings.residual, SpikeTrain | Tensor):
        checks.residual(settings.residual, u.T, first.shape[1:], first.device, "step")
    elif settings.residual is not None and settings.residual.T != u.T:
        raise ValueError(f"residual: expected currents of T={u.T} steps as x has, got T={settings.residual.T}")
    own, theta = in_units(settings, first, tuple(first.shape[1:]), gain)
    gain = gain if theta is None else 1.0
    v: Any = own.v_init
    parts = []
    for start in range(0, u.T, AT_ONCE):
        stop = min(start + AT_ONCE, u.T)
        if isinstance(v, Tensor):  # NaN is no initial potential; infinity marks the sample as bad, too
            v = v.nan_to_num(torch.inf, torch.inf, -torch.inf)
        residual = own.residual
        if isinstance(residual, Currents):
            residual = residual.steps(start, stop).expand(stop - start, *first.shape[1:])
        elif residual is not None:
            residual = part_of(residual, start, stop)
        of_part = own._replace(T=stop - start, v_init=v, residual=residual, steps=u.T, return_v=True)
        (part, v), *_ = current_if(u.steps(start, stop), "train", gain, of_part)
        parts.append(part.stored)
    train = SpikeTrain.unchecked(torch.cat(parts), u.T, None, 1.0, part._dtype, bad=part.bad)
    if not settings.return_v:
        return train, None, None
    return (train, v if theta is None else v * over_space(theta, first.shape[1:])), None, None


def in_units(
    settings: Settings, like: Tensor, shape: tuple[int, ...], gain: float | Tensor
) -> tuple[Settings, Tensor | None]:
    """Return settings of neurons [B, C, *space] in units of a threshold that is a tensor, and that, else None.

    The settings then include the gain. So potentials pass from part to part; times the threshold they are rounded.
    """
    threshold, residual = settings.threshold, settings.residual
    if not isinstance(threshold, Tensor):
        return settings, None
    given = None if isinstance(residual, Currents) else residual
    made = tensors_of(like, settings.T, shape, given, threshold, settings.v_init, settings.timing)
    terms = settings.bias, settings.scale, settings.shift, settings.step
    scale, shift = fold(made.theta, *terms, gain, channels_of(shape), like)
    if isinstance(residual, Currents):
        residual = residual.affine(1 / made.theta.detach(), None)
    elif isinstance(residual, Tensor):
        residual = residual * over_space(made.residual_scale, shape)
    elif residual is not None:
        residual = residual.replace(gain=made.residual_scale)
    units: dict[str, Any] = {"threshold": 1.0, "v_init": made.v_init, "residual": residual, "bias": None, "step": None}
    return settings._replace(scale=scale, shift=shift, **units), made.theta


def residual_total(residual: SpikeTrain | Currents | Tensor, z: Tensor) -> Tensor:
    if isinstance(residual, Tensor):
        return residual.sum(0) if residual.dim() > z.dim() else residual
    return residual.total if isinstance(residual, Currents) else effective_counts(residual)


def scan_trace(currents: Tensor, v: float | Tensor, **neuron: Any) -> Tensor:
    """Return the membrane potentials after each step, [T, B, *features], of neurons with initial potential v."""
    trace = []
    for current in currents.split(1):
        _, v = if_scan(current, v_init=v, steps=len(currents), return_v=True, **neuron)  # type: ignore[misc]
        trace.append(v)
    return torch.stack(trace)


def window_trace(T: int, own_T: int, integrated: Callable[[int], Tensor], threshold: float | Tensor) -> Tensor:
    """Return the potentials of neurons with timing "window": T steps of integration, then ``own_T`` of firing.

    ``integrated(t)`` is the potential after the first t steps of the input.
    """
    trace = torch.stack([integrated(t) for t in range(1, T + 1)])
    nothing = torch.zeros_like(trace[:1]).expand(own_T, *trace.shape[1:])
    return torch.cat([trace, scan_trace(nothing, trace[-1], threshold=threshold)])


def part_of(x: Any, start: int, stop: int) -> Any:
    """Return steps start .. stop - 1 of a signal or of a tensor of steps, or those before its end.

    Of several, start is a multiple of 8. Of currents it is one.
    """
    if isinstance(x, Tensor):
        return x[start:stop]
    stop = min(stop, x.T)
    if isinstance(x, Currents):
        first = start - start % AT_ONCE
        steps = x.steps(first, min(first + AT_ONCE, x.T))
        step = steps[:1] if x.constant else steps[start - first : stop - first]
        return Currents(step[0], lambda *_: step, 1)
    if not isinstance(x, SpikeTrain):
        later = start > 0 and not isinstance(x, ConstantInput)
        return x.replace(T=stop - start, x=torch.zeros_like(x.x) if later else x.x)
    if stop == start + 1:
        stored = x.planes[start // 8].unsqueeze(0) >> start % 8 & 1
    else:
        stored = pack(spikes_of(x.planes, start, stop))
    return SpikeTrain.unchecked(stored, stop - start, None, x.gain, x._dtype, bad=x.bad, offset=x.offset)
