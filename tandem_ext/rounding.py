"""Arithmetic that rounds to nearest where torch's does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """Return the square root of x, float32 or float64, rounded to nearest. torch's may be off by one unit.

    A neighbour at distance g from torch's root is nearer if the remainder x - root² exceeds g·root. The remainder is
    exact: splitting the root in two halves gives the error of its square (Dekker, Numerische Mathematik 18, 1971).

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
