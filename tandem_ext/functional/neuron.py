"""The tensors of neurons as the arguments of an op.

Gains, biases and thresholds are folded into the scale and shift of the op. The fold is ordinary autograd outside the
layers' ``autograd.Function``, which then only computes the gradients of the op's arguments.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..ops import compute_dtype
from ..rule import divided
from ..train import SpikeTrain


class Tensors(NamedTuple):
    """The tensors of a layer's neurons as arguments of an op. None is the neutral value."""

    # what a train of the layer's timing stores, or currents [T, B, *features] in the compute dtype; with timing
    # "window" their sum [1, B, *features]
    residual: Tensor | None = None
    residual_edge: Tensor | None = None  # the counts of a residual train, for the gradient only
    residual_scale: Tensor | None = None  # [C]
    theta: Tensor | None = None  # [C], a tensor threshold: potentials are measured in units of it, so neurons fire at 1
    v_init: Tensor | None = None  # None: the default of the timing


NEUTRAL = Tensors()


def tensors_of(
    like: Tensor,
    T: int,
    shape: tuple[int, ...],
    residual: SpikeTrain | Tensor | None = None,
    threshold: float | Tensor = 1.0,
    v_init: float | Tensor | None = None,
    timing: str = "step",
    unit: float = 1.0,
) -> Tensors:
    """Check and fold the tensors of neurons [B, C, *space]; ``like`` has the device and dtype of the layer."""
    theta = edge = scale = start = None
    device, dtype, channels = like.device, compute_dtype(like.dtype), channels_of(shape)
    if isinstance(threshold, Tensor):
        checks.threshold(threshold, channels, device)
        theta = spread(threshold, (channels,), dtype, device)
        theta = torch.add(theta, theta.detach(), alpha=0)  # makes infinity NaN, which then shows in the potentials
    if residual is not None:
        checks.residual(residual, T, shape, device, timing)
        if not isinstance(residual, Tensor) and residual.offset is not None:
            residual = values_of(residual).unsqueeze(0)
        factor = 1.0 if isinstance(residual, Tensor) else residual.gain
        if unit != 1.0:  # without adding a node to exported graphs
            factor = over(factor, unit)
        if isinstance(factor, Tensor) or factor != 1.0:
            scale = spread(factor, (channels,), dtype, device)
        if isinstance(residual, Tensor):
            residual = cast(residual, dtype)
            if timing == "window" and len(residual) != 1:
                residual = residual.sum(0, keepdim=True)
        else:
            edge = residual.edge
            residual = residual.stored_as(timing)
        scale, _ = in_units(theta, scale, None)
    if isinstance(v_init, Tensor):
        checks.v_init(v_init, shape, device)
        start = cast(v_init, dtype)
        if start.dim() == 1 and len(shape) > 2:
            start = over_space(start, shape).expand(shape[1:])
    elif v_init is not None:
        start = torch.full((), v_init, dtype=dtype, device=device)
    if start is not None and theta is not None:
        start = (start / over_space(theta.detach(), shape)).expand(shape if start.dim() == len(shape) else shape[1:])
    return Tensors(residual, edge, scale, theta, start)


def fold(
    theta: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    step: Tensor | None,
    gain: float | Tensor,
    channels: int,
    like: Tensor,
    unit: float = 1.0,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the op's scale and shift: (scale·step)·gain and scale·bias + shift, divided by unit and by theta."""
    if scale is not None:
        scale = per_channel("scale", scale, channels, like)
    if shift is not None:
        shift = per_channel("shift", shift, channels, like)
    if bias is not None:
        bias = per_channel("bias", bias, channels, like)
        bias = bias if scale is None else scale * bias
        shift = bias if shift is None else bias + shift
    if unit != 1.0:
        gain, shift = over(gain, unit), None if shift is None else over(shift, unit)
    if step is not None or not isinstance(gain, float) or gain != 1:
        scale = with_gain(scale, step, gain, (channels,), channels, like)
    return (scale, shift) if theta is None else in_units(theta, scale, shift)


def with_gain(
    scale: Tensor | None, step: Tensor | None, gain: float | Tensor, shape: tuple[int, ...], channels: int, like: Tensor
) -> Tensor | None:
    """Return (scale·step)·gain; a gain alone gets the given shape."""
    if step is not None:
        step = per_channel("step", step, channels, like)
        scale = step if scale is None else scale * step
    if isinstance(gain, Tensor) or gain != 1.0:
        scale = spread(gain, shape, compute_dtype(like.dtype), like.device) if scale is None else scale * gain
    return scale


def in_units(
    theta: float | Tensor | None, factor: Tensor | None, term: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Divide a factor, None for 1, and a term, None for 0, by a threshold, a tensor detached: Fire has its gradient."""
    if theta is None:
        return factor, term
    unit: Any = theta.detach() if isinstance(theta, Tensor) else theta
    return 1 / unit if factor is None else over(factor, unit), None if term is None else over(term, unit)


def over(value: Any, unit: Any) -> Any:
    """Return value / unit, of numbers or tensors, rounded once on a GPU too."""
    on_gpu = isinstance(value, Tensor) and value.device.type != "cpu" and not isinstance(unit, Tensor)
    return divided(value, unit) if on_gpu else value / unit


def started(v_init: Tensor | None, scale: Tensor | None, constant: Tensor, dtype: torch.dtype) -> Tensor:
    """Return v_init plus scale times a constant of the products, float64 [1, C, *space], rounded once."""
    growth = (constant if scale is None else constant * over_space(scale.detach(), constant.shape))[0]
    return (growth if v_init is None else over_space(v_init, constant.shape) + growth).to(dtype)


def values_of(train: Any, counts: Tensor | None = None) -> Tensor:
    """Return the counts of a train, or values of a direct input, plus the offset, times the gain: [B, *features]."""
    counts, gain, shape = train.counts if counts is None else counts, train.gain, train.shape
    if train.offset is None:
        return counts if isinstance(gain, float) and gain == 1.0 else counts * over_space(gain, shape)
    offset, dtype = cast(train.offset * over_space(gain, shape), counts.dtype), counts.dtype
    return counts * over_space(cast(gain, dtype) if isinstance(gain, Tensor) else gain, shape) + offset


def channels_of(shape: tuple[int, ...]) -> int:
    """Return the number of channels of neurons [B, C, *space]; neurons [B] have one channel."""
    return shape[1] if len(shape) > 1 else 1


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return tensor.to(dtype), without adding a node to exported graphs if the tensor has that dtype already."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def per_channel(name: str, value: Tensor | None, channels: int, like: Tensor) -> Any:
    """Check a tensor [C] and return it in the compute dtype of ``like``, or None if it is None."""
    if value is None:
        return None
    checks.per_channel(name, value, channels, like.device)
    return cast(value, compute_dtype(like.dtype))


def spread(value: float | Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number, or a 0-dim or per-channel tensor, as a tensor of the given shape."""
    if isinstance(value, Tensor):
        return cast(value, dtype).expand(shape)
    return torch.full((), value, dtype=dtype, device=device).expand(shape)


def over_space(value: Any, shape: tuple[int, ...]) -> Any:
    """Reshape [C] to broadcast against [B, C, *space]; neurons [B] have one channel. A number is returned unchanged."""
    if isinstance(value, Tensor) and value.dim() == 1 and len(shape) != 2:
        return value.view([-1, *[1] * len(shape)][: len(shape) - 1])
    return value


def over_inputs(per_output: Tensor, weight: Tensor) -> Tensor:
    """Reshape [N] so that it broadcasts against a weight [N, ...]."""
    return per_output.view(-1, *[1] * (weight.dim() - 1))
