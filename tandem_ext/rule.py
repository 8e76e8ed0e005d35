"""The rule in torch's operators, on plain tensors: neurons, batch statistics, the format of trains.

:mod:`tandem_ext.reference` and the ops that run where there are no kernels (``composite.py``) both have it from here.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# --- neurons ----------------------------------------------------------------------------------------------------------


class Residual(NamedTuple):
    """What is added to the currents of neurons: currents [T, ...], their sum in the order of the steps, a factor."""

    currents: Tensor
    sum: Tensor
    scale: Tensor | None


def fire(
    y: Iterable[Tensor], u: Tensor | None, scale: Tensor | None, shift: Tensor | None, residual: Residual | None,
    v: Tensor, T: int, steps: int, threshold: float, leak: float, gate: str, timing: str, ends: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Run neurons in a tensor of any shape [...], driven by scale·y + shift/steps and the residual.

    Args:
        y: the products of the steps; only timing "step" reads them.
        u: the product over the window. None: nobody asks for the gates of neurons of timing "step".
        scale, shift: broadcast against y; None: 1 and 0.
        v: the first potential, [...].
        T, steps: of the input, and of the neurons' window, in which they fire with timing "window".
        ends: whether the last potential matters, and not only where it is finite.

    Returns:
        (what a train stores, its counts in the dtype of v, the last v, which neurons let the gradient pass).
    """
    z: Any = None
    T = steps if timing == "window" else T
    if u is not None:
        z = affine(u, scale, shift if shift is None or steps == T else divided(u.new_tensor(T), steps) * shift)
        z = z if residual is None else z + times(residual.scale, residual.sum)
    is_open = None if z is None else open_gate(z, gate, threshold, T)
    if timing == "window":
        counts, v = fire_after_window(v + z, threshold, T, ends)
        return counts.to(torch.uint8).unsqueeze(0), counts, v, is_open
    share = None if shift is None else divided(shift, steps)
    currents: Iterable[Tensor] = (affine(step, scale, share) for step in y)
    if residual is not None:
        currents = (i + times(residual.scale, r) for i, r in zip(currents, residual.currents, strict=True))
    spikes, v = integrate_and_fire(currents, v, threshold, leak)
    return pack(spikes), spikes.sum(0), v, is_open


def integrate_and_fire(currents: Iterable[Tensor], v: Tensor, threshold: float, leak: float) -> tuple[Tensor, Tensor]:
    """Run neurons with timing "step": the currents of T steps and the first v -> (spikes, 0 and 1, [T, ...], last v).

    Every line rounds once, to the dtype of v.
    """
    theta, leak_ = (v.new_tensor(value) for value in (threshold, leak))
    spikes = []
    for current in currents:
        v = v + current
        spike = (v >= theta).to(v.dtype)  # NaN does not fire
        v = (v if leak == 1 else leak_ * v) - theta * spike
        spikes.append(spike)
    return torch.stack(spikes), v


