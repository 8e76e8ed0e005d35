"""What every export starts from: a network's evaluation, stage by stage, with names and the shapes for an input."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tandem_ext import SpikeTrain

from ..frozen import stages as frozen
from ..frozen.lowering import lower
from ..frozen.network import FrozenNetwork
from ..frozen.stages import ABSENT, FORMS, INPUT, CannotLower


@dataclass
class Stage:
    """One stage of the list, and what it is in this network.

    Attributes:
        name: unique, an identifier.
        layer: the stage itself, which is the export's to change.
        x, residual: names of the stages whose result it reads; "input" is the network's.
        fires: has it neurons? False for the synapses of a projection, and where an average is of real numbers.
        shape: of its result, [*features]; ``in_shape`` of what it reads.
        depth: how many layers with timing "window" are before it, each of which its input passes a window later.
    """

    name: str
    layer: frozen.Stage
    x: str
    residual: str | None
    fires: bool
    in_shape: tuple[int, ...]
    shape: tuple[int, ...]
    depth: int

    @property
    def waits(self) -> bool:
        """Does it integrate a window, to fire in the next one?"""
        return self.fires and self.layer.timing == "window"


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

    @property
    def waits(self) -> bool:
        return any(stage.waits for stage in self.stages)


@torch.no_grad()
def listing_of(net: nn.Module, x: Any, readout: bool = True) -> Listing:
    """The stages of ``net`` for inputs like x.

    Args:
        readout: must the network end in a Readout? Else it may end in neurons too.

    Raises:
        CannotLower: the network is not one chain of this package's layers from the input to a Readout, or a layer has
            no step.
    """
    net = net.net if isinstance(net, FrozenNetwork) else net
    x = x[:1]
    network = copy.deepcopy(lower(net, x.gain if isinstance(x, SpikeTrain) else 1.0))
    names = {INPUT: "input"}
    stages: list[Stage] = []

    def watch(number: int, x: Any, y: Any) -> None:
        layer = network.stages[number]
        if layer.analog:
            raise CannotLower(layer.name, "it is analog, and has no spikes")
        if layer.gate == "resu":
            raise CannotLower(layer.name, 'its gate "resu" needs the end of the window, so it has no step')
        if layer.kind in FORMS or (layer.kind == "flatten" and len(x.shape) <= 2):
            names[number] = names[layer.input]
            return
        names[number] = _identifier(layer.name or "layer", {*names.values(), "output"})
        fires = isinstance(y, SpikeTrain) and layer.kind in ("layer", "average")
        residual = None if layer.residual == ABSENT else names[layer.residual]
        shapes = tuple(x.shape[1:]), tuple(y.shape[1 if layer.fires else 2 :])  # currents are [T, B, *features]
        stages.append(Stage(names[number], layer, names[layer.input], residual, fires, *shapes, network.depths[number]))

    network(x, watch)
    last = stages[-1] if stages else None
    if last is None or not (last.layer.kind == "readout" or (not readout and last.fires)):
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
