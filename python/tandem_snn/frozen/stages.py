"""A network's evaluation as a list of layers and moves: the one form that runs, is saved, and is exported.

Gains, biases, batch norm, thresholds per channel and the steps of weights of few bits are folded into one affine map
per channel: I[t] = scale·(W s_in[t]) + shift/T. A list runs here, layer by layer on any device; as a program
(:mod:`.program`) it runs in one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain
from tandem_ext.functional.neuron import over_inputs, over_space
from tandem_ext.functional.products import LINEAR, Conv, float32_precision

from ..nn.currents import NEVER, residual_total, step_currents
from ..nn.signals import describe, effective_counts, with_gain

INPUT = -1  # as a value: what the network was given
SIGNALS = {"direct": ConstantInput, "zero_expand": ImpulseInput, "events": SpikeTrain}
_CONV: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d}


class CannotLower(ValueError):
    """A network, or a layer of the name ``layer``, that has no list, or whose list has no program."""

    def __init__(self, layer: str, why: str) -> None:
        super().__init__(f"{layer}: {why}")
        self.layer, self.why = layer, why


class Stage(nn.Module):
    """A layer or a move: a dataclass whose tensors are buffers.

    Attributes:
        name: the layer's name in its network; it may come again.
        x: the value it reads: the number of an earlier stage, or INPUT.
        gain: what a unit of the counts is worth that it reads, where it reads counts and not spikes.
    """

    name: str
    x: int
    gain: float

    def __new__(cls, *_: Any, **__: Any) -> Any:
        stage = super().__new__(cls)
        nn.Module.__init__(stage)
        return stage

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            if "Tensor" in str(each.type):
                self.register_buffer(each.name, self.__dict__.pop(each.name))


@dataclass(eq=False, repr=False)
class Move(Stage):
    """What has no synapses.

    Attributes:
        layer: a MaxPool2d, AvgPool2d, AdaptiveAvgPool2d or Flatten.
    """

    name: str
    x: int
    layer: nn.Module
    gain: float = 1.0

    def forward(self, x: Any) -> Any:
        if isinstance(x, (ConstantInput, ImpulseInput)):
            return x.unchecked(self.layer(x.x), x.T)
        return self.layer(x if isinstance(x, Tensor) or self.gain == 1.0 else with_gain(x, self.gain))


@dataclass(eq=False, repr=False)
class Layer(Stage):
    """Synapses, and what their currents go into. Tensors have no plain default, which would hide the buffer.

    Attributes:
        kind: "neurons"; "currents" of every step, for another layer's residual; "answer", of a readout; "activation" or
            "preactivation" of an analog layer, which has no spikes.
        weight: [N, C / groups, *kernel], floats, or int8 with ``step`` [N]: ``scale`` then has the step in it, and a
            readout's weights are step·weight.
        scale, shift: [N], None where neutral. A readout's shift is its bias.
        residual, residual_scale: the value added to the currents, and what it is worth, [N].
        v_init: 0-dim, [N], or [N, *space] where space may be 1.
        stride, padding, after, dilation: by dimension of space; ``after`` is further padding at the end.
    """

    name: str
    x: int
    kind: str
    weight: Tensor
    step: Tensor | None = field(default_factory=type(None))
    scale: Tensor | None = field(default_factory=type(None))
    shift: Tensor | None = field(default_factory=type(None))
    residual: int | None = None
    residual_scale: Tensor | None = field(default_factory=type(None))
    threshold: float = 1.0
    leak: float = 1.0
    v_init: Tensor | None = field(default_factory=type(None))
    gate: str = "relu"
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    gain: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype if self.step is None else self.step.dtype

    def real_weight(self) -> Tensor:
        """The weights that real numbers are multiplied by."""
        if self.step is None:
            return self.weight
        q = self.weight.to(self.step.dtype)
        return q * over_inputs(self.step, q) if self.kind == "answer" else q

    def forward(self, x: Any, residual: Any = None) -> Any:
        if self.kind == "answer":
            return self._product(self._counts(x), self.shift)
        if self.kind in ("activation", "preactivation"):
            return self._activation(x, residual)
        shape = self._output_shape(tuple(x.shape))
        if self.kind == "currents":

            def potential(step: Any, T: int) -> Tensor:
                return self._run(step, steps=T, threshold=NEVER, return_v=True)[3]

            return step_currents(x, None, potential)
        v_init = self.v_init
        if v_init is not None and v_init.dim() > 1:
            v_init = v_init.expand(shape[1:])
        planes = residual.planes if isinstance(residual, SpikeTrain) else residual
        spikes = self._run(
            x, steps=x.T, threshold=self.threshold, leak=self.leak, gate=self.gate, v_init=v_init, residual=planes,
            residual_scale=self.residual_scale,
        )[0]  # fmt: skip
        return SpikeTrain.unchecked(spikes, x.T, None, 1.0, self.dtype)

    def _run(self, x: Any, **neuron: Any) -> tuple[Tensor, ...]:
        """(planes, counts, mask, v) of neurons, by the op."""
        neutral = {"residual": None, "residual_scale": None, "v_init": None, "leak": 1.0, "gate": "relu"}
        settings = {**neutral, "train": False, "return_v": False, "scale": self.scale, "shift": self.shift, **neuron}
        ops = torch.ops.tandem
        if not isinstance(x, SpikeTrain):
            op = ops.constant_if if isinstance(x, ConstantInput) else ops.impulse_if
            return op.default(self._product(x.x), x.T, **settings)  # type: ignore[no-any-return]
        synapses = (self._padded(x.planes), x.T, self.weight, float32_precision())
        if self.weight.dim() == 2:
            return ops.linear_if.default(*synapses, **settings)  # type: ignore[no-any-return]
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return ops.conv_if.default(*synapses, *geometry, **settings)  # type: ignore[no-any-return]

    def _product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = self.real_weight()
        if weight.dim() == 2:
            return F.linear(x, weight, bias)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return _CONV[weight.dim()](self._padded(x), weight, bias, *geometry)

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, [side for after in reversed(self.after) for side in (0, after)]) if any(self.after) else x

    def _counts(self, x: Any) -> Tensor:
        counts = (x if isinstance(x, Tensor) else effective_counts(x)).to(self.dtype)
        return counts if self.gain == 1.0 else counts * self.gain

    def _activation(self, x: Any, residual: Any) -> Tensor:
        u = self._product(self._counts(x), self.shift if self.scale is None else None)
        if self.scale is not None:
            u = u * over_space(self.scale, u.shape)
            u = u if self.shift is None else u + over_space(self.shift, u.shape)
        if residual is not None:
            more = residual_total(residual, u)
            u = u + (more if self.residual_scale is None else more * over_space(self.residual_scale, u.shape))
        return torch.relu(u) if self.kind == "activation" else u

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of neurons, [B, N, *space]; raises ValueError for an input that does not fit."""
        if self.weight.dim() == 2:
            return LINEAR.output_shape(shape, self.weight)
        space = (size + after for size, after in zip(shape[2:], self.after, strict=False))
        product = Conv(self.stride, self.padding, self.dilation, self.groups)
        return product.output_shape((*shape[:2], *space), self.weight)


