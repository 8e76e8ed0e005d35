"""tonic's data sets as data sets of spike trains.

>>> recording = {"t": [0, 1, 90], "x": [0, 1, 1], "p": [1, 1, 0]}
>>> trains = ts.tonic.from_tonic([(recording, 3)], T=2, sensor_size=(2, 1, 2))
>>> trains[0]
(SpikeTrain(T=2, shape=[1, 2, 2], gain=1.0, device=cpu), 3)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tandem_ext import SpikeTrain, checks
from tandem_ext.events import COORDINATES, check_window

__all__ = ["TrainDataset", "from_tonic"]


def bin_events(
    events: Mapping[str, Any],
    sensor: tuple[int, ...],
    shape: tuple[int, ...],
    T: int,
    window: tuple[float, float] | None = None,
) -> SpikeTrain:
    """One recording as a train with a batch of one, features ``shape``; other arguments as in :class:`TrainDataset`.

    Events have t and the names of ``sensor``, [p, y, x], [p, x] or [x], in any order of time. If ``shape`` is smaller,
    a neuron gets the events of all pixels that it covers. Further events of a neuron in a frame are dropped.
    """
    events = dict(events)
    for name, pixels, neurons in zip(COORDINATES[len(shape)], sensor, shape, strict=True):
        if pixels != neurons and name in events:  # else from_events says that it is missing
            events[name] = np.asarray(events[name], np.int64) * neurons // pixels
    return SpikeTrain.from_events(events, shape, T, window=window)


@dataclass(frozen=True, repr=False, eq=False)
class TrainDataset(Dataset[tuple[SpikeTrain, Any]]):
    """The samples of another data set as (train with a batch of one, target), made by :func:`from_tonic`.

    Attributes:
        dataset: the other data set.
        T: time steps of every train.
        sensor, shape: of one sample before and after down-sampling: [p, y, x], [p, x] or [x].
        window: see :func:`from_tonic`.
    """

    dataset: Any
    T: int
    sensor: tuple[int, ...]
    shape: tuple[int, ...]
    window: tuple[float, float] | None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[SpikeTrain, Any]:
        sample, target = self.dataset[index]
        return self._train(sample, index), target

    def _train(self, sample: Any, index: int) -> SpikeTrain:
        if isinstance(sample, np.ndarray) and sample.dtype.names:
            sample = {name: sample[name].reshape(-1) for name in sample.dtype.names}  # ASL-DVS comes as a column
        if isinstance(sample, Mapping):
            return bin_events(sample, self.sensor, self.shape, self.T, self.window)
        if isinstance(sample, SpikeTrain):
            sample = np.asarray(sample)
        if not isinstance(sample, (np.ndarray, Tensor)):
            raise TypeError(
                f"dataset: expected events, frames or trains, got {type(sample).__name__} as sample {index}"
            )
        frames = sample if isinstance(sample, Tensor) else torch.as_tensor(np.ascontiguousarray(sample))
        if frames.dim() == 0 or _wide(frames.shape[1:]) != _wide(self.sensor):
            raise ValueError(
                f"dataset: expected frames [T, *{list(self.sensor)}] as the sensor has, got {list(frames.shape)} as "
                f"sample {index}"
            )
        if self.shape != self.sensor:
            raise ValueError("size: frames cannot be resized; use the events, or tonic's Downsample")
        if not len(frames) or self.T % len(frames):
            raise ValueError(
                f"T: sample {index} has {len(frames)} frames, and T={self.T} is not a multiple of that: give ToFrame "
                "n_time_bins or n_event_bins, so that all samples have the same number"
            )
        return SpikeTrain.from_frames(frames.reshape(-1, 1, *self.sensor), substeps=self.T // len(frames))

    def __repr__(self) -> str:
        return f"TrainDataset({len(self):,} trains {list(self.shape)}, T={self.T}, of {_named(self.dataset)})"


def from_tonic(
    dataset: Any,
    T: int = 8,
    *,
    sensor_size: Sequence[int] | None = None,
    size: int | None = None,
    window: tuple[float, float] | None = None,
) -> TrainDataset:
    """A tonic data set as a data set of spike trains, for a DataLoader, Lightning and others.

    Any data set with ``len()`` and samples (sample, target) will do. It may be wrapped in tonic's caches and slices,
    and they may wrap it. Samples are:

    - events: a structured array or a mapping with t, x and, if the sensor has them, y and p. They are binned into T
      frames. A neuron spikes in each frame with an event.
    - frames of counts, as from ``tonic.transforms.ToFrame``. T must be a multiple k of their number. Each frame becomes
      k steps; a neuron with n events spikes in min(n, k) of them.
    - trains, as from a disk cache: dense [T, 1, *shape].

    Args:
        dataset: indexed at every use; ``tonic.MemoryCachedDataset(from_tonic(...))`` keeps the trains.
        T: time steps, 1..65535.
        sensor_size: (x, y, polarities); None: the attribute of ``dataset``, or of a data set within it.
        size: for events: height and width after down-sampling.
        window: for events: (start, stop) in the unit of t; None: from the first event of a recording to
            the last.

    Raises:
        TypeError: not such a data set; on indexing: samples of another kind.
        ValueError: sensor_size is unknown; T, size or window is out of range; on indexing: events outside the
            sensor, frames that do not fit.

    >>> frames = np.ones((4, 2, 9, 12), int)  # as tonic's ToFrame makes them
    >>> from_tonic([(frames, 3)], T=8, sensor_size=(12, 9, 2))
    TrainDataset(1 trains [2, 9, 12], T=8, of list)
    """
    checks.T("T", T)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"dataset: expected one with len() and samples (sample, target), got {type(dataset).__name__}")
    inner = dataset
    while sensor_size is None and inner is not None:
        sensor_size = getattr(inner, "sensor_size", None)
        inner = getattr(inner, "dataset", None)
    if sensor_size is None:
        raise ValueError(f"sensor_size: not known for {_named(dataset)}: give (x, y, polarities)")
    sensor = features_of(sensor_size)
    if window is not None:
        check_window(window)
    shape, names = sensor, COORDINATES[len(sensor)]
    if size is not None:
        most = min(n for name, n in zip(names, sensor, strict=True) if name != "p")
        checks.integer("size", size, f"1 to {most}, as the sensor has", 1, most)
        shape = tuple(n if name == "p" else size for name, n in zip(names, sensor, strict=True))
    return TrainDataset(dataset, T, sensor, shape, window)


def features_of(sensor_size: Any) -> tuple[int, ...]:
    """Return the shape of the features of a sensor that tonic describes as (x, y, polarities)."""
    sizes = tuple(sensor_size) if isinstance(sensor_size, Iterable) else ()
    if len(sizes) != 3 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
        raise ValueError(f"sensor_size: expected (x, y, polarities) as tonic gives it, got {sensor_size!r}")
    x, y, p = map(int, sizes)
    if y > 1:
        return p, y, x
    return (p, x) if p > 1 else (x,)


def _wide(shape: Sequence[int]) -> list[int]:
    """A shape without its dimensions of size one, as audio, single polarities and batches of one have."""
    return [n for n in shape if n != 1]


def _named(dataset: Any) -> str:
    return f"{type(dataset).__name__}" + (f" of {_named(dataset.dataset)}" if hasattr(dataset, "dataset") else "")
