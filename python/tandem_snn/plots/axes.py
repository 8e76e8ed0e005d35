"""What pictures have in common: colours, axes of steps and of per cent."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import extra

SNN, ANN, CONTINUED = "tab:blue", "tab:orange", "tab:brown"
MARKS = (100, 99, 95, 90, 80, 50, 0, 98, 99.5, 70, 60, 20, 97, 99.8, 98.5, 10, 30, 40, 92, 85)  # the first that fit
WIDENED = "axis widened towards 100"


def given_or_new(axes: Any) -> Any:
    """``axes``, or those of a new figure."""
    return extra("matplotlib.pyplot", "a picture").subplots(layout="constrained")[1] if axes is None else axes


def step_axis(axes: Any, T: int, ticks: int = 8) -> None:
    """Steps are counted from 1 to T, as everywhere."""
    axes.set(xlabel="time step", xlim=(0.4, T + 0.6))
    axes.set_xticks(step_ticks(T, ticks))


def step_ticks(T: int, ticks: int) -> list[int]:
    """At most so many of the steps 1..T, at round distances, and the first.

    >>> step_ticks(8, 8), step_ticks(8, 4), step_ticks(200, 8)
    ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 4, 6, 8], [1, 50, 100, 150, 200])
    """
    distance = next(10**k * d for k in range(9) for d in (1, 2, 5) if T / (10**k * d) <= ticks)
    return sorted({1, *range(distance, T + 1, distance)})


def percent_axis(axes: Any) -> None:
    """An axis of per cent upwards that widens towards 100, where networks differ: even in the logarithm of 101 - y.

    It says so, in small letters beside the axis.
    """

    def place(percent: Any) -> Any:
        return -np.log10(101 - np.minimum(percent, 100.9))

    low, high = (float(np.clip(limit, 0, 100.2)) for limit in axes.get_ylim())
    axes.set_yscale("function", functions=(place, lambda y: 101 - 10.0**-y))
    ticks: list[float] = []
    for mark in MARKS:
        if low <= mark <= high and all(abs(place(mark) - place(t)) > 0.08 * (place(high) - place(low)) for t in ticks):
            ticks.append(mark)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(low, high)
    say_scale(axes, WIDENED)


def say_scale(axes: Any, text: str) -> None:
    """Beside the axis upwards: that it is not linear."""
    axes.text(0.0, 1.01, text, transform=axes.transAxes, size=7, ha="left", va="bottom", alpha=0.75)
