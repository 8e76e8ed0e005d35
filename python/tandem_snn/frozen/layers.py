"""Lower the layers of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tandem_ext.functional.attention import mean_gain
from tandem_ext.functional.neuron import fold, started, tensors_of
from tandem_ext.ops import compute_dtype

from .. import nn as tnn
from ..nn.batch_norm import fold_norm
from ..nn.hooks import READOUTS
from ..nn.passing import LEVELS
from .functions import before_moves, rearranged
from .instruction import INPUT, CannotLower
from .trace import LAYERS, MOVES, Value
from .weights import geometry_of, is_by_channel, pair, weighted, weights_of

if TYPE_CHECKING:
    from .lowering import Lowering

PASSING = (  # in evaluation; a class of the user's may do more
    *(nn.Identity, tnn.Dropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
Terms = tuple[Any, Any, Any, Any, Any, int, Tensor]  # of fold, between threshold and unit


def apply_layer(lowering: Lowering, name: str, layer: Any, x: Value, residual: Value | None = None) -> Value:
    """Append what a layer does; return the value of its result."""
    if type(layer) in PASSING:
        return x
    if type(layer) is tnn.Encoder:
        if x.source is None:
            raise CannotLower(name, "an Encoder after a layer is not supported")
        mode, shape = layer.mode, () if lowering.shapes is None else lowering.shapes[x.source]
        if (lowering.modes[x.source] or mode, lowering.T or layer.T) != (mode, layer.T):
            raise CannotLower(name, "a second Encoder, of another mode or T")
        lowering.modes[x.source], lowering.T = mode, layer.T
        if mode == "pixels":
            if x.number >= len(lowering.inputs) - 1:
                raise CannotLower(name, "it reads pixels that were moved or pooled: put it before that")
            if layer.needs_shape and not shape:
                raise CannotLower(name, "mean and std are those of a known number of channels: give freeze an example")
            y = Value(x.number, "step", layer.signal_gain(shape), owner=lowering)
            y.own_T, y.offset = LEVELS, layer.offset(shape)
            return lowering.converted(name, y, "window")
        timing, gain = (x.timing or "step", x.gain) if mode == "events" else (x.timing, layer.signal_gain())
        return Value(x.number, timing, gain, x.source, owner=lowering)
    if type(layer) is tnn.Flatten and x.pending:
        return rearranged(lowering, name, "flatten", True, x, layer.start_dim, layer.end_dim)
    some = type(layer) is tnn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1)
    if some and (x.timing is not None or x.is_numbers):
        dims = len(lowering.features_of(name, x))
        if (layer.start_dim % (dims + 1), layer.end_dim % (dims + 1)) != (1, dims):
            return rearranged(lowering, name, "flatten", True, x, layer.start_dim, layer.end_dim)
    if type(layer) is tnn.Permute:
        return rearranged(lowering, name, "permute", layer.dims[1:2] == (1,), x, layer.dims)
    if type(layer) is tnn.Attention:
        return _attention(lowering, name, layer, x)
    if type(layer) in MOVES:
        return _move(lowering, name, layer, x)
    if type(layer) in LAYERS:
        return _layer(lowering, name, layer, x, residual)
    if type(layer) in READOUTS:
        return _readout(lowering, name, layer, x)
    raise CannotLower(name, f"{type(layer).__name__} is not a layer of tandem_snn.nn")


def _attention(lowering: Lowering, name: str, layer: tnn.Attention, x: Value) -> Value:
    if x.timing != "window" or x.is_currents or is_by_channel(x.gain) or x.offset is not None:
        raise CannotLower(name, 'attention reads a train with timing "window", one gain and no offset')
    features = lowering.only_features_of(name, x)
    if len(features) != 2 or features[1] % 3:
        raise CannotLower(name, f"attention reads q, k and v of tokens, [B, N, 3·D], got [B, *{list(features)}]")
    tokens, channels = features
    gain = x.gain * x.gain * x.gain * mean_gain(tokens, channels // 3 // layer.heads)
    fields = {"axes": 1, "outputs": channels // 3, "groups": layer.heads, "gain": float(gain), "own_T": x.own_T or 0}
    x = rearranged(lowering, name, "movedim", False, x, -1, 1)
    u = lowering.currents(name, "attention", x, channels // 3, fields)
    return rearranged(lowering, name, "movedim", False, u, 1, -1)


def _move(lowering: Lowering, name: str, layer: Any, x: Value) -> Value:
    x = x if isinstance(layer, tnn.Flatten) else lowering.real(x)
    if isinstance(layer, tnn.Upsample):
        return _upsample(lowering, name, layer, x)
    if isinstance(layer, tnn.AdaptiveMaxPool2d):
        pool = layer.pool(lowering.only_features_of(name, x)[1:])
        return _move(lowering, name, pool, rearranged(lowering, name, layer.arranged, True, x))
    if x.is_currents:
        return _move_currents(lowering, name, layer, x)
    means = isinstance(layer, tnn.AdaptiveAvgPool2d) or (isinstance(layer, tnn.AvgPool2d) and not layer.spiking)
    if means and x.source is not None and lowering.modes[x.source] not in (None, "events"):
        raise CannotLower(name, "it averages the input, so nothing in the network spikes")
    gain, read = x.gain, x
    tensors, fields = dict[str, Any](), dict[str, Any]()
    kind, geometry = _pooling(name, layer, means)
    gain = gain.flatten() if isinstance(gain, Tensor) and gain.dim() and kind == "flatten" else gain
    fields = geometry if kind == "flatten" else fields | geometry
    if kind == "average":
        read = lowering.converted(name, x, layer.timing)
        tensors["v_init"] = torch.tensor(layer.initial_potential)
        fields |= {"threshold": float(layer.threshold), "timing": layer.timing, "own_T": read.own_T or 0}
    y = lowering.add(name, kind, read, None if means else read.timing, gain, tensors, **fields)
    y.source, y.channels = x.source, None if kind == "flatten" else x.channels
    y.offset = None if x.offset is None else layer(x.offset)
    return y


def _move_currents(lowering: Lowering, name: str, layer: Any, x: Value) -> Value:
    kind, fields = _pooling(name, layer, True)
    if kind == "max_pool" and x.timing != "window":
        kept = "the growth of the largest sum so far, which a program does not keep"
        raise CannotLower(name, f'the maximum of the currents of steps is {kept}: use timing="window"')
    return lowering.currents(name, kind, x, None if kind == "flatten" else x.channels, fields)


def _upsample(lowering: Lowering, name: str, layer: tnn.Upsample, x: Value) -> Value:
    if layer.mode != "bilinear":
        return rearranged(lowering, name, layer, True, x)
    features = (lowering.features_of if layer.size else lowering.only_features_of)(name, x)
    size = tuple(layer(torch.empty(1, *features)).shape[2:])
    factors = _both(layer.scale_factor or 1)
    if layer.size is None and size != tuple(f * n for f, n in zip(factors, features[1:], strict=True)):
        raise CannotLower(name, f"scale_factor: expected one that gives whole sizes, got {factors}")
    fields = {"kernel": size, "ceil": bool(layer.align_corners)}
    if x.timing is None and not x.is_currents:
        y = lowering.add(name, "upsample", x, None, x.gain, {}, **fields)
        y.source, y.channels = x.source, features[0]
        return y
    x = lowering.affine(name, x, None, None)
    x = x if x.is_currents else lowering.currents(name, "sum", x, features[0], {"outputs": features[0]})
    return lowering.currents(name, "upsample", x, features[0], fields)


def _layer(lowering: Lowering, name: str, layer: Any, x: Value, residual: Value | None) -> Value:
    if layer.neurons and layer.threshold is None and layer.T is None:
        lowering.T = lowering.T or lowering.default_T
    if isinstance(layer, tnn.Neurons):
        settings = layer.norm, layer.threshold, layer.v_init, layer.gain
        alike = all(value is None or isinstance(value, float) for value in settings)
        if alike and (moved := before_moves(lowering, name, x)) is not None:
            (x,), again = moved
            y = _layer(lowering, name, layer, x, None)
            return _seen(lowering, y, again(y))
        if not x.is_currents:
            x = lowering.affine(name, lowering.converted(name, x, layer.timing), None, None)
        return _neurons(lowering, name, layer, lowering.converted(name, x, layer.timing), None)
    if isinstance(layer, tnn.Linear) and _has_tokens(lowering, name, x):
        x = rearranged(lowering, name, "movedim", True, x, -1, 1)
        if residual is not None:
            residual = rearranged(lowering, name, "movedim", True, residual, -1, 1)
        y = _connected(lowering, name, layer, x, residual, len(lowering.features_of(name, x)) - 1)
        return _seen(lowering, y, rearranged(lowering, name, "movedim", False, y, 1, -1))
    synapses = layer.synapses()
    if layer.arranges or synapses.spacing:
        x = rearranged(lowering, name, layer.arranged if layer.arranges else synapses.padded, True, x)
    return _connected(lowering, name, layer, x, residual)


def _seen(lowering: Lowering, y: Value, moved: Value) -> Value:
    """Note in the stage that made y that its layer returns it moved; return what was moved."""
    if moved is not y and moved.origin is not None:
        lowering.list[y.number].seen = moved.origin[1]
    return moved


def _readout(lowering: Lowering, name: str, layer: Any, x: Value) -> Value:
    if x.is_currents and x.timing != "window":
        raise CannotLower(name, 'a readout of the currents of steps: put tnn.Neurons before it, or timing="window"')
    tokens = isinstance(layer, tnn.Readout) and _has_tokens(lowering, name, x)
    axes = len(lowering.features_of(name, x)) - 1 if tokens else 0
    x = rearranged(lowering, name, "movedim", True, lowering.real(x), -1, 1) if tokens else x
    weight, gain = weighted(layer, x, axes)
    tensors = weights_of(layer, weight) | {"shift": layer.bias}
    if x.offset is not None:
        scale, shift = fold(None, layer.bias, None, None, tensors["step"], gain, len(weight), weight)
        constant = _of_offset(lowering, layer, x, tensors["weight"])
        tensors["shift"] = started(shift, scale, constant, compute_dtype(layer.weight.dtype)).flatten()
        if len(tensors["shift"]) > len(weight):
            raise CannotLower(name, "an answer with another constant at each pixel: put a layer before it")
    fields = {"gain": float(gain), "timing": "window" if x.is_currents else "step", **geometry_of(layer, weight)}
    y = lowering.add(name, "readout", x, None, 1.0, tensors, **fields)
    y.channels = len(weight)
    return rearranged(lowering, name, "movedim", False, y, 1, -1) if tokens else y


def _has_tokens(lowering: Lowering, name: str, x: Value) -> bool:
    i = None if x.number == INPUT else lowering.list[x.number].instruction
    if i is not None and (i.kind == "flatten" or (i.kind == "layer" and i.axes == 0)):
        return False
    lowering.sized, lowering.unsized = True, lowering.unsized or lowering.shapes is None
    return lowering.shapes is not None and len(lowering.features_of(name, x)) > 1


def _connected(lowering: Lowering, name: str, layer: Any, x: Value, residual: Value | None, axes: int = 0) -> Value:
    """Append the product of a layer and its neurons, for an input as the product takes it; axes of its tokens."""
    weight, gain = weighted(layer, x, axes)
    tensors, geometry = weights_of(layer, weight), geometry_of(layer, weight)
    x = lowering.converted(name, x, layer.timing)
    without = {"fires": False, "timing": layer.timing}
    folded = (layer.bias, *fold_norm(layer.norm), tensors["step"], gain, len(weight), weight)
    if layer.neurons and x.is_currents:
        if residual is not None:
            raise CannotLower(name, "a residual of a layer that reads currents: add it by +")
        bare = lowering.currents(name, "layer", x, len(weight), without | geometry, **tensors)
        return _neurons(lowering, name, layer, bare, tensors["step"])
    constant = None if x.offset is None else _of_offset(lowering, layer, x, tensors["weight"])
    if not layer.neurons and constant is not None:
        u = lowering.currents(name, "layer", x, len(weight), without | geometry, **tensors)
        return lowering.affine(name, lowering.constant(name, u, constant, False), *fold(None, *folded))
    if not layer.neurons:
        tensors["scale"], tensors["shift"] = fold(None, *folded)
        return lowering.currents(name, "layer", x, len(weight), without | geometry, **tensors)
    fields, own, theta, unit = _of_neurons(lowering, layer, weight, weight.dim() - 2, folded)
    fields, tensors = fields | geometry, tensors | own
    if constant is not None:
        tensors["v_init"] = started(own["v_init"], own["scale"], constant, compute_dtype(layer.weight.dtype))
    if residual is not None:
        residual = residual if residual.offset is None else lowering.affine(name, residual, None, None)
        worth = residual.gain
        if isinstance(worth, Tensor) and worth.dim():  # a channel may have become several features
            worth = worth.repeat_interleave(len(weight) // len(worth))
        scale, _ = fold(theta, None, None, None, None, worth, len(weight), weight, unit)
        residual, tensors["residual_scale"] = lowering.converted(name, residual, layer.timing), scale
        fields["residual"] = residual.number
    y = lowering.add(name, "layer", x, layer.timing, layer.spike_value(lowering.T), tensors, **fields)
    y.channels = len(weight)
    return y


def _neurons(lowering: Lowering, name: str, layer: Any, u: Value, step: Tensor | None) -> Value:
    """Append the neurons of a layer, for currents without its bias, batch norm and the step of its weights."""
    channels = lowering.channels_of(name, u)
    like = torch.empty(channels) if layer.weight is None else layer.kernel_of(layer.weight)
    terms = layer.bias, *fold_norm(layer.norm), step, 1.0, channels, like
    fields, tensors, *_ = _of_neurons(lowering, layer, like, 2, terms)
    if (start := tensors["v_init"]) is not None and start.dim():
        tensors["v_init"] = start.flatten() if start.numel() == channels else start  # of each, with any number of axes
        fields["axes"] = tensors["v_init"].dim() - 1
    fields["outputs"] = channels
    y = lowering.add(name, "neurons", u, layer.timing, layer.spike_value(lowering.T), tensors, **fields)
    y.channels = channels
    return y


def _of_offset(lowering: Lowering, layer: Any, x: Value, weight: Tensor) -> Tensor:
    """Return what the offset of a train adds to its product, [1, N, *space]; sizes of 1 where all are the same."""
    product = layer.synapses(weight.dim() - 2)
    product = product._replace(sides=(), spacing=()) if product.spacing else product  # x has them
    constant = product.of_offset(x.offset, weight)
    one = constant if constant.dim() == 2 else constant.flatten(2)[..., :1].view(1, -1, *[1] * (constant.dim() - 2))
    if bool((constant == one).all()):
        return one
    lowering.fixed = True
    return constant


def _of_neurons(lowering: Lowering, layer: Any, like: Tensor, axes: int, terms: Terms) -> tuple[Any, Any, Any, Any]:
    """Return the fields and the tensors of the neurons of a layer, and its threshold and unit as ``fold`` has them."""
    given = layer.v_init.shape if isinstance(layer.v_init, Tensor) and layer.v_init.dim() > 1 else ()
    shape = (1, *(given or (len(like), *[1] * axes)))
    start, threshold, unit = layer.initial_potential, layer.fires_at, layer.unit(lowering.T)
    start = start if isinstance(start, Tensor) or start != 0 else None
    made = tensors_of(like, 1, shape, None, threshold, start, layer.timing)
    scale, shift = fold(made.theta, *terms, unit)
    fields = {"threshold": 1.0 if isinstance(threshold, Tensor) else float(threshold), "leak": float(layer.leak)}
    fields |= {"timing": layer.timing, "own_T": 0 if layer.T in (None, lowering.T) else layer.T}
    return fields, {"scale": scale, "shift": shift, "v_init": made.v_init}, made.theta, unit


def _both(value: Any) -> Any:
    return value if isinstance(value, tuple) else (value, value)


def _pooling(name: str, layer: Any, means: bool) -> tuple[str, dict[str, Any]]:
    """Return the kind of a layer that moves or pools, and its fields."""
    if isinstance(layer, tnn.Flatten):
        return "flatten", {"first": layer.start_dim, "last": layer.end_dim}
    if isinstance(layer, tnn.AdaptiveAvgPool2d):
        size = _both(layer.output_size)
        if None in size:
            raise CannotLower(name, f"output_size: expected two sizes, got {size}")
        return "adaptive_mean", {"kernel": pair(size, 1)}
    neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    fields: dict[str, Any] = {name: pair(getattr(layer, name), one) for name, one in neutral.items()}
    fields |= {"kernel": fields.pop("kernel_size"), "axes": layer.axes}
    if isinstance(layer, tnn.AvgPool2d):
        return "mean" if means else "average", fields
    return "max_pool", fields | {"ceil": layer.ceil_mode}
