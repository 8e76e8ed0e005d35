"""A network's evaluation as a list of stages, each with one affine map per channel: what every export starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import ImpulseInput, SpikeTrain

from .. import nn as tnn
from ..frozen.network import FrozenNetwork
from ..frozen.trace import CannotLower, trace


@dataclass
class Stage:
    """One layer in evaluation: I[t] = scale·(W s_in[t]) + shift/T, plus the residual's, into neurons.

    Attributes:
        name: unique, an identifier.
        layer: the layer, whose geometry counts.
        weight: of layers with weights.
        x, residual: names of the stages whose result it reads; "input" is the network's.
        scale, shift: [C], None where neutral; gains, biases, batch norm and per-channel thresholds are in them.
        residual_scale: [C], None where neutral.
        threshold, leak, v_init: of the neurons; v_init 0-dim or [*features].
        fires: False for the synapses of a projection, whose currents are another stage's residual.
        shape: of its result, [*features]; ``in_shape`` of what it reads.
    """

    name: str
    layer: Any
    x: str
    in_shape: tuple[int, ...]
    shape: tuple[int, ...]
    weight: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: str | None = None
    residual_scale: Tensor | None = None
    threshold: float = 1.0
    leak: float = 1.0
    v_init: Tensor | None = None
    gate: str = "relu"
    fires: bool = True


@dataclass
class Stages:
    """All stages in order, the last of them as a rule the Readout's; what the network takes, and its T.

    Attributes:
        mode: "direct", "zero_expand" or "events", as of ``tnn.Encoder``.
        shape: of the input, [*features].
    """

    stages: list[Stage]
    mode: str
    T: int
    shape: tuple[int, ...]


@torch.no_grad()
def stages_of(net: nn.Module, x: Any, readout: bool = True) -> Stages:
    """The stages of ``net`` for inputs like x; without ``readout`` it may end in neurons too.

    Raises:
        CannotLower: the network is not one chain of this package's layers from the input to a Readout.
        ValueError: a gate that needs the whole window.
    """
    net = net.net if isinstance(net, FrozenNetwork) else net
    traced = trace(net, x, readout)
    reader = _Reader(net, x)
    for layer in traced.prefix:
        if not isinstance(layer, tnn.Encoder):
            reader.pass_through(layer)
    for call in traced.calls:
        reader.read(call)
    first = traced.calls[0].x
    if isinstance(first, Tensor):
        raise CannotLower(f"{traced.calls[0].name}: it reads means of the input: nothing in the network spikes")
    mode = "events" if isinstance(x, SpikeTrain) else "zero_expand" if isinstance(first, ImpulseInput) else "direct"
    return Stages(reader.stages, mode, first.T, tuple(x.shape[1:]))


class _Reader:
    def __init__(self, net: nn.Module, x: Any) -> None:
        self.names = {module: name for name, module in net.named_modules()}
        self.stages: list[Stage] = []
        self.values: dict[int, str] = {}
        self.used: set[str] = {"input", "output"}
        self.source, self.shape = "input", tuple(x.shape[1:])  # what a value that no stage made is

    def pass_through(self, layer: nn.Module) -> None:
        """A layer before the first spikes, which works on real values."""
        if isinstance(layer, tnn.Dropout):
            return
        shape = tuple(layer(torch.zeros(1, *self.shape)).shape[1:])
        if shape != self.shape or not isinstance(layer, tnn.Flatten):
            self.stages.append(Stage(self._name(layer), layer, self.source, self.shape, shape, fires=False))
            self.source, self.shape = self.stages[-1].name, shape

    def read(self, call: Any) -> None:
        layer, x, y = call.layer, call.x, call.y
        source = self.values.get(id(x), self.source)
        unchanged = isinstance(layer, tnn.Flatten) and len(x.shape) <= 2
        if isinstance(layer, (tnn.Dropout, tnn.Encoder)) or unchanged:
            self.values[id(y)] = source
            return
        in_shape = tuple(x.shape[1:])
        steps = isinstance(layer, tnn.SpikingLayer) and not call.fire  # currents are [T, B, *features]
        shape = tuple(y.shape[2 if steps else 1 :])
        stage = Stage(self._name(layer), layer, source, in_shape, shape)
        if isinstance(layer, tnn.SpikingLayer):
            self._neurons(stage, call)
        elif isinstance(layer, tnn.Readout):
            gain = 1.0 if isinstance(x, Tensor) else x.gain
            if isinstance(gain, Tensor) or gain != 1.0:
                stage.scale = torch.full((layer.out_features,), float(gain))
            stage.weight, stage.shift = layer.used_weight(), layer.bias
        elif isinstance(layer, tnn.AvgPool2d) and isinstance(y, SpikeTrain):
            stage.v_init = torch.tensor(layer.v_init)
        elif isinstance(x, SpikeTrain) and not isinstance(y, SpikeTrain):  # mean counts: their gain is in the values
            gain = float(x.gain)
            stage.scale = None if gain == 1.0 else torch.full((in_shape[0],), gain)
        self.stages.append(stage)
        self.values[id(y)] = stage.name

    def _neurons(self, stage: Stage, call: Any) -> None:
        layer, x = call.layer, call.x
        if layer.analog:
            raise CannotLower(f"{call.name}: it is analog, and has no spikes")
        if layer.gate == "resu":
            raise CannotLower(f'{call.name}: its gate "resu" needs the end of the window, so it has no step')
        residual = call.residual
        stage.fires = call.fire
        lowered = layer.lowered(x.gain, getattr(residual, "gain", 1.0), fire=call.fire)
        stage.weight, stage.scale, stage.shift, v_init = lowered.weight, lowered.scale, lowered.shift, lowered.v_init
        if call.fire:
            stage.threshold, stage.leak = lowered.static.threshold, lowered.static.leak
        stage.v_init = v_init if v_init is None or not v_init.dim() else v_init.expand(stage.shape)
        if residual is not None:
            stage.residual = self.values.get(id(residual), self.source)
            stage.residual_scale = lowered.residual_scale

    def _name(self, layer: nn.Module) -> str:
        name = self.names[layer].replace(".", "_") or type(layer).__name__.lower()
        name = f"n{name}" if name[0].isdigit() else name
        while name in self.used:
            name += "_again"
        self.used.add(name)
        return name
