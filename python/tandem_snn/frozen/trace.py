"""What a network does to its input, layer by layer: found by watching one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tandem_ext import SpikeTrain

from .. import nn as tnn
from ..measure.hooks import evaluating, watching

LAYERS = (
    tnn.Encoder,
    tnn.SpikingLayer,
    tnn.AvgPool2d,
    tnn.AdaptiveAvgPool2d,
    tnn.MaxPool2d,
    tnn.Flatten,
    tnn.Dropout,
    tnn.Readout,
)


class CannotLower(ValueError):
    """A network that has no program; the message says which layer and why."""


@dataclass
class Call:
    """One layer at work: what it read and what it returned."""

    name: str
    layer: Any  # one of LAYERS
    x: Any
    residual: Any
    fire: bool
    y: Any


@dataclass
class Trace:
    """The calls of a forward pass in order. ``prefix`` comes before the first spikes."""

    prefix: list[nn.Module]
    calls: list[Call]


def trace(net: nn.Module, x: Any, readout: bool = True) -> Trace:
    """Runs ``net`` on x in evaluation mode and notes its layers' calls.

    Args:
        readout: must the network end in a Readout? Else it may end in neurons too.

    Raises:
        CannotLower: something other than this package's layers works on the signals between them, or the network does
            not end as it should.
    """
    calls: list[Call] = []

    def watch(name: str, layer: nn.Module, given: Any, keywords: dict[str, Any], y: Any) -> None:
        calls.append(Call(name, layer, given, keywords.get("residual"), keywords.get("fire", True), y))

    with evaluating(net), watching(net, LAYERS, watch):
        answer = net(x)

    known = {id(x)}
    for call in calls:
        for value in (call.x, call.residual):
            if value is not None and id(value) not in known:
                raise CannotLower(f"{call.name}: its input does not come from a layer of tandem_snn.nn")
        known.add(id(call.y))
    ends = tnn.Readout if readout else (tnn.Readout, tnn.SpikingLayer)
    if not calls or not isinstance(calls[-1].layer, ends) or calls[-1].y is not answer:
        raise CannotLower("the network does not end in a Readout")

    prefix = []
    while not isinstance(calls[0].layer, tnn.Readout) and not isinstance(calls[0].y, SpikeTrain) and calls[0].fire:
        if calls[0].x is not x:
            raise CannotLower(f"{calls[0].name}: the network branches before its first spikes")
        x = calls[0].y
        prefix.append(calls.pop(0).layer)
    return Trace(prefix, calls)