def affine(u: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return scale·u + shift; of u over the window it is the pre-activation z, before the residual.

    u is rounded once. The currents of the steps are rounded each, so that their sum may miss an exact zero.
    """
    return times(scale, u) if shift is None else u + shift if scale is None else (scale * u).add_(shift)


def times(scale: Tensor | None, x: Tensor) -> Tensor:
    return x if scale is None else scale * x


def fire_after_window(v: Tensor, threshold: float, T: int, ends: bool = True) -> tuple[Tensor, Tensor]:
    """Fire neurons with timing "window", whose potential v has integrated the whole window: v -> (counts, the last v).

    A neuron spikes while v ≥ ϑ, at most T times. Every line rounds once, to the dtype of v. Without ``ends`` the last v
    is only finite where it is: then quotients by a power of two, which are exact, give the counts.
    """
    theta = v.new_tensor(threshold)
    if not ends and math.frexp(threshold)[0] == 0.5:
        quotients = v if threshold == 1 else v / theta
        return quotients.nan_to_num(0.0, T, 0.0).clamp_(0, T).floor_(), v
    counts = torch.zeros_like(v)
    for _ in range(T):
        spike = (v >= theta).to(v.dtype)  # NaN does not fire
        v, counts = v - theta * spike, counts + spike
    return counts, v


def open_gate(z: Tensor, gate: str, threshold: float, T: int) -> Tensor:
    """Return which neurons let the gradient pass."""
    return (z > 0) & (z < z.new_tensor(threshold) * T) if gate == "clip" else z > 0


def lost(values: Tensor) -> Tensor:
    """Return for values [n, ...] NaN where any is infinite or NaN, else 0: [n]."""
    flat = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    return 0 * flat.amax(1) + 0 * flat.amin(1) if flat.numel() else flat.new_zeros(len(flat))


# --- batch statistics and rounding ------------------------------------------------------------------------------------


def batch_statistics(
    rows: Tensor, gain: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean and variance [C] of rows u [n, C], and scale and shift: scale·u + shift = γ·norm(gain·u) + β."""
    numbers = wide(rows)
    centre = divided(numbers.sum(0), len(rows))
    var = (divided((numbers * numbers).sum(0), len(rows)) - centre * centre).clamp_min(0).to(rows.dtype)
    mean = centre.to(rows.dtype)
    slope = gamma * inverse_deviation(gain, var, eps)
    return mean, var, slope * gain, beta - gain * mean * slope


def inverse_deviation(gain: Tensor, var: Tensor, eps: float) -> Tensor:
    return 1 / square_root(gain * gain * var + eps) + 0 * var


def wide(x: Tensor) -> Tensor:
    """Return x in float64, which Apple's GPUs do not have."""
    return x if x.device.type == "mps" else x.double()


def divided(x: Tensor, divisor: float) -> Tensor:
    """Return x / divisor, rounded once. On a GPU, torch multiplies by the reciprocal if it is not a GPU tensor."""
    return x / torch.full_like(x, divisor)


def square_root(x: Tensor) -> Tensor:
    """Return the square root of x, float32 or float64, rounded to nearest. torch's may be off by one unit.

    A neighbour at distance g from torch's root is nearer if the remainder x - root² exceeds g·root. The remainder is
    exact: splitting the root in two halves gives the error of its square (Dekker, Numerische Mathematik 18, 1971).
    """
    if x.dtype != torch.float64:
        return x.sqrt() if x.device.type == "mps" else square_root(x.double()).to(x.dtype)
    root = x.sqrt()
    high = root * (2.0**27 + 1)
    high = high - (high - root)
    low = root - high
    square = root * root
    error = ((high * high - square) + 2 * high * low) + low * low
    rest = (x - square) - error
    above, below = root.nextafter(torch.full_like(root, math.inf)), root.nextafter(torch.zeros_like(root))
    root = torch.where(rest > (above - root) * root, above, root)
    return torch.where((rest < 0) & (-rest >= (root - below) * root), below, root)


# --- weights ----------------------------------------------------------------------------------------------------------


def fixed_point(weight: Tensor) -> Tensor:
    """Return weights [N, ...] in float64 as the kernels multiply them: integers times a unit of each output.

    They are rounded to nearest, halves away from zero. The unit is a power of two and at least 2^-60: the smallest with
    a sum of magnitudes below 2^30, or up to four times that if then the integers are at most 0x7f7f7f, three signed
    digits to the base 256; of half types the smallest with integers of at most 0x7f7f, two digits. Products with counts
    are exact in any order below 2^53 units. csrc/kernels/weights/unit.h is the same in C++, and names its constants.
    float64 weights, which have no unit, and int8 are what they are.
    """
    if weight.dtype in (torch.float64, torch.int8) or weight.numel() == 0:
        return weight.double()
    rows = weight.float().flatten(1)
    size, largest = rows.abs(), rows.abs().amax(1)
    scale = largest.frexp().exponent.clamp(min=-30)
    measured = (size * _power_of_two(20 - scale).unsqueeze(1)).long().sum(1) + rows.shape[1]
    # not frexp of float64, which Inductor (torch 2.13) cannot subtract from
    exponent = ((measured.double().view(torch.int64) >> 52).int() - 1042 + scale).clamp(min=-30) - 30
    spare, most = (17, 0x7F7F) if weight.dtype != torch.float32 else (3, 0x7F7F7F)
    options = exponent.unsqueeze(1) + torch.arange(spare, dtype=torch.int32, device=weight.device)
    fits = largest.unsqueeze(1) * _power_of_two(-options) <= most
    exponent = exponent + fits.int().argmax(1)
    scaled = rows * _power_of_two(-exponent).unsqueeze(1)
    whole = (scaled + (0.49999997 * scaled.sign())).trunc()
    integers = torch.where(largest.isfinite().unsqueeze(1), whole, math.nan)
    return (integers.double() * _power_of_two(exponent).double().unsqueeze(1)).view(weight.shape)


def _power_of_two(n: Tensor) -> Tensor:
    return ((n.int() + 127) << 23).view(torch.float32)


# --- the format -------------------------------------------------------------------------------------------------------


def pack(spikes: Tensor) -> Tensor:
    """Pack spikes [T, B, *features] into planes [ceil(T/8), B, *features]: bit t % 8 of plane t // 8 is step t."""
    bits = torch.cat([spikes, spikes.new_zeros(-spikes.shape[0] % 8, *spikes.shape[1:])]).to(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device).view(8, *[1] * (bits.dim() - 1))
    return (torch.unflatten(bits, 0, (-1, 8)) * weights).sum(1, dtype=torch.uint8)


def spikes_of(stored: Tensor, T: int, timing: str, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`pack`. With timing "window" a neuron spikes in the first steps."""
    if timing == "window":
        return torch.stack([stored[0] > t for t in range(T)]).to(dtype)
    return torch.stack([stored[t // 8] >> t % 8 & 1 for t in range(T)]).to(dtype)
