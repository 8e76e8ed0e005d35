"""What every export starts from: a network's evaluation, stage by stage, with names and the shapes for an input."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from .. import nn as tnn
from ..frozen.lowering import lower
from ..frozen.network import FrozenNetwork
from ..frozen.stages import INPUT, CannotLower, Layer, Stages


@dataclass
class Stage:
    """One layer or move of the list.

    Attributes:
        name: unique, an identifier.
        layer: a :class:`Layer`, or the pooling or Flatten of a move.
        x, residual: names of the stages whose result it reads; "input" is the network's.
        fires: has it neurons? False for the synapses of a projection, and where an average is of real numbers.
        gain: what a unit of the counts is worth that it reads.
        shape: of its result, [*features]; ``in_shape`` of what it reads.
    """

    name: str
    layer: Any
    x: str
    residual: str | None
    fires: bool
    gain: float
    in_shape: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_readout(self) -> bool:
        return isinstance(self.layer, Layer) and self.layer.kind == "answer"

    @property
    def v_init(self) -> Tensor | None:
        return torch.tensor(self.layer.v_init) if isinstance(self.layer, tnn.AvgPool2d) else self.layer.v_init

    @property
    def neuron(self) -> tuple[float, float]:
        """Threshold and leak."""
        return (self.layer.threshold, self.layer.leak) if isinstance(self.layer, Layer) else (1.0, 1.0)


@dataclass
class Listing:
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
def listing_of(net: nn.Module, x: Any, readout: bool = True) -> Listing:
    """The stages of ``net``, which are its caller's to change, for inputs like x.

    Args:
        readout: must the network end in a Readout? Else it may end in neurons too.

    Raises:
        CannotLower: the network is not one chain of this package's layers from the input to a Readout, or a layer has
            no step.
    """
    net = net.net if isinstance(net, FrozenNetwork) else net
    x = x[:1]
    network: Stages = copy.deepcopy(lower(net, x.gain if isinstance(x, SpikeTrain) else 1.0))
    names = {INPUT: "input"}
    stages: list[Stage] = []

    def watch(number: int, x: Any, y: Any) -> None:
        stage = network.stages[number]
        is_layer = isinstance(stage, Layer)
        if is_layer and stage.kind.endswith("activation"):
            raise CannotLower(stage.name, "it is analog, and has no spikes")
        if is_layer and stage.gate == "resu":
            raise CannotLower(stage.name, 'its gate "resu" needs the end of the window, so it has no step')
        if not is_layer and isinstance(stage.layer, tnn.Flatten) and len(x.shape) <= 2:
            names[number] = names[stage.x]
            return
        names[number] = _identifier(stage.name or "layer", {*names.values(), "output"})
        steps = is_layer and stage.kind == "currents"  # [T, B, *features]
        fires = isinstance(y, SpikeTrain) and (is_layer or isinstance(stage.layer, tnn.AvgPool2d))
        residual = names[stage.residual] if is_layer and stage.residual is not None else None
        layer = stage if is_layer else stage.layer
        shapes = tuple(x.shape[1:]), tuple(y.shape[2 if steps else 1 :])
        stages.append(Stage(names[number], layer, names[stage.x], residual, fires, stage.gain, *shapes))

    network(x, watch)
    last = stages[-1] if stages else None
    if last is None or not (last.is_readout or (not readout and last.fires)):
        raise CannotLower("net", "it does not end in a Readout")
    T = x.T if isinstance(x, SpikeTrain) else network.T
    assert T is not None
    return Listing(stages, network.mode, T, tuple(x.shape[1:]))


def _identifier(name: str, taken: set[str]) -> str:
    name = name.replace(".", "_")
    name = f"n{name}" if name[0].isdigit() else name
    while name in taken:
        name += "_again"
    return name
