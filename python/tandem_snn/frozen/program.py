"""From a trace to a program: rows of integers for the executor, and a blob with every number they use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tandem_ext import ConstantInput, SpikeTrain, checks

from .. import nn as tnn
from ..nn.currents import NEVER
from .trace import Call, CannotLower, Trace

FIELDS: list[str] = torch.ops.tandem.frozen_fields.default().split()
DIRECT, IMPULSE, PRODUCT, MAX_POOL, FLATTEN, PAD, CURRENTS, READOUT = range(8)
ABSENT, NETWORK_INPUT = -1, -2
OPTIONAL = ("shift", "scale", "residual", "currents", "residual_scale", "v_init", "constants", "state")
CURRENTS_SIZE = 4 * 8  # bytes per neuron and plane
ALIGNMENT = 64


class Blob:
    """Bytes that grow by aligned pieces."""

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []
        self.size = 0

    def put(self, values: Tensor) -> int:
        """Appends the tensor's bytes and returns their offset."""
        offset = self.size
        flat = values.detach().cpu().contiguous().as_strided((values.numel(),), (1,))  # one number may have stride 0
        data = flat.view(torch.uint8)
        padding = -data.numel() % ALIGNMENT
        self._pieces += [data, torch.zeros(padding, dtype=torch.uint8)]
        self.size += data.numel() + padding
        return offset

    def tensor(self) -> Tensor:
        return torch.cat(self._pieces)


class Places:
    """Places in the workspace for values, reused when their last reader is done. In bytes per sample and plane."""

    def __init__(self, last_use: dict[int, int]) -> None:
        self._last_use = last_use
        self._live: dict[int, tuple[int, int]] = {}
        self.size = 0

    def take(self, value: int, size: int, now: int) -> int:
        size += -size % 4  # currents are float32
        self._live = {v: place for v, place in self._live.items() if self._last_use.get(v, now) >= now}
        start = 0
        for begin, length in sorted(self._live.values()):
            if start + size <= begin:
                break
            start = max(start, begin + length)
        self._live[value] = (start, size)
        self.size = max(self.size, start + size)
        return start

    def of(self, value: int) -> int:
        return self._live[value][0]


