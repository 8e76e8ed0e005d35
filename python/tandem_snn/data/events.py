"""Event recordings as spike trains: binned once, kept as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tandem_ext import SpikeTrain

from .augment import Augmentation, augment
from .split import Chance, Split

BINS = ("time", "count")
AXES = {1: ("x",), 2: ("x",), 3: ("y", "x")}  # of space, by the number of features' dimensions


@dataclass(frozen=True, repr=False)
class EventSplit(Split):
    """Spike trains in memory.

    Attributes:
        planes: uint8 [N, ceil(T/8), H, W, C], the channels being polarities; bit t%8 of plane t//8 is step t.
        T: the number of frames.
        targets: int64 [N].
        augmentations: what a batch with a seed goes through.
    """

    planes: Tensor
    T: int
    targets: Tensor
    augmentations: tuple[Augmentation, ...] = ()

    def __len__(self) -> int:
        return len(self.planes)

    @property
    def kind(self) -> str:
        return "events"

    @property
    def device(self) -> torch.device:
        return self.planes.device

    def take(self, chosen: Tensor, chance: Chance | None) -> tuple[SpikeTrain, Tensor]:
        chosen = chosen.to(self.device)
        planes = self.planes[chosen].movedim(-1, 2)  # [B, P, C, H, W]
        if chance is not None and self.augmentations:
            planes = augment(planes.flatten(1, 2), self.augmentations, chance).unflatten(1, planes.shape[1:3])
        # channels innermost in memory, as kernels want them
        planes = planes.transpose(0, 1).movedim(2, -1).contiguous().movedim(-1, 2)
        return SpikeTrain.unchecked(planes, self.T), self.targets[chosen]

    def _sample(self) -> str:
        height, width, polarities = self.planes.shape[2:]
        return f"events {[polarities, height, width]}, T={self.T}"

    def subset(self, indices: Sequence[int] | Tensor) -> EventSplit:
        chosen = torch.as_tensor(indices, device=self.device)
        return replace(self, planes=self.planes[chosen], targets=self.targets[chosen])

    def without_augmentation(self) -> EventSplit:
        return replace(self, augmentations=())

    def to(self, device: torch.device | str) -> EventSplit:
        return replace(self, planes=self.planes.to(device), targets=self.targets.to(device))


def bin_recording(
    events: Mapping[str, Any] | np.ndarray, sensor: tuple[int, int], T: int, bins: str, size: tuple[int, int]
) -> Tensor:
    """One recording as planes uint8 [ceil(T/8), H, W, 2], the two channels being the polarities.

    Args:
        events: with the fields t, x, y, p, in any order of time.
        sensor: height and width of the camera.
        T: the number of frames, 1..255.
        bins: "time": frames of equal length, from the first event to the last; "count": frames of equally many events.
        size: height and width of the frames; a neuron gets the events of the pixels that it covers. Spikes are binary:
            further events of a neuron in the same frame are dropped.

    >>> events = {"t": [0, 1, 90], "x": [0, 1, 1], "y": [0, 0, 0], "p": [1, 1, 0]}
    >>> bin_recording(events, (2, 2), 2, "time", (1, 1)).flatten()  # off at step 1, on at step 0
    tensor([2, 1], dtype=torch.uint8)
    """
    return bin_events(events, (2, *sensor), T, bins, size).planes[:, 0].movedim(1, -1).contiguous()


def bin_events(
    events: Mapping[str, Any] | np.ndarray,
    shape: tuple[int, ...],
    T: int,
    bins: str = "time",
    size: tuple[int, ...] | None = None,
    window: tuple[float, float] | None = None,
) -> SpikeTrain:
    """One recording as a train with a batch of one.

    Args:
        events: with the fields t and those of ``shape``, in any order of time.
        shape: of the sensor: [p, y, x], [p, x] or [x].
        T, bins: as in :func:`bin_recording`.
        size: of the frames in space, [y, x] or [x], at most that of the sensor, which is the default.
        window: as in :meth:`tandem_ext.SpikeTrain.from_events`; for bins by time only.
    """
    space = AXES[len(shape)]
    size = shape[-len(space) :] if size is None else size
    fields = {"t", *space, *(["p"] if len(shape) > len(space) and shape[0] > 1 else [])}
    coordinates = {name: _integers(name, events[name]) for name in sorted(fields)}
    for name, limit, wanted in zip(space, shape[-len(space) :], size, strict=True):
        values = coordinates[name]
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{name}: expected addresses in 0..{limit - 1}, got {values.min()}..{values.max()}")
        coordinates[name] = values * wanted // limit
    if bins == "count":
        order = np.argsort(coordinates["t"], kind="stable")
        coordinates = {name: values[order] for name, values in coordinates.items()}
        coordinates["t"] = np.arange(len(order))
        window = 0, max(1, len(order))
    return SpikeTrain.from_events(coordinates, (*shape[: -len(space)], *size), T, window=window)


def _integers(name: str, values: Any) -> np.ndarray:
    numbers = np.asarray(values)
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected finite numbers")
    return numbers.astype(np.int64)
