"""Arithmetic that torch does not round to nearest, rounded to nearest."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """The square root of x, float32 or float64, as every processor has it; torch's own may be a neighbour.

    A neighbour of torch's root, g away from it, is nearer where the remainder x - root² is beyond g·root. It is exact:
    the error of the square is found by splitting the root into two halves (Dekker, Numerische Mathematik 18, 1971).

    >>> square_root(torch.tensor([4.0, 0.0]))
    tensor([2., 0.])
    """
    if x.dtype != torch.float64:
        return square_root(x.double()).to(x.dtype)
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
