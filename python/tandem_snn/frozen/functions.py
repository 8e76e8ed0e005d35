"""Lower the functions between the layers of a converted network: sums, batch norm, moves of channels or features."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tandem_ext._torch import pytree
from tandem_ext.signal import offsets_of

from ..nn import currents, general
from ..nn.batch_norm import fold_norm
from ..nn.maximum import largest
from .instruction import INPUT, CannotLower
from .trace import Value

if TYPE_CHECKING:
    from .lowering import Lowering

JOINS = ("cat", "concat", "concatenate")
TOO_MANY = "its input has more dimensions than channels, height and width"


def apply_function(lowering: Lowering, name: str, f: Any, *args: Any, **kwargs: Any) -> Any:
    """Append what a function does with values; return the value of its result."""
    if f is operator.getitem:
        return args[0][args[1]]
    if not any(isinstance(value, Value) for value in pytree.tree_leaves((args, kwargs))):
        if torch.Tag.nondeterministic_seeded in getattr(f, "tags", ()):
            raise CannotLower(name, "it draws random numbers, which a program has not")
        return f(*args, **kwargs)
    if f is general.of_size:
        if lowering.only_features_of(name, args[0]) != tuple(args[2]):
            raise CannotLower(name, f"it was converted for samples of shape {list(args[2])}")
        return args[0]
    if f is general.rearranged:
        return rearranged(lowering, name, *args, **kwargs)
    if f is currents.currents_of and args[0].is_currents:
        return args[0]
    if any(value.pending for value in args if isinstance(value, Value)):
        raise CannotLower(name, TOO_MANY)
    if f is largest:
        raise CannotLower(name, "a maximum that is not tnn.MaxPool2d")
    x = args[0]
    if f in (general.dropped, general.silenced):
        return x
    if f is currents.currents_of:
        return lowering.affine(name, x, None, None)
    if f is currents.normalise:
        return lowering.affine(name, x, *fold_norm(args[1]))
    if f in (general.scaled, general.shifted):
        return lowering.constant(name, x, args[1], scales=f is general.scaled)
    alpha = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    other = args[1] if alpha == 1 else lowering.affine(name, args[1], torch.tensor([float(alpha)]), None)
    return lowering.sum(name, x, other)


def rearranged(lowering: Lowering, name: str, f: Any, by_channel: bool, *args: Any, **kwargs: Any) -> Any:
    """Append what an operator of torch.ops.aten, by its name, or a function does that only moves features."""
    args, kwargs = pytree.tree_map_only(Value, lowering.real, (args, kwargs))
    values = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Value)]
    if f in JOINS:
        return joined(lowering, name, values, *args[1:], **kwargs)
    if len(values) > 1:
        raise CannotLower(name, f"{f} of several values")
    (x,) = values
    source, index = x.origin or (x, None)
    features = lowering.features_of(name, source)
    if index is None:
        index = torch.arange(torch.Size(features).numel()).view(features)
    places = (index + 1).double().unsqueeze(0)  # some operators take no integers; 0 is what they pad with
    call = pytree.tree_map_only(Value, lambda _: places, (args, kwargs))
    moved = (getattr(torch.ops.aten, f) if isinstance(f, str) else f)(*call[0], **call[1])
    each = [_gathered(lowering, name, source, features, part[0].long() - 1, by_channel) for part in _listed(moved)]
    return each[0] if isinstance(moved, Tensor) else each


def before_moves(lowering: Lowering, name: str, *values: Value) -> tuple[list[Value], Callable[[Value], Value]] | None:
    """Return values as they were before a permutation that all have in common, and what moves a result likewise.

    What acts on each feature alone may come before it, and then it is often undone. Of tokens one value that was moved
    is enough: the others are moved to where the layers of tokens are. None: they have none in common.
    """
    origins: list[Any] = [value.origin for value in values]
    index = next((index for _, index in filter(None, origins)), None)
    if index is None:
        return None
    if None in origins:
        tokens = index.dim() == 2 and torch.equal(index, torch.arange(index.numel()).view(index.shape[::-1]).t())
        if not tokens or any(lowering.features_of(name, value) != tuple(index.shape) for value in values):
            return None
        origins = [value.origin or (_channels_first(lowering, name, value), index) for value in values]
    sources = [source for source, _ in origins]
    shapes = [lowering.features_of(name, source) for source in sources]
    same = all(index.shape == other.shape and torch.equal(index, other) for _, other in origins)
    if not same or index.numel() != torch.Size(shapes[0]).numel() or bool((index < 0).any()):
        return None
    shape = min(shapes, key=len)
    view = torch.arange(index.numel()).view(shape)
    sources = [_gathered(lowering, name, x, size, view, True) for x, size in zip(sources, shapes, strict=True)]
    return sources, lambda y: _gathered(lowering, name, y, shape, index, False)


def _channels_first(lowering: Lowering, name: str, x: Value) -> Value:
    """Append the move of tokens, of which nothing is to undo: the next sum would move them back."""
    y = rearranged(lowering, name, "movedim", False, x, -1, 1)
    y.origin = None
    return y


def each_feature(lowering: Lowering, name: str, x: Value, f: Callable[[Value], Value]) -> Value:
    """Append f of the features of x as channels of their own."""
    features = lowering.features_of(name, x)
    index = torch.arange(torch.Size(features).numel())
    y = f(_gathered(lowering, name, x, features, index, False))
    return _gathered(lowering, name, y, tuple(index.shape), index.view(features), False)


def check_times(name: str, *values: Value) -> None:
    """Raise CannotLower for what is neither a train nor currents."""
    if any(value.timing is None for value in values):
        raise CannotLower(name, "it reads the image or means: expected spikes or currents, which layers make")


def _listed(moved: Any) -> list[Tensor]:
    return [moved] if isinstance(moved, Tensor) else list(moved)


def of_channels(lowering: Lowering, name: str, x: Value, dim: int = 0) -> bool:
    """Return whether a dimension of x, which may be counted from the last, is that of the channels."""
    if dim >= 0:
        return dim == 1
    i = None if x.number == INPUT else lowering.list[x.number].instruction
    axes = i.axes if i is not None and i.kind == "layer" else len(lowering.features_of(name, x)) - 1
    return dim == -1 - axes


def joined(lowering: Lowering, name: str, values: list[Value], dim: int = 0) -> Value:
    """Join values along a dimension: channels, or another one that is moved to their place and back."""
    if any(value.pending for value in values):
        raise CannotLower(name, TOO_MANY)
    if of_channels(lowering, name, values[0], dim):
        return _joined_channels(lowering, name, values)
    if dim == 0 or dim == -1 - len(lowering.features_of(name, values[0])):
        raise CannotLower(name, f"it joins samples, along dimension {dim}")
    values = [rearranged(lowering, name, "movedim", False, value, dim, 1) for value in values]
    for value in values:
        if isinstance(value.gain, Tensor) and value.gain.dim() > 1:
            each = value.gain.flatten(1)
            if not torch.equal(each, each[:, :1].expand_as(each)):
                raise CannotLower(name, f"it joins trains along dimension {dim} whose gains differ along another one")
            value.gain = each[:, 0]
    return rearranged(lowering, name, "movedim", False, _joined_channels(lowering, name, values), 1, dim)


def _joined_channels(lowering: Lowering, name: str, values: list[Value]) -> Value:
    """Join channels, two values after the other; a join that begins as another one shares its beginning."""
    if len({(value.timing, value.is_currents) for value in values}) > 1:
        # counts have no steps, which one reader may need, but networks of window timing follow counts alone
        steps = any(getattr(layer, "timing", "window") == "step" for layer in lowering.net.modules())
        others = "step" if steps else "window"
        timing = next((str(value.timing) for value in values if value.is_currents), others)
        values = [lowering.converted(name, value, timing) for value in values]
        if any(value.is_currents for value in values):
            values = [lowering.affine(name, value, None, None) for value in values]
    if not all(value.is_numbers for value in values):
        check_times(name, *values)
    x = values[0]
    for other in values[1:]:
        key = x.number, other.number
        if key not in lowering.joins:
            sizes = lowering.channels_of(name, x), lowering.channels_of(name, other)
            gain, own_T = _joined_gain(x, other, sizes), lowering.longest(name, x, other)
            lowering.joins[key] = lowering.moved(
                name, x, gain, None, sum(sizes), residual=other.number, channels=sum(sizes), by_channel=True
            )
            lowering.joins[key].own_T = own_T
            offsets = offsets_of([x.offset, other.offset], (lowering.features_of(name, v) for v in (x, other)))
            lowering.joins[key].offset = torch.cat(offsets, 1) if offsets else None
        x = lowering.joins[key]
    return x


def _joined_gain(x: Value, other: Value, sizes: tuple[int, int]) -> Any:
    gains = x.gain, other.gain
    if not any(isinstance(gain, Tensor) for gain in gains) and gains[0] == gains[1]:
        return gains[0]
    each = [spread(gain, size) for gain, size in zip(gains, sizes, strict=True)]
    return torch.cat(each)


def spread(gain: Any, channels: int) -> Tensor:
    """Return a gain for each channel; a tensor keeps its type, in which evaluation rounds."""
    gain = gain.detach().flatten() if isinstance(gain, Tensor) else torch.tensor([gain], dtype=torch.float32)
    return gain.repeat_interleave(channels // len(gain))


def _gathered(
    lowering: Lowering, name: str, x: Value, features: tuple[int, ...], index: Tensor, by_channel: bool
) -> Value:
    """Append a gather for the index of each feature of the result, in C, H, W order."""
    if index.dim() > 3:
        later = Value(x.number, x.timing, x.gain, is_currents=x.is_currents, owner=lowering)
        later.origin, later.pending = (x, index), True
        return later
    if torch.equal(index.flatten(), torch.arange(torch.Size(features).numel())) and index.shape == features:
        return x  # a move and its way back
    gain = x.gain
    if isinstance(gain, Tensor) and gain.dim():
        each = gain if gain.dim() > 1 else spread(gain, features[0]).view(-1, *[1] * (len(features) - 1))
        of_features = each.expand(features).flatten()
        gain = torch.where(index < 0, 0, of_features[index.clamp(min=0)])
        if by_channel and gain.dim() > 1:  # of a channel all are the same, except those of no place, which are 0
            gain = gain.flatten(1)
            gain = gain.gather(1, gain.abs().argmax(1, keepdim=True)).flatten()
    offset = x.offset
    if offset is not None:
        offset = torch.where(index < 0, 0, offset.flatten()[index.clamp(min=0)]).unsqueeze(0)
    pixels = torch.Size(features[1:]).numel()
    is_real = x.timing is None and not x.is_currents
    if not is_real and len(features) == index.dim() and tuple(index.shape[1:]) == features[1:]:
        rows = index.reshape(len(index), -1)
        channel = rows[:, 0] // pixels
        if torch.equal(rows, channel.unsqueeze(1) * pixels + torch.arange(pixels)):
            y = lowering.moved(
                name, x, gain, channel, len(index), channels=features[0], by_channel=True, axes=len(features) - 1
            )
            y.offset = offset
            return y
    height, width = (1, 1, *index.shape[1:])[-2:]
    size = {"axes": index.dim() - 1, "kernel": (height, width), "channels": torch.Size(features).numel()}
    at = index
    if not is_real:  # neurons are channels-last in memory
        places = torch.arange(torch.Size(features).numel()).view(pixels, features[0]).t().flatten()
        at = torch.where(index < 0, -1, places[index.clamp(min=0)]).movedim(0, -1)
    y = lowering.moved(name, x, gain, at.flatten(), len(index), by_channel=False, **size)
    y.origin, y.offset = (x, index), offset
    return y
