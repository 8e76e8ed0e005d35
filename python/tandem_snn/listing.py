"""The first step of every export: list the stages of a network in evaluation mode, with names and shapes."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain
from tandem_ext.functional.neuron import over_inputs

from .frozen import FrozenNetwork
from .frozen.instruction import ABSENT, CONVERSIONS, FIRES, INPUT, CannotLower, Instruction
from .frozen.lowering import lower, snapshot
from .frozen.stages import Stage
from .nn.currents import Currents


@dataclass
class NamedStage:
    """One stage of the list, with its name, inputs and shapes.

    Attributes:
        name: a unique identifier; of the neurons of a layer, and of what it computes before them with "_currents".
        layer: the frozen stage, a copy that the export may change.
        x, residual: the names of the stages that it reads; "input" is the input of the network.
        reads, signal: the types of its input x and its result: SpikeTrain, Currents, ConstantInput or ImpulseInput of
            an image, or Tensor.
        in_shape, shape: the shapes [*features] of its input and its result.
    """

    name: str
    layer: Stage
    x: str
    residual: str | None
    reads: type
    signal: type
    in_shape: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def instruction(self) -> Instruction:
        return self.layer.instruction

    def refusal(self, why: str) -> CannotLower:
        """Return the error that an export cannot have the stage, with the name of its layer in the network."""
        return CannotLower(self.layer.name or self.name, why)

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape [*features] of what its layer returns."""
        return self.shape if self.layer.seen is None else tuple(self.layer.seen.shape)

    @property
    def fires(self) -> bool:
        """Whether it has neurons. Layers without neurons and averages of real numbers have none."""
        return self.signal is SpikeTrain and self.instruction.kind in FIRES

    @property
    def window_timing(self) -> bool:
        """Whether it has neurons with timing "window"."""
        return self.fires and self.instruction.timing == "window"

    def folded(self, T: int) -> tuple[Tensor, Tensor]:
        """Return the weights, multiplied by gain and scale, and the bias of one step."""
        layer = self.layer
        weight = layer.real_weight().detach().to(torch.float32, copy=True) * layer.instruction.gain
        if layer.scale is not None:
            weight *= over_inputs(layer.scale, weight)
        shift = torch.zeros(len(weight)) if layer.shift is None else layer.shift.detach().float() / T
        return weight, shift

    def places(self) -> Tensor:
        """Return for each feature of a gather's result its place in the flat input in C, H, W order; -1 is 0.

        The input is that of x and the residual, joined along the channels.
        """
        i, index, pixels = self.instruction, self.layer.index, math.prod(self.in_shape[1:])
        if index is not None and not issubclass(self.reads, SpikeTrain | Currents):
            return index.long().cpu().view(self.shape)
        if i.by_channel:
            channels = torch.arange(i.channels) if index is None else index.long().cpu()
            places = channels.unsqueeze(1) * pixels + torch.arange(pixels)
            return torch.where(channels.unsqueeze(1) < 0, -1, places).view(self.shape)
        assert index is not None
        index, number = index.long().cpu(), i.channels // pixels
        places = torch.where(index < 0, -1, index % number * pixels + index // number)
        return places.view(*self.shape[1:], self.shape[0]).movedim(-1, 0)

    def pooling(self) -> tuple[tuple[int, ...], ...] | None:
        """Return kernel, stride and padding of an average; None: the kernels of its adaptive pooling differ."""
        i, sizes = self.instruction, list(zip(self.in_shape[1:], self.shape[1:], strict=True))
        if i.kind != "adaptive_mean":
            return i.kernel, i.stride, i.padding
        if any(size % out for size, out in sizes):
            return None
        kernel = tuple(size // out for size, out in sizes)
        return kernel, kernel, (0, 0)


@dataclass
class Listing:
    """All stages in order. ``mode`` is as in ``tnn.Encoder``, and ``shape`` is [*features] of the input.

    ``levels`` is the largest count of each train by its name.
    """

    stages: list[NamedStage]
    mode: str
    T: int
    shape: tuple[int, ...]
    levels: dict[str, int]

    @property
    def window_timing(self) -> bool:
        return any(stage.window_timing for stage in self.stages)

    @property
    def answers(self) -> list[NamedStage]:
        """The stages of kind "output", whose layers have the names of the answers, or the last stage."""
        return [stage for stage in self.stages if stage.instruction.kind == "output"] or self.stages[-1:]


@torch.no_grad()
def listing_of(net: nn.Module, x: Any) -> Listing:
    """List the stages of ``net``, which must end in numbers, for inputs like x."""
    net = net.net if isinstance(net, FrozenNetwork) else snapshot(net)
    inputs = [each[:1] for each in (x if isinstance(x, tuple) else (x,))]
    windows = [each.T for each in inputs if isinstance(each, SpikeTrain)]
    shapes = [tuple(each.shape[1:]) for each in inputs]
    network = copy.deepcopy(lower(net, T=next(iter(windows), None), shapes=shapes))
    names = {INPUT: "input"}
    listed: list[NamedStage] = []
    levels = dict[str, int]()
    firing = {s.name for s in network.stages if s.instruction.fires and s.instruction.kind in FIRES}

    def watch(number: int, x: Any, y: Any) -> None:
        layer = network.stages[number]
        i = layer.instruction
        if isinstance(x, SpikeTrain):
            levels.setdefault(names[i.input], x.T)
        if i.kind in CONVERSIONS or (i.kind == "flatten" and len(x.shape) <= 2):
            names[number] = names[i.input]
            return
        name, fires = layer.name or "layer", i.fires and i.kind in FIRES
        name = name if fires or layer.name not in firing else f"{name}_currents"
        names[number] = identifier(name, {*names.values(), "output"})
        residual = None if i.residual == ABSENT else names[i.residual]
        shapes = tuple(x.shape[1:]), tuple(y.shape[1:])
        listed.append(NamedStage(names[number], layer, names[i.input], residual, type(x), type(y), *shapes))
        if isinstance(y, SpikeTrain):
            levels[names[number]] = y.T

    network(*inputs, watch=watch)
    T = next(iter(windows), network.T)
    assert T is not None
    listing = Listing(listed, network.mode, T, shapes[0], levels)
    if not listed or any(stage.signal is not Tensor for stage in listing.answers):
        raise CannotLower("net", "it must end in a Readout or in mean counts")
    return listing


def identifier(name: str, taken: set[str]) -> str:
    name = name.replace(".", "_")
    name = f"n{name}" if name[0].isdigit() else name
    while name in taken:
        name += "_again"
    return name
