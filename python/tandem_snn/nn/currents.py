"""Input currents and membrane potentials of neurons, step by step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tandem_ext import ConstantInput, SpikeTrain
from tandem_ext.functional import if_scan
from tandem_ext.functional.autograd import apply
from tandem_ext.functional.layer import Input
from tandem_ext.planes import pack, unpack
from tandem_ext.train import with_flags

from .quantise import StraightThrough
from .signals import effective_counts

AT_ONCE = 8  # number of steps whose currents are in memory at the same time: one plane of spikes
NEVER = torch.finfo(torch.float32).max  # a threshold that no potential reaches


def residual_total(residual: SpikeTrain | Tensor, z: Tensor) -> Tensor:
    if isinstance(residual, Tensor):
        return residual.sum(0) if residual.dim() > z.dim() else residual
    return effective_counts(residual)


def step_currents(
    x: Input, z: Tensor | None, potential: Callable[[Input, int], Tensor], timing: str = "step"
) -> Tensor:
    """Return the input currents I[t] of a layer, [T, B, *features]; with timing "window" their sum [1, B, *features].

    Their gradient is the gradient of their sum z. ``potential(x, T)`` returns the potential of neurons that start at 0
    and never fire, after one step of T: the current of this step, computed by the same kernel that fires.
    """
    with torch.no_grad():
        if timing == "window":
            currents = potential(x, x.T).unsqueeze(0)
        elif isinstance(x, SpikeTrain):  # compute all steps at once, as samples of one batch
            steps = x.to_dense(torch.uint8).flatten(0, 1).unsqueeze(0)
            samples = potential(SpikeTrain.unchecked(steps, 1, None, x.gain, x._dtype), x.T)
            currents = samples.unflatten(0, (x.T, x.shape[0]))
        else:
            first = potential(part_of(x, 0, 1), x.T)
            later = first if isinstance(x, ConstantInput) else potential(part_of(x, 1, 2), x.T)
            currents = torch.cat([first.unsqueeze(0), later.expand(x.T - 1, *later.shape)])
        if isinstance(x, SpikeTrain) and x.bad is not None:  # one step is enough, because potentials stay NaN
            currents = torch.cat([with_flags(currents[0], x.bad).unsqueeze(0), currents[1:]])
    if z is None:
        return currents
    # The gradients of all parts are the same, since only their sum z affects the loss.
    parts = (z.to(currents.dtype) / len(currents)).expand_as(currents)
    return apply(StraightThrough, parts, currents, None)


def fire_steps(
    steps: Callable[[int, int], Tensor], T: int, v: float | Tensor, dtype: torch.dtype, **neuron: Any
) -> SpikeTrain:
    """Run neurons whose currents are computed on demand, so that memory does not grow with T.

    ``steps(start, stop)`` returns currents [stop - start, B, *features]; start is a multiple of 8. v is the initial
    membrane potential, and the counts have this dtype. ``neuron`` holds further arguments of if_scan.
    """
    parts = []
    for start in range(0, T, AT_ONCE):
        currents = steps(start, min(start + AT_ONCE, T))
        part, v = if_scan(currents, v_init=v, steps=T, return_v=True, **neuron)  # type: ignore[misc]
        parts.append(part.stored)
    stored = parts[0] if len(parts) == 1 else torch.cat(parts)
    return SpikeTrain.unchecked(stored, T, None, 1.0, dtype, bad=part.bad)


def scan_trace(currents: Tensor, v: float | Tensor, **neuron: Any) -> Tensor:
    """Return the membrane potentials after each step, [T, B, *features], of neurons with initial potential v."""
    trace = []
    for current in currents.split(1):
        _, v = if_scan(current, v_init=v, steps=len(currents), return_v=True, **neuron)  # type: ignore[misc]
        trace.append(v)
    return torch.stack(trace)


def window_trace(T: int, integrated: Callable[[int], Tensor], threshold: float | Tensor) -> Tensor:
    """Return the potentials of neurons with timing "window", [2T, ...]: T steps of integration, T of firing.

    ``integrated(t)`` is the potential after the first t steps of the input.
    """
    trace = torch.stack([integrated(t) for t in range(1, T + 1)])
    return torch.cat([trace, scan_trace(torch.zeros_like(trace), trace[-1], threshold=threshold)])


def spikes_of(planes: Tensor, start: int, stop: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return the spikes of steps start .. stop - 1, [stop - start, B, *features]; start is a multiple of 8."""
    return unpack(planes[start // 8 : (stop + 7) // 8], stop - start, dtype)


def part_of(x: Input, start: int, stop: int) -> Input:
    """Return steps start .. stop - 1 of a signal; if there are several, start is a multiple of 8."""
    if not isinstance(x, SpikeTrain):
        later = start > 0 and not isinstance(x, ConstantInput)
        return x.replace(T=stop - start, x=torch.zeros_like(x.x) if later else x.x)
    if stop == start + 1:
        stored = x.planes[start // 8].unsqueeze(0) >> start % 8 & 1
    else:
        stored = pack(spikes_of(x.planes, start, stop))
    return SpikeTrain.unchecked(stored, stop - start, None, x.gain, x._dtype)
