"""Upsample, and padding: other places for features along the axes of images and lines."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.products import laid_out

from .currents import Currents, currents_of
from .signals import check_input, map_features

Ruler = Callable[[Tensor, int], Tensor]


def placed(x: Any, ruler: Ruler) -> Any:
    """Move the features of a signal or tensor [B, C, *space] along each axis of space.

    Args:
        x: a signal, or a tensor.
        ruler: (places, axis) -> the places that the result takes, [1, 1, n']. ``places`` are the numbers 0 to n - 1 of
            those of x, [1, 1, n], as floats, so that torch's functions on lines move them.

    >>> placed(torch.tensor([[[5.0, 7.0]]]), lambda places, axis: F.interpolate(places, 4))
    tensor([[[5., 5., 7., 7.]]])
    """
    index = [ruler(torch.arange(float(n), device=x.device).view(1, 1, n), d) for d, n in enumerate(x.shape[2:])]
    return map_features(x, lambda t: _taken(t, [places.flatten().long() for places in index]))


def _taken(x: Tensor, index: Sequence[Tensor]) -> Tensor:
    axes = len(index)
    x = x.movedim(-1 - axes, -1)  # channels are last in memory
    for axis, places in enumerate(index):
        x = x.index_select(axis - axes - 1, places)
    return x.movedim(-1, -1 - axes)


def padding_of(mode: str, sides: Sequence[int]) -> Ruler:
    """Return the ruler of torch's padding mode for ``sides``, as F.pad takes them: those of the last axis first."""
    return lambda places, axis: F.pad(places, list(sides)[len(sides) - 2 * axis - 2 :][:2], mode)


class Upsample(nn.Upsample):
    """Upsampling: repeated spikes, or currents that are interpolated.

    Args:
        size, scale_factor, align_corners: as in ``torch.nn.Upsample``.
        mode: "nearest" or "nearest-exact", which repeat the spikes of a train; or "bilinear".

    Shape: train, currents or direct input [B, C, H, W], with "nearest" also [B, C, L] -> the same kind of signal [B, C,
    H', W']; with "bilinear" a train becomes currents. Tensors of counts stay tensors.

    Raises:
        ValueError: mode is not one of these; or, when called, x does not fit.
        TypeError: x is neither a signal nor a tensor.

    >>> tnn.Upsample(scale_factor=2)(te.SpikeTrain.from_dense(torch.ones(8, 1, 3, 4, 4))).shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self,
        size: int | tuple[int, ...] | None = None,
        scale_factor: float | tuple[float, ...] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        checks.one_of("mode", mode, ("nearest", "nearest-exact", "bilinear"))
        if (size is None) == (scale_factor is None):
            raise ValueError(f"size: expected either a size or a scale_factor, got {size} and {scale_factor}")
        if mode != "bilinear" and align_corners is not None:
            raise ValueError(f'align_corners: only mode "bilinear" has corners, got {align_corners} with mode={mode!r}')
        super().__init__(size, scale_factor, mode, align_corners)

    def forward(self, x: Any) -> Any:
        check_input(x, "Upsample")
        axes = len(x.shape) - 2
        sizes = self.size if self.scale_factor is None else self.scale_factor
        if axes not in (1, 2) or (isinstance(sizes, (tuple, list)) and len(sizes) != axes):
            raise ValueError(f"x: Upsample to {sizes} takes as many spatial sizes, 1 or 2, got shape {list(x.shape)}")
        if self.mode != "bilinear":
            return placed(x, self._nearest)
        if isinstance(x, SpikeTrain | Currents):
            return currents_of(x).map(lambda u: self._bilinear(laid_out(u, True)))
        return map_features(x, self._bilinear)

    def _nearest(self, places: Tensor, axis: int) -> Tensor:
        size, scale = (v[axis] if isinstance(v, tuple) else v for v in (self.size, self.scale_factor))  # type: Any, Any
        return F.interpolate(places, size, scale, self.mode)

    def _bilinear(self, x: Tensor) -> Tensor:
        return super().forward(x)
