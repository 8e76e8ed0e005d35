"""Without an example: find a batch that an ANN accepts, from its layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from .graph import CannotConvert

GIVE = "give `example`, a batch of its inputs: convert(ann, T, example=images)"
LARGEST = (1, 1 << 15, 512, 64)  # the largest side of an input to try, by number of spatial dimensions


class _Input(NamedTuple):
    """The input of a layer: its number of channels and of spatial dimensions, dtype and device."""

    channels: int
    space: int
    dtype: torch.dtype
    device: torch.device

    def batch(self, side: int) -> Tensor:
        return torch.zeros(2, self.channels, *[side] * self.space, dtype=self.dtype, device=self.device)


def examples_for(ann: nn.Module) -> list[Tensor]:
    """Return a batch that the ANN accepts, and if possible one of another size. Images are square."""
    errors = []
    for given in dict.fromkeys(_inputs(ann)):
        side, error = _side(ann, given)
        if error is None:
            others = (2 * side, side + 1, side - 1) if given.space else ()
            sides = [side, *(other for other in others if not _error(ann, given.batch(other)))]
            return [given.batch(s) for s in sides[:2]]
        errors.append(error)
    if not errors:
        raise CannotConvert("it has no nn.Linear and no convolution, so nothing would spike")
    line = next(iter(str(errors[0]).splitlines()), type(errors[0]).__name__)
    raise CannotConvert(f"found no input that the ANN accepts ({line}): {GIVE}") from errors[0]


def _inputs(ann: nn.Module) -> Iterator[_Input]:
    """Yield the inputs of layers, and of other Parameters that look like weights, in order of ``ann.modules()``."""
    for module in ann.modules():
        own = [p for p in module.parameters(recurse=isinstance(module, (nn.Linear, _ConvNd))) if p.dim() > 1]
        if isinstance(module, nn.Linear):
            yield _Input(module.in_features, 0, own[0].dtype, own[0].device)
        elif isinstance(module, _ConvNd):
            yield _Input(module.in_channels, len(module.kernel_size), own[0].dtype, own[0].device)
        else:
            yield from (_Input(p.shape[1], p.dim() - 2, p.dtype, p.device) for p in own if p.dim() <= 5)


def _side(ann: nn.Module, given: _Input) -> tuple[int, Exception | None]:
    """Return (side, None) if the ANN accepts inputs with that side, else (side, the first error)."""
    low, high, side = 0, 0, 28  # 28 first, because some networks for MNIST accept no other size
    first = error = _error(ann, given.batch(side))
    while error is not None:
        low, high = (low, side) if isinstance(error, _TooLarge) else (side, high)
        side = (low + high) // 2 if high else 2 * low
        if side == low or side > LARGEST[given.space]:
            return side, first
        error = _error(ann, given.batch(side))
    return side, None


def _error(ann: nn.Module, x: Tensor) -> Exception | None:
    try:
        with _Sizes():
            ann(x)
    except Exception as error:  # a user's forward may raise anything
        return error
    return None


class _TooLarge(Exception):
    pass


class _Sizes(TorchFunctionMode):
    """Raises _TooLarge if a linear layer gets more features than its weight takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[0].shape[-1] > args[1].shape[-1]:
            raise _TooLarge(f"{args[0].shape[-1]} features, where a weight of shape {list(args[1].shape)} follows")
        return func(*args, **(kwargs or {}))