class Stages(nn.Module):
    """A network's evaluation: all stages in order, the last of which gives the answer.

    Attributes:
        mode: what it takes, as of ``tnn.Encoder``.
        T: the number of time steps, or None: those of the train it is given.
    """

    def __init__(self, stages: list[Layer | Move], mode: str, T: int | None) -> None:
        super().__init__()
        self.stages: Any = nn.ModuleList(stages)
        self.mode, self.T = mode, T
        readers = {value: number for number, stage in enumerate(stages) for value in _reads(stage)}
        self._done = {n: [value for value, last in readers.items() if last == n] for n in readers.values()}

    def signal(self, x: Any) -> Any:
        """x as what it is to the first stages.

        Raises:
            TypeError, ValueError: x is of another kind, or of other steps.
        """
        if isinstance(x, SpikeTrain) != (self.mode == "events"):
            wanted = "a SpikeTrain" if self.mode == "events" else "a tensor [B, *features], no SpikeTrain"
            raise TypeError(f"x: the network takes {wanted}, got {describe(x)}")
        if not isinstance(x, SpikeTrain):
            return SIGNALS[self.mode].unchecked(x, self.T)
        if self.T not in (None, x.T):
            raise ValueError(f"x: the network takes a SpikeTrain of T={self.T} steps, got T={x.T}")
        return with_gain(x, 1.0)

    def forward(self, x: Any, watch: Callable[[int, Any, Any], None] | None = None) -> Any:
        """The answer; ``watch(number, x, y)`` sees what each stage reads and makes."""
        values = {INPUT: self.signal(x)}
        for number, stage in enumerate(self.stages):
            more = () if getattr(stage, "residual", None) is None else (values[stage.residual],)
            y = values[number] = stage(values[stage.x], *more)
            if watch is not None:
                watch(number, values[stage.x], y)
            for value in self._done.get(number, ()):
                del values[value]
        return y


def _reads(stage: Layer | Move) -> tuple[int, ...]:
    residual = stage.residual if isinstance(stage, Layer) else None
    return (stage.x,) if residual is None else (stage.x, residual)
