"""What readers return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Samples, uint8 [N, ...], and their classes, int64 [N]."""

    samples: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Images:
    """Images [N, C, H, W] whose brightest value is ``white``."""

    train: Part
    test: Part
    class_names: tuple[str, ...]
    white: int = 255


@dataclass(frozen=True)
class Frames:
    """Spike planes [N, ceil(T/8), H, W, 2]."""

    train: Part
    test: Part
    class_names: tuple[str, ...]
