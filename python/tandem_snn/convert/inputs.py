"""Inputs of an ANN: one that it accepts, from its layers; and whether its forward depends on their size."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tandem_ext._torch import Convolution, pytree

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


class _Recorder(TorchFunctionMode):
    """Lists the functions of torch that are called, with the numbers among their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(self, f: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        self.calls.append((f, [repr(leaf) for leaf in leaves if isinstance(leaf, (int, float, slice, tuple))]))
        return f(*args, **(kwargs or {}))


def follows_size(ann: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether numbers in the forward depend on the size of images, which a graph has from its example.

    They are compared with those of another size, if the ANN accepts one.
    """

    @torch.no_grad()
    def calls(given: tuple[Tensor, ...]) -> list[Any]:
        with _Recorder() as recorder:
            ann(*given)
        return recorder.calls

    for first, grow in ((2, lambda n: n + 32), (2, lambda n: 2 * n), (2, lambda n: n + 1), (1, lambda n: n + 1)):
        others = tuple(_resized(x, first, grow) for x in inputs)
        try:
            found = calls(others)
        except Exception:  # a user's forward may raise anything
            continue
        return found != calls(inputs)
    return False


def _resized(x: Tensor, first: int, grow: Callable[[int], int]) -> Tensor:
    """Return a batch of another size, with the values of x, in the dimensions from ``first``; vectors keep theirs."""
    for dim in range(first, x.dim() if x.dim() > 2 else 0):
        x = x.index_select(dim, torch.arange(grow(x.shape[dim]), device=x.device) % x.shape[dim])
    return x
