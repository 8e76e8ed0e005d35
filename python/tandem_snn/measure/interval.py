"""How far a difference of two accuracies can be chance, the test samples being as few as they are."""

from __future__ import annotations

import math

Z = 1.959964  # of a normal distribution: 95 % lie within


def difference_interval(first: float, second: float, samples: int) -> tuple[float, float]:
    """The 95 % interval of first - second, two accuracies 0..1 on ``samples`` test samples each.

    By Newcombe's method 10 (Statistics in Medicine 17, 1998), from Wilson's intervals of both, as if the networks erred
    independently of each other. Networks that err on the same samples differ by less than that says, so it is wide
    rather than narrow. It knows nothing of what other seeds or other training data would give.

    >>> low, high = difference_interval(0.99, 0.97, 100)
    >>> f"{low:.3f} to {high:.3f}"
    '-0.029 to 0.075'
    """
    (low1, high1), (low2, high2) = (_wilson(p, samples) for p in (first, second))
    return (
        first - second - math.hypot(first - low1, high2 - second),
        first - second + math.hypot(high1 - first, second - low2),
    )


def _wilson(p: float, n: int) -> tuple[float, float]:
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    width = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return centre - width, centre + width


def points(first: float, second: float, samples: int, digits: int = 2) -> str:
    """The difference of two accuracies 0..1 in points, with its interval.

    >>> points(0.99, 0.97, 100)
    '+2.00 [-2.87, +7.51]'
    """
    low, high = difference_interval(first, second, samples)
    return f"{100 * (first - second):+.{digits}f} [{100 * low:+.{digits}f}, {100 * high:+.{digits}f}]"
