"""Quantise weights to 2 to 8 bits, symmetrically, with one quantisation step per output channel."""

import math

import torch
from torch import Tensor

from tandem_ext import checks
from tandem_ext._torch import autocast_active
from tandem_ext.functional.autograd import apply
from tandem_ext.functional.currents import StraightThrough
from tandem_ext.functional.neuron import over_inputs

# With 2 or 3 bits a few large weights would round most others to 0, so the largest may be clipped: the step is one of
# these shares of peak/largest. A multiple of 1/_PARTS of the peak, so that sums of errors are exact.
_SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4)
_PARTS = 5376


def check_bits(bits: object) -> None:
    if bits is not None:
        checks.integer("weight_bits", bits, "None or an int from 2 to 8", 2, 8)


def quantise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return integers q (as floats), |q| < 2^(bits-1), and steps [N] with weight ≈ step·q.

    A step is the row's peak / (2^(bits-1) - 1), or with 2 or 3 bits the share of it with the least squared error.
    """
    if _has_kernel(weight):
        q, step = torch.ops.tandem.quantise.default(weight, bits)
        return q.to(weight.dtype), step
    largest = 2 ** (bits - 1) - 1
    rows = weight.flatten(1)
    peak = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    step = peak / largest
    step = torch.where(step == 0, torch.ones_like(step), step)
    if bits <= 3:
        step = step * _best_share(rows, step, largest)
    q = (weight / over_inputs(step, weight)).round().clamp(-largest, largest)
    return q, step


def _best_share(rows: Tensor, step: Tensor, largest: int) -> Tensor:
    """Return the share of each row's step with the least squared error, the first of equals.

    It brings nothing from the host, so that a CUDA graph can capture it.
    """
    parts = (rows.abs() / step.unsqueeze(1) * (_PARTS // largest)).round()
    best, least = torch.ones_like(step), torch.full_like(step, math.inf, dtype=torch.float64)
    for share in _SHARES:
        own = _PARTS // largest * share
        left = parts - own * (parts * (1 / own)).clamp(max=largest).round()
        error = left.double().square().sum(1)
        best = best.masked_fill(error < least, share)
        least = torch.minimum(least, error)
    return best


def _has_kernel(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def byte_integers(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """:func:`quantise` without a gradient: q is int8 if the weights are float32 on the CPU."""
    if _has_kernel(weight) and not autocast_active():  # autocast needs floating-point weights
        return torch.ops.tandem.quantise.default(weight, bits)
    return quantise(weight, bits)


def integers(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """:func:`quantise`, where the gradient of step·q goes straight through to ``weight``."""
    q, step = quantise(weight.detach(), bits)
    return apply(StraightThrough, weight, q, step), step


def rounded(weight: Tensor, bits: int | None) -> Tensor:
    """Return the quantised weights step·q, whose gradient goes straight through to ``weight``."""
    if bits is None:
        return weight
    q, step = quantise(weight.detach(), bits)
    return apply(StraightThrough, weight, q * over_inputs(step, q), None)
