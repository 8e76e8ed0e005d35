"""Without an example: find a batch that an ANN accepts, from its layers."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tandem_ext._torch import Convolution

from .graph import CannotConvert

GIVE = "give `example`, a batch of its inputs: convert(ann, T, example=images)"
SIDES = (28, 32, 8, 16, 34, 48, 64, 84, 96, 128, 224, 256, 299, 384, 512, *(2**n for n in range(10, 16)))
LARGEST = (0, 1 << 15, 512, 64)  # the largest side to try, by number of spatial dimensions


class _Input(NamedTuple):
    channels: int
    space: int  # the number of spatial dimensions
    dtype: torch.dtype
    device: torch.device

    def batch(self, side: int) -> Tensor:
        return torch.zeros(2, self.channels, *[side] * self.space, dtype=self.dtype, device=self.device)


def examples_for(ann: nn.Module) -> list[Tensor]:
    """Return a batch that the ANN accepts, and if possible one of another size. Images are square, of a usual size."""
    errors = []
    for candidate in dict.fromkeys(_inputs(ann)):
        for side in [side for side in SIDES if side <= LARGEST[candidate.space]] or [1]:
            error = _error(ann, candidate.batch(side))
            if error is None:
                others = (2 * side, side + 1, side - 1) if candidate.space else ()
                sides = [side, *(other for other in others if not _error(ann, candidate.batch(other)))]
                return [candidate.batch(s) for s in sides[:2]]
            errors.append(error)
    if not errors:
        raise CannotConvert("it has no nn.Linear and no convolution, so nothing would spike")
    line = next(iter(str(errors[0]).splitlines()), type(errors[0]).__name__)
    raise CannotConvert(f"found no input that the ANN accepts ({line}): {GIVE}") from errors[0]


def _inputs(ann: nn.Module) -> Iterator[_Input]:
    """Yield the inputs of layers, and of other Parameters that look like weights, in order of ``ann.modules()``."""
    for module in ann.modules():
        own = [p for p in module.parameters(recurse=isinstance(module, (nn.Linear, Convolution))) if p.dim() > 1]
        if isinstance(module, nn.Linear):
            yield _Input(module.in_features, 0, own[0].dtype, own[0].device)
        elif isinstance(module, Convolution):
            yield _Input(module.in_channels, len(module.kernel_size), own[0].dtype, own[0].device)
        else:
            yield from (_Input(p.shape[1], p.dim() - 2, p.dtype, p.device) for p in own if p.dim() <= 5)


def _error(ann: nn.Module, x: Tensor) -> Exception | None:
    try:
        ann(x)
    except Exception as error:  # a user's forward may raise anything
        return error
    return None