class Builder:
    """Writes the program of one trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.blob = Blob()
        self.rows: list[list[int]] = []
        self.segments: list[int] = []  # floats per sample of each layer's state
        self.currents: set[int] = set()  # values that are currents
        self.aliases: dict[int, int] = {}  # values that are another value seen differently
        self.places = Places(self._last_uses())
        self.T = 0
        self.streams = True
        self.padding: list[int] = []  # F.pad's, of a real-valued input

    def build(self) -> tuple[Tensor, Tensor]:
        """The program (int64) and its blob (uint8)."""
        calls = self._fused_readout(self.trace.calls)
        for now, call in enumerate(calls):
            self._lower(call, now)
        self.outputs = calls[-1].layer.out_features
        header = [self.T, len(self.rows), self.places.size, sum(self.segments), self.outputs]
        return torch.tensor(header + [word for row in self.rows for word in row]), self.blob.tensor()

    # --- values -------------------------------------------------------------------------------------------------------

    def _last_uses(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for now, call in enumerate(self.trace.calls):
            for value in (call.x, call.residual):
                if value is not None:
                    last[id(value)] = now
        for call in reversed(self.trace.calls):  # a value lives as long as what is only another view of it
            if _is_view(call):
                last[id(call.x)] = max(last.get(id(call.x), 0), last.get(id(call.y), 0))
        return last

    def _value(self, x: Any) -> int:
        key = id(x)
        while key in self.aliases:
            key = self.aliases[key]
        first = self.trace.calls[0].x
        return NETWORK_INPUT if key == id(first) else self.places.of(key)

    def _emit(self, **fields: int) -> None:
        absent = dict.fromkeys(OPTIONAL, ABSENT)
        row = {**dict.fromkeys(FIELDS, 0), **absent, **fields}
        self.rows.append([int(row[name]) for name in FIELDS])

    def _take(self, y: SpikeTrain, now: int) -> int:
        return self.places.take(id(y), y.shape.numel() // y.shape[0], now)

    def _segment(self, size: int) -> int:
        offset = sum(self.segments)
        self.segments.append(size)
        return offset

    # --- layers -------------------------------------------------------------------------------------------------------

    def _lower(self, call: Call, now: int) -> None:
        layer = call.layer
        if isinstance(call.y, SpikeTrain):
            self.T = call.y.T
        if isinstance(layer, tnn.Readout):
            self._readout(call)
        elif _is_view(call):
            if call.y is not call.x:
                self.aliases[id(call.y)] = id(call.x)
        elif isinstance(layer, tnn.SpikingLayer):
            self._neurons(call, now)
        elif isinstance(layer, tnn.AvgPool2d):
            self._avg_pool(call, now)
        elif isinstance(layer, tnn.MaxPool2d):
            self._max_pool(call, now)
        elif isinstance(layer, tnn.Flatten):
            self._flatten(call, now)
        else:
            raise CannotLower(f"{call.name}: {type(layer).__name__} is not the last thing before the Readout")

    def _neurons(self, call: Call, now: int) -> None:
        layer, x, y = call.layer, call.x, call.y
        direct = not isinstance(x, SpikeTrain)
        if not call.fire:
            if direct:
                raise CannotLower(f"{call.name}: currents of a real-valued input that leave a layer")
            self.currents.add(id(y))
            channels = y.shape[2]
            lowered = layer.lowered(x.gain, fire=False)
            self._emit(
                kind=CURRENTS,
                outputs=channels,
                constants=self.blob.put(torch.tensor([NEVER, 1.0])),
                output=self.places.take(id(y), CURRENTS_SIZE * (y[0].numel() // y.shape[1]), now),
                **self._synapses(call, now, lowered.scale, lowered.shift),
            )
            return
        lowered = layer.lowered(x.gain, getattr(call.residual, "gain", 1.0))
        kind = PRODUCT if not direct else DIRECT if isinstance(x, ConstantInput) else IMPULSE
        synapses = self._synapses(call, now, lowered.scale, lowered.shift)
        static = lowered.static
        worth = ABSENT if call.residual is None else self._put(lowered.residual_scale)
        fields = {"kind": kind, "residual_scale": worth, **synapses}
        self._fire(call, now, lowered.v_init, (static.threshold, static.leak), static.gate, **fields)

    def _synapses(self, call: Call, now: int, scale: Tensor | None, shift: Tensor | None) -> dict[str, int]:
        """The fields of a layer's input, geometry, weights and affine map."""
        layer, x = call.layer, call.x
        weight, groups = layer.weight.detach().float(), getattr(layer, "groups", 1)
        spikes = isinstance(x, SpikeTrain)
        geometry, sides = _geometry(x.shape, layer)
        stored = torch.ops.tandem.frozen_pack.default(weight, groups, geometry["dilation_w"]) if spikes else weight
        source = self._value(x) if spikes else NETWORK_INPUT
        if sides:
            source = self._pad(call, now, source, geometry, sides)
        return {
            "input": source,
            "weight": self.blob.put(stored),
            "scale": self._put(scale),
            "shift": self._put(shift),
            "groups": groups,
            **geometry,
        }

    def _pad(self, call: Call, now: int, source: int, geometry: dict[str, int], sides: list[int]) -> int:
        """Makes the image larger at the end of its lines and columns, and gives its new place."""
        x = call.x
        right, below = (*sides, 0, 0)[1:4:2]
        height, width, channels = geometry["height"], geometry["width"], geometry["channels"]
        geometry |= {"height": height + below, "width": width + right}
        if not isinstance(x, SpikeTrain):
            if sum(c.x is x for c in self.trace.calls) > 1:
                raise CannotLower(f"{call.name}: an input that several layers read, and that this one pads")
            self.padding = sides
            return source
        padded = self.places.take(-now, (height + below) * (width + right) * channels, now)
        self._emit(
            kind=PAD, input=source, output=padded, height=height, width=width, channels=channels, padding_h=below,
            padding_w=right,
        )  # fmt: skip
        return padded

    def _fire(
        self, call: Call, now: int, v_init: Tensor | None, constants: tuple[float, float], gate: str, **fields: int
    ) -> None:
        """Emits a layer with neurons; the constants are their threshold and leak."""
        y = call.y
        if v_init is not None and v_init.dim():
            v_init = v_init.expand(y.shape[1:]).movedim(0, -1)
        self.streams &= gate != "resu"
        features = y.shape.numel() // y.shape[0]
        self._emit(
            **fields,
            outputs=y.shape[1],
            **self._residual(call),
            v_init=self._put(v_init),
            v_init_size=1 if v_init is None else v_init.numel(),
            constants=self.blob.put(torch.tensor(constants)),
            gate=checks.GATES.index(gate),
            state=self._segment(features),
            output=self._take(y, now),
        )

    def _residual(self, call: Call) -> dict[str, int]:
        residual = call.residual
        if residual is None:
            return {}
        if isinstance(residual, SpikeTrain):
            return {"residual": self._value(residual)}
        if id(residual) not in self.currents:
            raise CannotLower(f"{call.name}: a residual that no layer's synapses gave")
        return {"currents": self._value(residual)}

    def _avg_pool(self, call: Call, now: int) -> None:
        layer, x = call.layer, call.x
        channels = x.shape[1]
        weight = layer.weight.detach().float().expand(channels, 1, *layer.kernel_size)
        packed = torch.ops.tandem.frozen_pack.default(weight, channels, 1)
        self._fire(
            call,
            now,
            torch.tensor(layer.v_init) if layer.v_init else None,
            (1.0, 1.0),
            "relu",
            kind=PRODUCT,
            input=self._value(x),
            weight=self.blob.put(packed),
            groups=channels,
            channels=channels,
            **_image(x.shape),
            **_window(layer.kernel_size, layer.stride, layer.padding, (1, 1)),
        )

    def _max_pool(self, call: Call, now: int) -> None:
        layer, x, y = call.layer, call.x, call.y
        self._emit(
            kind=MAX_POOL,
            input=self._value(x),
            outputs=y.shape[2] * y.shape[3],
            groups=y.shape[3],
            channels=x.shape[1],
            output=self._take(y, now),
            **_image(x.shape),
            **_window(layer.kernel_size, layer.stride, layer.padding, layer.dilation),
        )

    def _flatten(self, call: Call, now: int) -> None:
        x, y = call.x, call.y
        if len(y.shape) != 2:
            raise CannotLower(f"{call.name}: only a Flatten of all features is part of a program")
        height, width = _spatial(x.shape)
        self._emit(
            kind=FLATTEN,
            input=self._value(x),
            channels=x.shape[1],
            height=height,
            width=width,
            output=self._take(y, now),
        )

    def _fused_readout(self, calls: list[Call]) -> list[Call]:
        """Averages right before the Readout are part of it: [..., pool, (flatten), readout] -> [..., readout]."""
        self.pool: Call | None = None
        for i, call in enumerate(calls):
            averages = isinstance(call.layer, tnn.AdaptiveAvgPool2d) or (
                isinstance(call.layer, tnn.AvgPool2d) and not call.layer.spiking
            )
            if averages and isinstance(call.x, SpikeTrain):
                rest = [c for c in calls[i + 1 : -1] if not isinstance(c.layer, tnn.Dropout)]
                if any(not isinstance(c.layer, tnn.Flatten) for c in rest):
                    raise CannotLower(f"{call.name}: the mean counts are not the last thing before the Readout")
                self.pool = call
                return [*calls[:i], calls[-1]]
        return calls

    def _readout(self, call: Call) -> None:
        layer = call.layer
        x = call.x if self.pool is None else self.pool.x
        if not isinstance(x, SpikeTrain):
            raise CannotLower(f"{call.name}: its input is not spikes")
        weight = layer.weight.detach().float()
        window: dict[str, int] = {}
        if self.pool is not None:
            pool = self.pool.layer
            if isinstance(pool, tnn.AvgPool2d):
                window = _window(pool.kernel_size, pool.stride, pool.padding, (1, 1))
            else:
                window = _window(tuple(self.pool.y.shape[2:]), (0, 0), (0, 0), (1, 1))
        height, width = _spatial(x.shape)
        features = x.shape.numel() // x.shape[0]
        self._emit(
            kind=READOUT,
            input=self._value(x),
            channels=x.shape[1],
            height=height,
            width=width,
            outputs=layer.out_features,
            weight=self.blob.put(weight),
            shift=self._put(None if layer.bias is None else layer.bias.float()),
            constants=self.blob.put(torch.tensor([float(x.gain)])),
            state=self._segment(features),
            **window,
        )

    def _put(self, values: Tensor | None) -> int:
        return ABSENT if values is None else self.blob.put(values.detach().float())


