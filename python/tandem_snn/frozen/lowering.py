"""Lower a network to a list of stages."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tandem_ext import SpikeTrain
from tandem_ext._torch import pytree, remove_weight_hooks
from tandem_ext.functional.neuron import over_space

from .. import nn as tnn
from ..nn.maximum import MaxPool
from ..nn.signals import inputs_of
from .answers import named, numbered
from .functions import apply_function, before_moves, check_times, each_feature, joined, spread
from .instruction import ABSENT, CONVERSIONS, INPUT, CannotLower, Instruction
from .layers import apply_layer
from .stages import MODES, Stage, Stages
from .trace import LEAVES, Value, trace
from .weights import is_by_channel

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
    with suppress(RecursionError):  # of containers that contain themselves
        values = pytree.tree_leaves(values)
    # deepcopy does not support tensors that are not leaves
    memo = {id(v): v.detach().clone() for v in values if isinstance(v, Tensor) and not v.is_leaf}
    try:
        net = copy.deepcopy(net, memo).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"net: {_uncopied(net, memo)} cannot be copied: {str(error).splitlines()[0]}") from error
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


def _uncopied(net: nn.Module, memo: dict[int, Tensor]) -> str:
    """Name the first attribute that deepcopy refuses."""
    for name, module in net.named_modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules" and not _copies(value, memo):
                return f"{attribute!r} of layer {name!r}" if name else f"its {attribute!r}"
    return "it"


def _copies(value: Any, memo: dict[int, Tensor]) -> bool:
    try:
        copy.deepcopy(value, {**memo})
    except (RuntimeError, TypeError):
        return False
    return True


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
        self.sized = self.unsized = self.fixed = False  # see Stages; fixed: other shapes have another answer
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
        answer = trace(self.net, inputs, partial(apply_layer, self), partial(apply_function, self))
        answers = dict(named(answer))
        for path, value in answers.items():
            if not isinstance(value, Value) or value.number < len(self.inputs) - 1 or value.pending:
                raise CannotLower("net", f"its output {path!r} is not that of a Readout".replace(" ''", ""))
            value = answers[path] = self.real(value)
            if path:
                answers[path] = self.add(path, "output", value, None, 1.0, {})
        self._set_modes()
        stages = Stages(self._read(answers), self.modes[0] or "events", self.T, numbered(answer, count()))
        fired = (self.list[value.number].name for _, value in named(answer) if value.timing is not None)
        stages.fired = next(fired, None)
        moves = (stage.instruction for stage in stages.stages if stage.instruction.kind == "gather")
        fixed = self.fixed or any(not i.by_channel for i in moves)  # as many features may have another shape
        fixed = fixed or any(stage.seen is not None for stage in stages.stages)
        stages.sized, stages.unsized, stages.shapes = self.sized or fixed, self.unsized, self.shapes if fixed else None
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

    def add(
        self, name: str, kind: str, x: Value, result: str | None, worth: _Gain, tensors: dict[str, Any], **fields: Any
    ) -> Value:
        """Append an instruction that reads x; the result has this timing, None for numbers, and gain."""
        tensors = {key: None if tensor is None else tensor.detach() for key, tensor in tensors.items()}
        self.list.append(Stage(name, Instruction(kind, x.number, **fields), **tensors))
        y = Value(len(self.list) - 1, result, worth, owner=self)
        y.own_T = fields["own_T"] or None if "own_T" in fields else x.own_T
        return y

    def currents(self, name: str, kind: str, x: Value, channels: int | None, fields: Any, **tensors: Any) -> Value:
        """Append an instruction that makes currents, by default with the timing of x."""
        fields = {"timing": x.timing, **fields}
        u = self.add(name, kind, x, fields["timing"], 1.0, tensors, **fields)
        u.is_currents, u.channels, u.own_T = True, channels, None
        return u

    def numbers(self, name: str, x: Value, other: Value | None = None, **tensors: Tensor | None) -> Value:
        """Append a sum of numbers, with a scale or a shift of each channel."""
        channels, x = self.channels_of(name, x), self.real(x)
        fields = {"residual": ABSENT if other is None else self.real(other).number, "outputs": channels}
        each: Any = {key: None if t is None else t.expand(channels).contiguous() for key, t in tensors.items()}
        y = self.add(name, "sum", x, None, 1.0, each, **fields)
        y.channels = channels
        return y

    def sum(self, name: str, a: Value, b: Value) -> Value:
        if a.is_numbers and b.is_numbers:
            return self.numbers(name, a, b)
        check_times(name, a, b)
        a, b = (value if value.offset is None else self.affine(name, value, None, None) for value in (a, b))
        timing = str((a if a.is_currents else b).timing)
        a, b = (value if value.is_currents else self.converted(name, value, timing) for value in (a, b))
        if (moved := before_moves(self, name, a, b)) is not None:
            (a, b), again = moved
            return again(self.sum(name, a, b))
        if a.timing != b.timing:
            raise CannotLower(name, "timing: it adds currents of different timings")
        channels = self.channels_of(name, a)
        gains = {"scale": _spread(a.gain, channels), "residual_scale": _spread(b.gain, channels)}
        return self.currents(name, "sum", a, channels, {"residual": b.number, "outputs": channels}, **gains)

    def join(self, name: str, values: list[Value], dim: int) -> Value:
        return joined(self, name, values, dim)

    def affine(self, name: str, x: Value, scale: Tensor | None, shift: Tensor | None) -> Value:
        """Append scale * x + shift, where the gain of a train is multiplied first."""
        if x.is_numbers:
            return self.numbers(name, x, scale=scale, shift=shift)
        check_times(name, x)
        channels = self.channels_of(name, x)
        fields, offset = {"outputs": channels}, x.offset
        if not x.is_currents and (is_by_channel(x.gain) or float(x.gain) != 1.0):
            gain, x = x.gain, self.currents(name, "sum", x, channels, fields, scale=_spread(x.gain, channels))
            x = x if offset is None else self.constant(name, x, offset * over_space(gain, offset.shape), False)
        if x.is_currents and scale is None and shift is None:
            return x
        each = [None if t is None else t.expand(channels).contiguous() for t in (scale, shift)]
        return self.currents(name, "sum", x, channels, fields, scale=each[0], shift=each[1])

    def constant(self, name: str, x: Value, value: Any, scales: bool) -> Value:
        """Append x times or plus a constant that broadcasts with one sample."""
        dtype = self.dtype
        if (
            x.is_numbers
            and isinstance(value, Tensor)
            and torch.result_type(torch.empty(1, dtype=dtype), value) != dtype
        ):
            raise CannotLower(name, f"a constant of {value.dtype} gives an answer of {dtype} another type")
        value = torch.as_tensor(value, dtype=torch.promote_types(dtype, torch.float32)).detach()
        features = self.features_of(name, x) if value.numel() > 1 else ()
        at = value.dim() - len(features)
        if value.numel() > 1 and (at < 0 or value.numel() != value.shape[at]):  # not one for each channel
            each = value.expand(1, *features).flatten()
            return each_feature(self, name, x, lambda u: self.constant(name, u, each, scales))
        return self.affine(name, x, *((value.flatten(), None) if scales else (None, value.flatten())))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights so far."""
        return next((stage.dtype for stage in self.list if stage.weight is not None), torch.float32)

    def moved(self, name: str, x: Value, gain: _Gain, index: Tensor | None, outputs: int, **fields: Any) -> Value:
        """Append a gather."""
        tensors = {"index": None if index is None else index.int()}
        fields |= {"outputs": outputs, "timing": x.timing or "step"}
        y = self.add(name, "gather", x, x.timing, gain, tensors, **fields)
        y.is_currents, y.channels, y.source = x.is_currents, outputs, x.source
        return y

    def features_of(self, name: str, x: Value) -> tuple[int, ...]:
        """Return the shape of a value of one sample, by running the stages so far."""
        if self.shapes is None:
            raise CannotLower(name, "it depends on the size of the input: give freeze an example")
        if x.number < len(self.inputs) - 1:
            k = 0 if x.number == INPUT else x.number + 1
            return tuple(self.shapes[k])
        if x.number not in self.values:
            self._set_modes()
            T = self.T or self.default_T or 1
            so_far = Stages(self.list[: x.number + 1], self.modes[0] or "events", T)
            zeros = [torch.zeros((T + 7) // 8, 1, *shape, dtype=torch.uint8) for shape in self.shapes]
            given = [
                SpikeTrain(x, T) if mode == "events" else x[0] if mode == "pixels" else x[0].to(so_far.dtype)
                for x, mode in zip(zeros, so_far.modes, strict=True)
            ]
            list(so_far.run(given, self.values))
        return tuple(self.values[x.number].shape[1:])

    def only_features_of(self, name: str, x: Value) -> tuple[int, ...]:
        """Return the shape of a value of one sample, for stages that would answer other shapes wrongly."""
        self.fixed = True
        return self.features_of(name, x)

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
            x.converted = self.add(name, kind, x, timing, x.gain, {})
            x.converted.offset = x.offset
        return x.converted

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

    def longest(self, name: str, a: Value, b: Value) -> int | None:
        """Return the own T of two trains that are joined."""
        if a.own_T == b.own_T:
            return a.own_T
        self.T = self.T or self.default_T
        if self.T is None:
            raise CannotLower(name, "it joins trains of different T, of which no Encoder says one: freeze(net, T=...)")
        T = max(a.own_T or self.T, b.own_T or self.T)
        return None if T == self.T else T


def _spread(gain: _Gain, channels: int) -> Tensor | None:
    """Return a gain for each channel; None if it is 1."""
    return None if not isinstance(gain, Tensor) and gain == 1.0 else spread(gain, channels)


def _refuse_max_pool(name: str, layer: nn.Module) -> None:
    if isinstance(layer, MaxPool):
        why = f"{layer.f} is not a layer of tandem_snn.nn"
        other = 'convert with timing="window", or put tnn.MaxPool2d in its place'
        raise CannotLower(name, f"{why}: {other if layer.f == 'max_pool2d' else 'only tnn.MaxPool2d, of images, is'}")
