"""Lower a network to a list of stages; round it to few bits."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tandem_ext import SpikeTrain
from tandem_ext._torch import remove_weight_hooks
from tandem_ext.functional.attention import mean_gain
from tandem_ext.functional.neuron import Tensors, fold, tensors_of

from .. import nn as tnn
from ..nn.batch_norm import fold_norm
from ..nn.hooks import READOUTS
from ..nn.maximum import MaxPool
from ..nn.passing import LEVELS, PIXELS
from ..nn.signals import inputs_of
from .answers import named, numbered
from .functions import apply_function, before_moves, check_times, each_feature, joined, rearranged, spread
from .instruction import ABSENT, CONVERSIONS, INPUT, CannotLower, Instruction
from .stages import MODES, Stage, Stages
from .trace import LAYERS, LEAVES, MOVES, Value, trace
from .weights import geometry_of, is_by_channel, pair, weighted, weights_of

_Gain = float | Tensor


@torch.no_grad()
def lower(
    net: nn.Module, gains: Sequence[_Gain] = (), T: int | None = None, shapes: Sequence[tuple[int, ...]] | None = None
) -> Stages:
    """Return the evaluation of ``net`` as stages, for gains of its inputs; raise CannotLower if that is impossible.

    T is the number of time steps of a network without Encoder, for the default thresholds of its layers; ``shapes`` are
    those of a sample of each input, which layers that move features need. Gains that are not given are 1.
    """
    if not isinstance(net, Stages):
        return Lowering(net, gains, T, shapes).stages()
    if any(torch.as_tensor(gain).ne(1).any() for gain in gains):
        raise ValueError(
            f"x: the gain of its spikes is {gains[0]}, but a network from a file was saved for a gain of 1"
        )
    return net


def snapshot(net: nn.Module) -> nn.Module:
    """Copy a network in evaluation mode; pruning, weight norm and other parametrisations become plain weights."""
    values = [value for module in net.modules() for value in vars(module).values()]
    # deepcopy does not support tensors that are not leaves
    memo = {id(v): v.detach().clone() for v in values if isinstance(v, Tensor) and not v.is_leaf}
    net = copy.deepcopy(net, memo).eval().requires_grad_(False)
    for module in net.modules():
        remove_weight_hooks(module)
        if parametrize.is_parametrized(module):  # remove_parametrizations would change the class shared with net
            parametrizations: Any = module.parametrizations
            made = {name: nn.Parameter(getattr(module, name)) for name in parametrizations}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in made.items():
                module.register_parameter(name, value)
    return net.requires_grad_(False)


class Lowering:
    """Makes the stages of a network while its layers are called with values."""

    def __init__(
        self, net: nn.Module, gains: Sequence[_Gain], T: int | None, shapes: Sequence[tuple[int, ...]] | None
    ) -> None:
        self.net = nn.Sequential(net) if isinstance(net, LEAVES) else net
        self.list: list[Stage] = []
        self.inputs = inputs_of(net) or ["x"]
        self.gains = [*gains, *[1.0] * (len(self.inputs) - len(gains))]
        self.modes: list[str | None] = [None] * len(self.inputs)
        self.T: int | None = None  # None: any
        self.default_T = T
        self.shapes = shapes
        self.values: dict[int, Any] = {}  # of a sample of zeros, by number
        self.sized = self.unsized = False  # see Stages
        self.joins: dict[tuple[int, int], Value] = {}  # by the numbers of two values that were joined

    def stages(self) -> Stages:
        timing: str | None = "step"
        for name, layer in self.net.named_modules():
            _refuse_max_pool(name, layer)
            timing = None if isinstance(layer, tnn.Encoder) and layer.mode != "events" else timing
        inputs = [Value(INPUT, timing, self.gains[0], source=0, owner=self)]
        for k, name in enumerate(self.inputs[1:], 1):
            self.list.append(Stage(name, Instruction("input", INPUT)))
            inputs.append(Value(k - 1, timing, self.gains[k], source=k, owner=self))
        answer = trace(self.net, inputs, self.call, partial(apply_function, self))
        answers = dict(named(answer))
        for path, value in answers.items():
            if not isinstance(value, Value) or value.number < len(self.inputs) - 1 or value.pending:
                raise CannotLower("net", f"its output {path!r} is not that of a Readout".replace(" ''", ""))
            value = answers[path] = self.real(value)
            if path:
                answers[path] = self._add(path, "output", value, None, 1.0, {})
        self._set_modes()
        stages = Stages(self._read(answers), self.modes[0] or "events", self.T, numbered(answer, count()))
        fired = (self.list[value.number].name for _, value in named(answer) if value.timing is not None)
        stages.fired = next(fired, None)
        moves = (stage.instruction for stage in self.list if stage.instruction.kind == "gather")
        stages.sized, stages.unsized = self.sized or any(not i.by_channel for i in moves), self.unsized
        return stages

    def _read(self, answers: dict[str, Value]) -> list[Stage]:
        """Return the stages that are read. Others are layers without readers, and a move whose way back came next."""
        read = {*range(len(self.inputs) - 1), *(value.number for value in answers.values())}
        for number in reversed(range(len(self.list))):
            if number in read:
                read |= {self.list[number].instruction.input, self.list[number].instruction.residual}
        numbers = {number: n for n, number in enumerate(sorted(n for n in read if n >= 0))}
        for number in numbers:
            i = self.list[number].instruction
            places = {name: numbers.get(getattr(i, name), getattr(i, name)) for name in ("input", "residual")}
            self.list[number].instruction = replace(i, **places)
        return [self.list[number] for number in numbers]

    def _set_modes(self) -> None:
        for k, mode in enumerate(self.modes[1:], 1):
            self.list[k - 1].instruction = Instruction("input", INPUT, first=MODES.index(mode or "events"))

    def call(self, name: str, layer: Any, x: Value, residual: Value | None = None) -> Value:
        """Append what a layer does; return the value of its result."""
        if type(layer) in (tnn.Dropout, nn.Identity):
            return x
        if type(layer) is tnn.Encoder:
            if x.source is None:
                raise CannotLower(name, "an Encoder after a layer is not supported")
            mode, shape = layer.program_mode, () if self.shapes is None else self.shapes[x.source]
            if (self.modes[x.source] or mode, self.T or layer.T) != (mode, layer.T):
                raise CannotLower(name, "a second Encoder, of another mode or T")
            self.modes[x.source], self.T = mode, layer.T
            if layer.mode == "pixels":
                if layer.is_by_channel and not shape:
                    raise CannotLower(name, "its gains depend on the number of channels: give freeze an example")
                y = Value(x.number, "step", layer.signal_gain(shape), owner=self)
                y.own_T, y.centred = LEVELS, layer.mean is not None
                return self.converted(name, y, "window")
            timing, gain = (x.timing or "step", x.gain) if mode == "events" else (x.timing, layer.signal_gain())
            return Value(x.number, timing, gain, x.source, owner=self)
        if type(layer) is tnn.Flatten and x.pending:
            return rearranged(self, name, "flatten", True, x, layer.start_dim, layer.end_dim)
        some = type(layer) is tnn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1)
        if some and (x.timing is not None or x.is_numbers):
            dims = len(self.features_of(name, x))
            if (layer.start_dim % (dims + 1), layer.end_dim % (dims + 1)) != (1, dims):
                return rearranged(self, name, "flatten", True, x, layer.start_dim, layer.end_dim)
        if type(layer) is tnn.Permute:
            return rearranged(self, name, "permute", False, x, layer.dims)
        if type(layer) is tnn.Attention:
            return self._attention(name, layer, x)
        if type(layer) in MOVES:
            return self._move(name, layer, x)
        if type(layer) in LAYERS:
            return self._layer(name, layer, x, residual)
        if type(layer) in READOUTS:
            return self._readout(name, layer, x)
        raise CannotLower(name, f"{type(layer).__name__} is not a layer of tandem_snn.nn")

    def _add(
        self, name: str, kind: str, x: Value, result: str | None, worth: _Gain, tensors: dict[str, Any], **fields: Any
    ) -> Value:
        """Append an instruction that reads x; the result has this timing, None for numbers, and gain."""
        tensors = {key: None if tensor is None else tensor.detach() for key, tensor in tensors.items()}
        self.list.append(Stage(name, Instruction(kind, x.number, **fields), **tensors))
        y = Value(len(self.list) - 1, result, worth, owner=self)
        y.own_T = fields["own_T"] or None if "own_T" in fields else x.own_T
        y.centred = x.centred and kind in ("popcount", "flatten", "max_pool", "average")
        return y

    def currents(self, name: str, kind: str, x: Value, channels: int | None, fields: Any, **tensors: Any) -> Value:
        """Append an instruction that makes currents, by default with the timing of x."""
        fields = {"timing": x.timing, **fields}
        u = self._add(name, kind, x, fields["timing"], 1.0, tensors, **fields)
        u.is_currents, u.channels, u.own_T = True, channels, None
        return u

    def numbers(self, name: str, x: Value, other: Value | None = None, **tensors: Tensor | None) -> Value:
        """Append a sum of numbers, with a scale or a shift of each channel."""
        channels, x = self.channels_of(name, x), self.real(x)
        fields = {"residual": ABSENT if other is None else self.real(other).number, "outputs": channels}
        each: Any = {key: None if t is None else t.expand(channels).contiguous() for key, t in tensors.items()}
        y = self._add(name, "sum", x, None, 1.0, each, **fields)
        y.channels = channels
        return y

    def sum(self, name: str, a: Value, b: Value) -> Value:
        if a.is_numbers and b.is_numbers:
            return self.numbers(name, a, b)
        check_times(name, a, b)
        if (moved := before_moves(self, name, a, b)) is not None:
            (a, b), again = moved
            return again(self.sum(name, a, b))
        timing = (a if a.is_currents else b).timing
        a, b = (value if value.is_currents else self.converted(name, value, str(timing)) for value in (a, b))
        if a.timing != b.timing:
            raise CannotLower(name, "timing: it adds currents of different timings")
        channels = self.channels_of(name, a)
        gains = {"scale": _spread(a.gain, channels), "residual_scale": _spread(b.gain, channels)}
        return self.currents(name, "sum", a, channels, {"residual": b.number, "outputs": channels}, **gains)

    def join(self, name: str, values: list[Value], dim: int) -> Value:
        if dim != 1:
            raise CannotLower(name, f"it joins values along dimension {dim}, not along the channels")
        return joined(self, name, values)

    def affine(self, name: str, x: Value, scale: Tensor | None, shift: Tensor | None) -> Value:
        """Append scale * x + shift, where the gain of a train is multiplied first."""
        if x.is_numbers:
            return self.numbers(name, x, scale=scale, shift=shift)
        check_times(name, x)
        channels = self.channels_of(name, x)
        fields = {"outputs": channels}
        if not x.is_currents and (is_by_channel(x.gain) or float(x.gain) != 1.0):
            x = self.currents(name, "sum", x, channels, fields, scale=_spread(x.gain, channels))
        if x.is_currents and scale is None and shift is None:
            return x
        each = [None if t is None else t.expand(channels).contiguous() for t in (scale, shift)]
        return self.currents(name, "sum", x, channels, fields, scale=each[0], shift=each[1])

    def constant(self, name: str, x: Value, value: Any, scales: bool) -> Value:
        """Append x times or plus a constant that broadcasts with one sample."""
        value = torch.as_tensor(value, dtype=torch.float32).detach()
        features = self.features_of(name, x) if value.numel() > 1 else ()
        at = value.dim() - len(features)
        if value.numel() > 1 and (at < 0 or value.numel() != value.shape[at]):  # not one for each channel
            each = value.expand(1, *features).flatten()
            return each_feature(self, name, x, lambda u: self.constant(name, u, each, scales))
        return self.affine(name, x, *((value.flatten(), None) if scales else (None, value.flatten())))

    def moved(self, name: str, x: Value, gain: _Gain, index: Tensor | None, outputs: int, **fields: Any) -> Value:
        """Append a gather."""
        tensors = {"index": None if index is None else index.int()}
        fields |= {"outputs": outputs, "timing": x.timing or "step"}
        y = self._add(name, "gather", x, x.timing, gain, tensors, **fields)
        y.is_currents, y.channels, y.source = x.is_currents, outputs, x.source
        return y

    def features_of(self, name: str, x: Value) -> tuple[int, ...]:
        """Return the shape of a value of one sample, by running the stages so far."""
        if self.shapes is None:
            raise CannotLower(name, "it depends on the size of the input: give freeze an example")
        if x.number < len(self.inputs) - 1:
            k = 0 if x.number == INPUT else x.number + 1
            return (self.shapes[k][0] * (1 + x.centred), *self.shapes[k][1:])
        if x.number not in self.values:
            self._set_modes()
            T = self.T or self.default_T or 1
            so_far = Stages(self.list[: x.number + 1], self.modes[0] or "events", T)
            zeros = [torch.zeros((T + 7) // 8, 1, *shape, dtype=torch.uint8) for shape in self.shapes]
            given = [
                SpikeTrain(x, T) if mode == "events" else x[0] if mode in PIXELS else x[0].to(so_far.dtype)
                for x, mode in zip(zeros, so_far.modes, strict=True)
            ]
            list(so_far.run(given, self.values))
        return tuple(self.values[x.number].shape[1:])

    def channels_of(self, name: str, x: Value) -> int:
        return self.features_of(name, x)[0] if x.channels is None else x.channels

    def converted(self, name: str, x: Value, timing: str) -> Value:
        """Return a value for a reader with this timing: a train of the other timing is first converted, once."""
        if x.timing in (None, timing):
            return x
        if x.is_currents:
            raise CannotLower(name, f'its timing is "{timing}", but it reads currents with timing "{x.timing}"')
        if timing == "step" and x.own_T is not None:
            raise CannotLower(name, f"it reads step by step the spikes of a layer with its own T={x.own_T}")
        if x.converted is None:
            kind = next(kind for kind, other in CONVERSIONS.items() if other == timing)
            x.converted = self._add(name, kind, x, timing, x.gain, {})
        return x.converted

    def _attention(self, name: str, layer: tnn.Attention, x: Value) -> Value:
        if x.timing != "window" or x.is_currents or is_by_channel(x.gain):
            raise CannotLower(name, 'attention reads a train with timing "window" and one gain')
        tokens, channels = self.features_of(name, x)
        gain = x.gain * x.gain * x.gain * mean_gain(tokens, channels // 3 // layer.heads)
        fields = {
            "axes": 1,
            "outputs": channels // 3,
            "groups": layer.heads,
            "gain": float(gain),
            "own_T": x.own_T or 0,
        }
        self.sized = True
        x = rearranged(self, name, "movedim", False, x, -1, 1)
        u = self.currents(name, "attention", x, channels // 3, fields)
        return rearranged(self, name, "movedim", False, u, 1, -1)

    def _upsample(self, name: str, layer: tnn.Upsample, x: Value) -> Value:
        if layer.mode != "bilinear":
            return rearranged(self, name, layer, True, x)
        features = self.features_of(name, x)
        size = tuple(layer(torch.empty(1, *features)).shape[2:])
        factors = _both(layer.scale_factor or 1)
        if layer.size is None and size != tuple(f * n for f, n in zip(factors, features[1:], strict=True)):
            raise CannotLower(name, f"scale_factor: expected one that gives whole sizes, got {factors}")
        fields = {"kernel": size, "ceil": bool(layer.align_corners)}
        if x.timing is None and not x.is_currents:
            y = self._add(name, "upsample", x, None, x.gain, {}, **fields)
            y.source, y.channels = x.source, features[0]
            return y
        x = self.affine(name, x, None, None)
        x = x if x.is_currents else self.currents(name, "sum", x, features[0], {"outputs": features[0]})
        return self.currents(name, "upsample", x, features[0], fields)

    def real(self, x: Value) -> Value:
        """Return mean counts times their gain, for what reads real numbers: a readout adds integers, without it."""
        if not x.is_numbers or not (is_by_channel(x.gain) or float(x.gain) != 1.0):
            return x
        stage = self.list[x.number]
        i, scale = stage.instruction, None
        if i.kind == "flatten":
            i = replace(i, input=self.real(Value(i.input, None, x.gain)).number)
        elif isinstance(x.gain, Tensor) and x.gain.dim():
            scale = x.gain
        else:
            i = replace(i, gain=float(x.gain))
        self.list.append(Stage(stage.name, i, scale=scale))
        return Value(len(self.list) - 1, None, 1.0, channels=x.channels, owner=self)

    def _move(self, name: str, layer: Any, x: Value) -> Value:
        x = x if isinstance(layer, tnn.Flatten) else self.real(x)
        if isinstance(layer, tnn.Upsample):
            return self._upsample(name, layer, x)
        if isinstance(layer, tnn.AdaptiveMaxPool2d):
            pool = layer.pool(self.features_of(name, x)[1:])
            return self._move(name, pool, rearranged(self, name, layer.arranged, True, x))
        if x.is_currents:
            return self._move_currents(name, layer, x)
        means = isinstance(layer, tnn.AdaptiveAvgPool2d) or (isinstance(layer, tnn.AvgPool2d) and not layer.spiking)
        if means and x.source is not None and self.modes[x.source] not in (None, "events"):
            raise CannotLower(name, "it averages the input, so nothing in the network spikes")
        gain, read = x.gain, x
        tensors, fields = dict[str, Any](), dict[str, Any]()
        kind, geometry = _pooling(name, layer, means)
        gain = gain.flatten() if isinstance(gain, Tensor) and kind == "flatten" else gain
        fields = geometry if kind == "flatten" else fields | geometry
        if kind == "average":
            read = self.converted(name, x, layer.timing)
            tensors["v_init"] = torch.tensor(layer.initial_potential)
            fields |= {"threshold": float(layer.threshold), "timing": layer.timing, "own_T": read.own_T or 0}
        y = self._add(name, kind, read, None if means else read.timing, gain, tensors, **fields)
        y.source, y.channels = x.source, None if kind == "flatten" else x.channels
        return y

    def _move_currents(self, name: str, layer: Any, x: Value) -> Value:
        kind, fields = _pooling(name, layer, True)
        if kind == "max_pool" and x.timing != "window":
            raise CannotLower(name, 'the largest current of a step is not that of the window: use timing="window"')
        return self.currents(name, kind, x, None if kind == "flatten" else x.channels, fields)

    def _layer(self, name: str, layer: Any, x: Value, residual: Value | None) -> Value:
        if layer.neurons and layer.threshold is None and layer.T is None:
            self.T = self.T or self.default_T
        if isinstance(layer, tnn.Neurons):
            settings = layer.norm, layer.threshold, layer.v_init, layer.gain
            alike = all(value is None or isinstance(value, float) for value in settings)
            if alike and (moved := before_moves(self, name, x)) is not None:
                (x,), again = moved
                return again(self._layer(name, layer, x, None))
            if not x.is_currents:
                x = self.affine(name, self.converted(name, x, layer.timing), None, None)
            return self._neurons(name, layer, self.converted(name, x, layer.timing), None)
        if isinstance(layer, tnn.Linear) and self._has_tokens(name, x):
            x = rearranged(self, name, "movedim", True, x, -1, 1)
            if residual is not None:
                residual = rearranged(self, name, "movedim", True, residual, -1, 1)
            y = self._connected(name, layer, x, residual, len(self.features_of(name, x)) - 1)
            return rearranged(self, name, "movedim", False, y, 1, -1)
        if layer.arranges:
            x = rearranged(self, name, layer.arranged, True, x)
        return self._connected(name, layer, x, residual)

    def _readout(self, name: str, layer: Any, x: Value) -> Value:
        if x.is_currents and x.timing != "window":
            raise CannotLower(name, 'a readout of the currents of steps: put tnn.Neurons before it, or timing="window"')
        tokens = isinstance(layer, tnn.Readout) and self._has_tokens(name, x)
        axes = len(self.features_of(name, x)) - 1 if tokens else 0
        x = rearranged(self, name, "movedim", True, self.real(x), -1, 1) if tokens else x
        weight, gain = weighted(layer, x, axes)
        tensors = weights_of(layer, weight) | {"shift": layer.bias}
        fields = {"gain": float(gain), "timing": "window" if x.is_currents else "step", **geometry_of(layer, weight)}
        y = self._add(name, "readout", x, None, 1.0, tensors, **fields)
        y.channels = len(weight)
        return rearranged(self, name, "movedim", False, y, 1, -1) if tokens else y

    def _has_tokens(self, name: str, x: Value) -> bool:
        i = None if x.number == INPUT else self.list[x.number].instruction
        if i is not None and (i.kind == "flatten" or (i.kind == "layer" and i.axes == 0)):
            return False
        self.sized, self.unsized = True, self.unsized or self.shapes is None
        return self.shapes is not None and len(self.features_of(name, x)) > 1

    def _connected(self, name: str, layer: Any, x: Value, residual: Value | None, axes: int = 0) -> Value:
        """Append the product of a layer and its neurons, for an input as the product takes it; axes of its tokens."""
        weight, gain = weighted(layer, x, axes)
        tensors, geometry = weights_of(layer, weight), geometry_of(layer, weight)
        x = self.converted(name, x, layer.timing)
        without = {"fires": False, "timing": layer.timing}
        folded = (layer.bias, *fold_norm(layer.norm), tensors["step"], gain, len(weight), weight)
        if layer.neurons and x.is_currents:
            if residual is not None:
                raise CannotLower(name, "a residual of a layer that reads currents: add it by +")
            bare = self.currents(name, "layer", x, len(weight), without | geometry, **tensors)
            return self._neurons(name, layer, bare, tensors["step"])
        if not layer.neurons:
            tensors["scale"], tensors["shift"] = fold(None, *folded)
            return self.currents(name, "layer", x, len(weight), without | geometry, **tensors)
        made, unit = self._threshold(layer, weight, weight.dim() - 2)
        tensors["scale"], tensors["shift"] = fold(made.theta, *folded, unit)
        tensors["v_init"] = made.v_init
        fields = layer.numbers() | geometry
        del fields["gate"]  # there is no backward pass
        fields["own_T"] = self._own_T(layer)
        if residual is not None:
            worth = residual.gain
            if isinstance(worth, Tensor) and worth.dim():  # a channel may have become several features
                worth = worth.repeat_interleave(len(weight) // len(worth))
            scale, _ = fold(made.theta, None, None, None, None, worth, len(weight), weight, unit)
            residual, tensors["residual_scale"] = self.converted(name, residual, layer.timing), scale
            fields["residual"] = residual.number
        y = self._add(name, "layer", x, layer.timing, layer.spike_value(self.T), tensors, **fields)
        y.channels = len(weight)
        return y

    def _neurons(self, name: str, layer: Any, u: Value, step: Tensor | None) -> Value:
        """Append the neurons of a layer, for currents without its bias, batch norm and the step of its weights."""
        channels = self.channels_of(name, u)
        like = torch.empty(channels) if layer.weight is None else layer.weight
        made, unit = self._threshold(layer, like, 2)
        scale, shift = fold(made.theta, layer.bias, *fold_norm(layer.norm), step, 1.0, channels, like, unit)
        fields = layer.numbers() | {"own_T": self._own_T(layer)}
        del fields["gate"]
        v_init = made.v_init
        if isinstance(v_init, Tensor) and v_init.numel() == channels:  # of each channel, of any number of axes
            v_init = v_init.flatten()
        tensors = {"scale": scale, "shift": shift, "v_init": v_init}
        y = self._add(name, "neurons", u, layer.timing, layer.spike_value(self.T), tensors, outputs=channels, **fields)
        y.channels = channels
        return y

    def _own_T(self, layer: Any) -> int:
        return 0 if layer.T in (None, self.T) else layer.T

    def longest(self, name: str, a: Value, b: Value) -> int | None:
        """Return the own T of two trains that are joined."""
        if a.own_T == b.own_T:
            return a.own_T
        self.T = self.T or self.default_T
        if self.T is None:
            raise CannotLower(name, "it joins trains of different T, of which no Encoder says one: freeze(net, T=...)")
        T = max(a.own_T or self.T, b.own_T or self.T)
        return None if T == self.T else T

    def _threshold(self, layer: Any, like: Tensor, axes: int) -> tuple[Tensors, Any]:
        """Return the tensors of the neurons of a layer, and the unit of their potentials."""
        given = layer.v_init.shape if isinstance(layer.v_init, Tensor) and layer.v_init.dim() > 1 else ()
        shape = (1, *(given or (len(like), *[1] * axes)))
        start = layer.initial_potential
        start = start if isinstance(start, Tensor) or start != 0 else None
        made = tensors_of(like, 1, shape, None, layer.dynamics()["threshold"], start, layer.timing)
        return made, layer.unit(self.T)


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


def _spread(gain: _Gain, channels: int) -> Tensor | None:
    """Return a gain for each channel; None if it is 1."""
    return None if not isinstance(gain, Tensor) and gain == 1.0 else spread(gain, channels)


def _refuse_max_pool(name: str, layer: nn.Module) -> None:
    if isinstance(layer, MaxPool):
        why = f"{layer.f} is not a layer of tandem_snn.nn"
        other = 'convert with timing="window", or put tnn.MaxPool2d in its place'
        raise CannotLower(name, f"{why}: {other if layer.f == 'max_pool2d' else 'only tnn.MaxPool2d, of images, is'}")
