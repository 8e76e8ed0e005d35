"""Bin address events, the output of event cameras and silicon cochleas, into spike planes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

COORDINATES = {1: ("x",), 2: ("p", "x"), 3: ("p", "y", "x")}


def bin_events(
    recording: Any, shape: Sequence[int], T: int, window: tuple[float, float] | None
) -> npt.NDArray[np.uint8]:
    """Return the planes [ceil(T/8), *shape] of a recording; arguments and errors as in ``SpikeTrain.from_events``."""
    shape, sizes = tuple(shape) if hasattr(shape, "__len__") else (), shape
    if not shape or not all(isinstance(n, (int, np.integer)) and n >= 0 for n in shape):
        raise ValueError(f"shape: expected the sizes of the features, such as (2, 34, 34), got {sizes}")
    times, neurons = _addresses(recording, shape)
    frames, inside = _frames(times, T, window)
    frames, neurons = frames[inside], neurons[inside]
    planes = np.zeros(((T + 7) // 8, math.prod(shape)), dtype=np.uint8)
    for bit in range(min(T, 8)):  # the dense spikes of a long window would take eight times the memory
        in_bit = frames % 8 == bit
        planes[frames[in_bit] // 8, neurons[in_bit]] |= np.uint8(1 << bit)
    return planes.reshape(len(planes), *shape)


def check_window(window: tuple[float, float]) -> None:
    numbers = isinstance(window, (tuple, list)) and all(isinstance(t, (int, float, np.number)) for t in window)
    if not numbers or len(window) != 2 or not -math.inf < window[0] < window[1] < math.inf:
        raise ValueError(f"window: expected (start, stop) with start < stop, got {window}")


def _addresses(recording: Any, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the times of the events, and their neurons as indices into the flattened features."""
    if isinstance(recording, (tuple, list)) and len(recording) == 2:
        times, neurons = _numbers("times", recording[0]), _numbers("neurons", recording[1])
        coordinates, sizes = {"neurons": neurons}, {"neurons": math.prod(shape)}
    else:
        names = recording.dtype.names if isinstance(recording, np.ndarray) else None
        if names is None and not isinstance(recording, Mapping):
            raise TypeError(
                "recording: expected a structured array, a mapping with t, x, y, p, or a pair (times, neurons), got "
                f"{type(recording).__name__}"
            )
        if len(shape) not in COORDINATES:
            raise ValueError(f"shape: expected [neurons], [p, x] or [p, y, x] for events with fields, got {shape}")
        wanted = [name for name, size in zip(COORDINATES[len(shape)], shape, strict=True) if (name, size) != ("p", 1)]
        missing = {"t", *wanted}.difference(names if names is not None else recording)
        if missing:
            raise ValueError(f"recording: features {shape} need the fields t, {', '.join(wanted)}; missing: {missing}")
        times = _numbers("t", recording["t"])
        coordinates = {name: _numbers(name, recording[name]) for name in wanted}
        if "p" in coordinates and shape[0] == 2:
            coordinates["p"] = np.where(coordinates["p"] == -1, 0, coordinates["p"])  # off events are 0 or -1
        sizes = dict(zip(COORDINATES[len(shape)], shape, strict=True))

    flat = np.zeros(len(times), dtype=np.int64)
    for name, values in coordinates.items():
        if len(values) != len(times):
            raise ValueError(f"{name}: expected {len(times)} values, as many as there are times, got {len(values)}")
        if len(values) and not (values.min() >= 0 and values.max() < sizes[name]):
            found = f"{name}: expected addresses in 0..{sizes[name] - 1}, got {values.min()}..{values.max()}"
            raise ValueError(f"{found}; shape {shape} is [{', '.join(sizes)}]")
        whole = values.astype(np.int64)
        if values.dtype.kind == "f" and (values != whole).any():
            raise ValueError(f"{name}: expected whole numbers, got {values[values != whole][0]}")
        flat = flat * sizes[name] + whole
    return times, flat


def _frames(
    times: npt.NDArray[Any], T: int, window: tuple[float, float] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the frame of each event, and whether the event lies in the window. Exact for integer times."""
    if times.dtype.kind == "f" and np.isnan(times).any():
        raise ValueError("recording: a time is NaN")
    if window is None:
        if not len(times):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        start, stop = times.min().item(), times.max().item()
        inside = np.ones(len(times), dtype=bool)
        if start == stop and math.isfinite(start):
            return np.zeros(len(times), dtype=np.int64), inside
    else:
        check_window(window)
        start, stop = (t.item() if isinstance(t, np.number) else t for t in window)
        inside = (times >= start) & (times < stop)
    span = stop - start
    most = 2**63 if times.dtype.kind == "i" and isinstance(span, int) else math.inf  # int64 would wrap around
    if not span * T < most:
        raise ValueError(f"recording: the times {start} and {stop} are too far apart for T={T}")
    if most < math.inf:
        frames = np.where(inside, times - start, 0) * T // span
    else:
        frames = np.searchsorted(np.linspace(start, stop, T + 1)[1:], times, side="right")
    return np.minimum(frames, T - 1), inside


def _numbers(name: str, values: Any) -> npt.NDArray[Any]:
    """Return a 1-d array of int64 or float64, because sums and products of narrower types overflow."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected a 1-d array, one value per event, got shape {array.shape}")
    if array.size and array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise ValueError(f"{name}: expected numbers below 2^63, got {array.max()}")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