def _is_view(call: Call) -> bool:
    """Does the layer return its input's very planes?"""
    if isinstance(call.layer, tnn.Dropout | tnn.Encoder):  # an Encoder that returns spikes was given them
        return True
    return isinstance(call.layer, tnn.Flatten) and isinstance(call.x, SpikeTrain) and len(call.x.shape) <= 2


def _spatial(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of [B, C], [B, C, L] or [B, C, H, W]."""
    if len(shape) > 4:
        raise CannotLower(f"signals of shape {list(shape)}")
    height, width = (1, 1, *shape[2:])[-2:]
    return height, width


def _image(shape: Sequence[int]) -> dict[str, int]:
    height, width = _spatial(shape)
    return {"height": height, "width": width}


def _window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> dict[str, int]:
    names = ("kernel", kernel), ("stride", stride), ("padding", padding), ("dilation", dilation)
    neutral = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
    fields: dict[str, int] = {}
    for name, values in names:
        h, w = values if len(values) == 2 else (neutral[name], values[0])
        fields |= {f"{name}_h": h, f"{name}_w": w}
    return fields


def _geometry(shape: Sequence[int], layer: Any) -> tuple[dict[str, int], list[int]]:
    """The input image and the kernel, and the padding (F.pad's) that the image needs beforehand, empty as a rule.

    A linear map is a 1 x 1 convolution of a 1 x 1 image.
    """
    fields = {"channels": shape[1], **_image(shape)}
    if isinstance(layer, tnn.Linear):
        return fields | _window((1, 1), (1, 1), (0, 0), (1, 1)), []
    product = layer.synapses()
    return fields | _window(layer.kernel_size, product.stride, product.padding, product.dilation), list(product.sides)
