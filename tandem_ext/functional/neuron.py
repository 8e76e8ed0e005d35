"""From the arguments of a layer to those of an op: gains, biases and tensor thresholds are folded into what ops take.

The fold is ordinary autograd, outside the layers' own ``autograd.Function``, which then only has to know the gradients
of what an op takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..ops import compute_dtype
from ..signal import may_need_grad
from ..train import SpikeTrain


class Settings(NamedTuple):
    """What an op takes of its neurons besides tensors."""

    T: int
    steps: int
    threshold: float
    leak: float
    gate: str
    return_v: bool


class Neurons(NamedTuple):
    """A layer's neurons, ready for an op. None stands for the neutral value."""

    residual: Tensor | None  # planes [P, B, *features], or currents [T, B, *features] in the compute dtype
    residual_edge: Tensor | None  # the counts of a residual train that gradients flow to
    residual_scale: Tensor | None  # [C]
    theta: Tensor | None  # [C], a tensor threshold: the neurons' unit of potential, in which they fire at 1
    v_init: Tensor | None
    settings: Settings


def counts_dtype(weight: Tensor) -> torch.dtype:
    """The type of the counts of a layer with this weight."""
    return torch.float32 if weight.dtype == torch.int8 else weight.dtype


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor.to(dtype), free where nothing is to do, in exported graphs too."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def spread(value: float | Tensor, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One value per channel from one value for all."""
    if isinstance(value, Tensor):
        return cast(value, dtype).expand(channels)
    return torch.full((channels,), value, dtype=dtype, device=device)


def make_neurons(
    like: Tensor,
    T: int,
    shape: tuple[int, ...],
    residual: SpikeTrain | Tensor | None = None,
    threshold: float | Tensor = 1.0,
    leak: float = 1.0,
    v_init: float | Tensor = 0.0,
    gate: str = "relu",
    steps: int | None = None,
    return_v: bool = False,
) -> Neurons:
    """Checks and folds what concerns neurons of shape [B, C, *space]; ``like`` gives device and (compute) dtype."""
    device, dtype = like.device, compute_dtype(like.dtype)
    channels = shape[1] if len(shape) > 1 else 1
    checks.threshold(threshold, channels, device)
    checks.leak(leak)
    checks.v_init(v_init, shape, device)
    checks.gate(gate)
    if steps is not None:
        checks.steps(steps)

    edge = residual_scale = None
    if residual is not None:
        checks.residual(residual, T, shape, device)
        if isinstance(residual, Tensor):
            residual = cast(residual, dtype)
        else:
            edge = residual.edge
            if isinstance(residual.gain, Tensor) or residual.gain != 1.0:
                residual_scale = spread(residual.gain, channels, dtype, device)
            residual = residual.planes

    start = None
    if not isinstance(v_init, (int, float)):
        start = cast(v_init, dtype)
    elif v_init != 0.0:
        start = torch.full((), v_init, dtype=dtype, device=device)

    theta = None
    if not isinstance(threshold, (int, float)):
        theta = spread(threshold, channels, dtype, device)
        unit = theta.detach()
        if residual is not None:
            residual_scale = 1 / unit if residual_scale is None else residual_scale / unit
        if start is not None:
            start = (start / over_space(unit, shape)).expand(shape if start.dim() == len(shape) else shape[1:])
        threshold = 1.0
    settings = Settings(T, steps or T, float(threshold), float(leak), gate, return_v)
    return Neurons(residual, edge, residual_scale, theta, start, settings)


def fold(
    neurons: Neurons,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gain: float | Tensor,
    channels: int,
    like: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """scale·gain and scale·bias + shift, in units of a tensor threshold.

    The division sees the threshold detached: its gradient is -gate·c/ϑ at the real counts c, which the layer's Function
    gives, and not what the division would give.
    """
    device, dtype = like.device, compute_dtype(like.dtype)
    if bias is not None:
        checks.per_channel("bias", bias, channels, device)
        bias = cast(bias, dtype)
    if shift is not None:
        checks.per_channel("shift", shift, channels, device)
        shift = cast(shift, dtype)
    if scale is not None:
        checks.per_channel("scale", scale, channels, device)
        scale = cast(scale, dtype)
        bias = None if bias is None else scale * bias
    if bias is not None:
        shift = bias if shift is None else bias + shift
    if isinstance(gain, Tensor) or gain != 1.0:
        scale = spread(gain, channels, dtype, device) if scale is None else scale * gain
    if neurons.theta is not None:
        unit = neurons.theta.detach()
        scale = 1 / unit if scale is None else scale / unit
        shift = None if shift is None else shift / unit
    return scale, shift


def needs_grad(*tensors: Tensor | None) -> bool:
    """Where gradients are enabled: must the op run inside its Function?"""
    return any(tensor is not None and may_need_grad(tensor) for tensor in tensors)


def train_of(
    outputs: tuple[Tensor, ...], neurons: Neurons, dtype: torch.dtype, has_counts: bool
) -> SpikeTrain | tuple[SpikeTrain, Tensor]:
    """What a layer returns, from what its op or Function returned: (planes, counts, mask, v, ...)."""
    settings = neurons.settings
    train = SpikeTrain.unchecked(outputs[0], settings.T, outputs[1] if has_counts else None, 1.0, dtype)
    if not settings.return_v:
        return train
    v = outputs[3]
    return train, v if neurons.theta is None else v * over_space(neurons.theta.detach(), v.shape)


def over_space(per_channel: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[C] so that it broadcasts against [B, C, *space]."""
    return per_channel.view(-1, *[1] * (len(shape) - 2)) if len(shape) > 2 else per_channel


def over_inputs(per_output: Tensor, weight: Tensor) -> Tensor:
    """[N] so that it broadcasts against a weight [N, ...]."""
    return per_output.view(-1, *[1] * (weight.dim() - 1))
