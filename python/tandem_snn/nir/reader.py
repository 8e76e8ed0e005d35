"""Read a NIR graph node by node: layers of tandem_snn.nn, and currents between them."""

from __future__ import annotations

import keyword
import math
import re
from dataclasses import dataclass, replace
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from tandem_ext import checks
from tandem_ext.functional.neuron import over_inputs

from .. import nn as tnn
from ..convert.graph import NewGraph
from ..convert.layers import layer_of
from ..nn import general
from ..nn.currents import currents_of
from ..nn.signals import effective_counts
from .values import by_channel, compact, near_one, numbers, per_channel, plain, tensor, uniform, with_arrays

_SPIKING = (tnn.Linear, tnn.Conv1d, tnn.Conv2d)
_ONE = torch.ones(())


@dataclass(frozen=True)
class Neuron:
    """A neuron with the step v ← v + factor·I + offset;  spike = v ≥ ϑ;  v ← λ·v − ϑ·spike.

    ``threshold``, ``v_init`` and ``offset`` have a value for each neuron, or are numbers.
    """

    threshold: Tensor
    leak: float
    v_init: float | Tensor
    factor: float
    offset: float | Tensor = 0.0
    timing: str = "step"

    def leaks_its_reset(self) -> Neuron:
        """Return the equivalent of a neuron whose step is v ← λ·v + I;  spike = v ≥ ϑ;  v ← v − ϑ·spike.

        In that neuron the next leak also reduces the reset, so that only λϑ is subtracted. With a = (1 − λ)ϑ and
        u = v − a, it is our neuron with threshold λϑ, an additional current (λ − 1)a at each step, and the initial
        potential λ(v_init − a).

        >>> neuron = Neuron(torch.ones(()), leak=0.5, v_init=0.0, factor=1.0).leaks_its_reset()
        >>> neuron.threshold, neuron.v_init, neuron.offset
        (tensor(0.5000), tensor(-0.2500), tensor(-0.2500))
        """
        a = (1 - self.leak) * self.threshold
        v_init, offset = self.leak * (self.v_init - a), self.offset - (1 - self.leak) * a
        return replace(self, threshold=self.leak * self.threshold, v_init=v_init, offset=offset)


@dataclass
class _Signal:
    """The output of a module, times the Scale nodes after it.

    ``kind``: "spikes"; "image", numbers before the first spikes; "counts", numbers for the readout; "currents".
    """

    node: fx.Node
    kind: str
    scale: Tensor = _ONE

    @property
    def unscaled(self) -> bool:
        return not self.scale.dim() and bool(self.scale == 1)


@dataclass
class _Synapses:
    """A convolution or affine map whose neurons have not been read yet. ``nir`` has the geometry, bias is per step."""

    name: str
    nir: Any
    x: _Signal
    weight: Tensor
    bias: Tensor

    def times(self, factor: float | Tensor) -> _Synapses:
        """Return these synapses with weights and bias multiplied by a factor, or by a factor per channel."""
        rows = over_inputs(factor, self.weight) if isinstance(factor, Tensor) else factor
        return replace(self, weight=self.weight * rows, bias=self.bias * factor)


@dataclass
class _Pool:
    """Average or sum pooling, which neurons may follow. ``times``: how many means the pooled values are, 1 or k²."""

    name: str
    nir: Any
    x: _Signal
    times: int


class Reader(NewGraph):
    def __init__(self, nir: Any, graph: Any, encoder: tnn.Encoder, dt: float, reset: str | None) -> None:
        super().__init__()
        self.root["encoder"] = encoder
        self.nir, self.dt, self.reset, self.encoder = nir, dt, reset, encoder
        self.nodes = {name: with_arrays(node) for name, node in graph.nodes.items()}
        self.edges = list(dict.fromkeys(graph.edges))
        self.values: dict[str, Any] = {}
        self.timings: dict[str, str] = {}  # of currents, by the nodes that make them: that of the neurons they reach
        self.shape: tuple[int, ...] = ()  # [*features] of the input

    def read(self) -> fx.GraphModule:
        name = ""
        try:
            order = list(TopologicalSorter({name: self._sources(name) for name in self.nodes}).static_order())
            neurons = (self.nir.IF, self.nir.LIF)
            for name in reversed(order):
                readers = [b for a, b in self.edges if a == name]
                for b in readers:
                    timing = _timing(self.nodes[b]) if isinstance(self.nodes[b], neurons) else self.timings.get(b)
                    if timing is not None:
                        self.timings[name] = timing if self.timings.get(name, timing) == timing else "step"
            for name in order:
                self._import(name, self.nodes[name])
        except CycleError as error:
            raise ValueError(f"nodes {error.args[1]}: recurrent connections are not supported") from error
        # a file may have arrays of any shape and type
        except (ArithmeticError, AttributeError, LookupError, TypeError, RuntimeError) as error:
            raise ValueError(f"node {name!r}: {type(error).__name__}: {error}") from error
        network = self.network("FromNIR")
        network.meta["shapes"] = (self.shape,)
        return network

    def _sources(self, name: str) -> list[str]:
        return [a for a, b in self.edges if b == name]

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _import(self, name: str, node: Any) -> None:
        nir, values = self.nir, [self.values[source] for source in self._sources(name)]
        if isinstance(node, nir.Input):
            self.shape = tuple(int(size) for size in np.ravel(node.input_type["input"]))
            encoded = self.graph.call_module("encoder", (self.graph.placeholder("x"),))
            self.values[name] = _Signal(encoded, "spikes" if self.encoder.mode == "events" else "image")
            return
        if not values:
            raise ValueError(f"node {name!r}: it has no input")
        if isinstance(node, (nir.IF, nir.LIF)):
            self.values[name] = _Signal(self._neurons(name, self._neuron(name, node), values), "spikes")
            return
        x = values[0] if len(values) == 1 else _Signal(self._sum(values), "currents")
        if isinstance(node, nir.Output):
            self.graph.output(self._answer(name, x))
            return
        if isinstance(node, nir.Scale) and isinstance(x, _Synapses):
            scale = by_channel(tensor(node.scale))
            if scale is not None:
                self.values[name] = x.times(scale)
                return
        x = self._signal(name, x)
        if x.kind == "image":  # pool it once, though several nodes may read it
            self.values[self._sources(name)[0]] = x
        if isinstance(node, (nir.Conv1d, nir.Conv2d, nir.Affine, nir.Linear)):
            self.values[name] = self._synapses(name, node, x)
        elif isinstance(node, (nir.AvgPool2d, nir.SumPool2d)):
            times = 1 if isinstance(node, nir.AvgPool2d) else math.prod(_pool(node).kernel_size)
            self.values[name] = _Pool(name, node, x, times)
        elif isinstance(node, nir.Flatten):
            self.values[name] = self._flatten(name, node, x)
        elif isinstance(node, nir.Scale):
            self.values[name] = replace(x, scale=compact(x.scale * tensor(node.scale)))
        else:
            raise ValueError(f"node {name!r}: {type(node).__name__} has no counterpart in tandem_snn.nn")

    def _neuron(self, name: str, node: Any) -> Neuron:
        """Return the neuron of an IF or LIF node; its timing and initial potential are metadata that to_nir writes."""
        if (self.reset or plain(node.metadata.get("reset"))) != "subtract":
            raise ValueError(
                f"node {name!r}: {type(node).__name__} resets to v_reset (nir 1.0.8), where these layers subtract "
                'the threshold: give reset="subtract" if that is what the graph means'
            )
        timing, v_init = _timing(node), node.metadata.get("v_init")
        if timing not in checks.TIMINGS or (timing == "window" and isinstance(node, self.nir.LIF)):
            raise ValueError(f"node {name!r}: {type(node).__name__} with timing {timing!r:.80} has no counterpart")
        if v_init is not None and np.shape(v_init) != np.shape(node.v_threshold):
            raise ValueError(f"node {name!r}: v_init: expected the shape of its neurons")
        factor, leak = self._dynamics(name, node)
        start = 0.0 if v_init is None else tensor(v_init)
        neuron = Neuron(tensor(node.v_threshold), leak, start, factor, timing=timing)
        leaks_first = plain(node.metadata.get("leak", "")).startswith("before the reset")
        return neuron if leak == 1 or leaks_first else neuron.leaks_its_reset()

    def _dynamics(self, name: str, node: Any) -> tuple[float, float]:
        """Return (factor of the input current, leak) of one step of an IF or LIF node."""
        if isinstance(node, self.nir.IF):
            return near_one(uniform(name, "r", node.r) * self.dt), 1.0
        if np.any(node.v_leak != 0):
            raise ValueError(f"node {name!r}: v_leak: expected 0")
        share = self.dt / uniform(name, "tau", node.tau)
        if not 0 < share < 1:
            raise ValueError(f"node {name!r}: tau must exceed the time step dt = {self.dt:g}")
        return near_one(uniform(name, "r", node.r) * share), 1 - share

    def _answer(self, name: str, x: Any) -> fx.Node:
        x = self._signal(name, x)
        if x.kind == "image":
            raise ValueError(f"node {name!r}: nothing in the graph is a neuron or a synapse")
        if x.unscaled and x.kind != "currents":
            return x.node
        return self.function(effective_counts, (self._currents(x),))

    def _signal(self, name: str, x: Any) -> _Signal:
        """Return x for a node that is not neurons; pooling or synapses in x then have no neurons."""
        if isinstance(x, _Signal):
            return x
        image = x.x.kind == "image"  # a pooled image is an image
        way = name in self.timings or x.x.kind == "currents"
        if isinstance(x, _Pool):
            if not x.x.scale.dim() and (image or not way):
                node = self.module(x.name, _pool(x.nir, spiking=image), x.x.node)
                return _Signal(node, "image" if image else "counts", x.times * x.x.scale)
        elif x.weight.dim() != 3 and not way:
            return _Signal(
                self.module(x.name, self._layer(x, tnn.Readout, None, tnn.ReadoutConv2d), x.x.node), "counts"
            )
        return _Signal(self._currents(x), "currents")

    # --- currents -----------------------------------------------------------------------------------------------------

    def _currents(self, x: Any) -> fx.Node:
        if isinstance(x, _Signal):
            if x.unscaled:
                return x.node
            scale, rows = x.scale, x.scale.flatten(1) if x.scale.dim() > 1 else x.scale.view(-1, 1)
            if bool((rows == rows[:, :1]).all()):  # one for each channel, which can be frozen
                scale = rows[:, 0].view(-1, *[1] * (scale.dim() - 1))
            return self.function(general.scaled, (x.node, self.get("scale", scale)))
        if isinstance(x, _Pool):
            given = self.function(currents_of, (self._currents(x.x),))
            mean = self.module(x.name, _pool(x.nir, spiking=False), given)
            return mean if x.times == 1 else self.function(general.scaled, (mean, float(x.times)))
        layer = self._layer(x, *_SPIKING, timing=self.timings.get(x.name, "step"), neurons=False)
        return self.module(x.name, layer, x.x.node)

    def _sum(self, values: list[Any]) -> fx.Node:
        currents = [self._currents(value) for value in values]
        return reduce(lambda a, b: self.function(general.add, (a, b)), currents)

    def _layer(self, path: _Synapses, *classes: Any, **options: Any) -> Any:
        """Make a layer with these synapses: the first class if they are dense, else the class for their dimensions."""
        names = ("stride", "padding", "dilation", "groups") if path.weight.dim() > 2 else ()
        sizes = {name: numbers(getattr(path.nir, name)) for name in names}
        weight, bias = nn.Parameter(path.weight), nn.Parameter(path.bias * self.encoder.T)
        layer = layer_of(classes[weight.dim() - 2], weight, bias, sizes)
        for name, value in options.items():
            setattr(layer, name, value)
        return layer

    def _flatten(self, name: str, node: Any, x: _Signal) -> _Signal:
        start, end = int(node.start_dim), int(node.end_dim)
        scale = x.scale.flatten(start, end) if x.scale.dim() else x.scale
        start, end = (d + 1 if d >= 0 else d for d in (start, end))
        return _Signal(self.module(name, tnn.Flatten(start, end), x.node), x.kind, scale)

    def _synapses(self, name: str, node: Any, x: _Signal) -> _Synapses:
        weight = tensor(node.weight)
        bias = tensor(node.bias) if hasattr(node, "bias") else torch.zeros(len(weight))
        affine = isinstance(node, (self.nir.Affine, self.nir.Linear))
        if affine and weight.dim() != 2:
            raise ValueError(f"node {name!r}: weight: expected 2 dimensions, got {weight.dim()}")
        scale = x.scale if affine else by_channel(x.scale)
        if isinstance(scale, Tensor) and not affine:
            scale = over_inputs(scale, weight[0]) if int(node.groups) == 1 else None
        if scale is None:
            return _Synapses(name, node, _Signal(self._currents(x), "currents"), weight, bias)
        return _Synapses(name, node, x, weight * scale, bias)

    def _neurons(self, name: str, neurons: Neuron, values: list[Any]) -> fx.Node:
        fused = self._pooled(name, neurons, values) or self._fused(name, neurons, values)
        if fused is not None:
            return fused
        currents = self._sum(values)
        if neurons.factor != 1:
            currents = self.function(general.scaled, (currents, neurons.factor))
        v_init = per_channel(name, "the initial potential", neurons.v_init)
        threshold = per_channel(name, "v_threshold", neurons.threshold)
        offset = per_channel(name, "the current of the reset", neurons.offset)
        options: Any = {"leak": neurons.leak, "timing": neurons.timing, "gain": 1.0, "gate": "relu", "v_init": v_init}
        layer = tnn.Neurons(**options)
        layer.threshold = threshold
        if bool(torch.as_tensor(offset).any()):
            layer.bias = nn.Parameter(torch.as_tensor(offset) * self.encoder.T)
        return self.module(name, layer, currents)

    def _fused(self, name: str, neurons: Neuron, values: list[Any]) -> fx.Node | None:
        """Make one layer of neurons, their synapses, and at most one shortcut or projection; None if impossible."""
        paths = [value for value in values if isinstance(value, _Synapses) and value.x.kind in ("image", "spikes")]
        shortcuts = [value for value in values if isinstance(value, _Signal) and value.kind == "spikes"]
        if not paths or len(paths) + len(shortcuts) != len(values) or len(values) > 2:
            return None
        unit: float | Tensor | None = 1.0
        if shortcuts:  # their spikes have the value 1, so the potential is in units of their scale
            unit = by_channel(neurons.factor * shortcuts[0].scale)
            if unit is None or not bool((torch.as_tensor(unit) > 0).all()):
                return None
        over = unit if isinstance(unit, float) else unit.view(-1, *[1] * (torch.as_tensor(neurons.threshold).dim() - 1))  # type: ignore[union-attr]
        threshold = per_channel(name, "v_threshold", neurons.threshold / over)
        checks.threshold(threshold, len(paths[0].weight))
        keywords: dict[str, Any] = {}
        if len(paths) == 2:
            layer = self._layer(paths[1].times(neurons.factor), *_SPIKING, timing=neurons.timing)
            layer.neurons = False
            keywords["residual"] = self.module(f"{name}_shortcut", layer, paths[1].x.node)
        elif shortcuts:
            keywords["residual"] = shortcuts[0].node
        options: dict[str, Any] = {"threshold": threshold, "leak": neurons.leak, "timing": neurons.timing, "gain": 1.0}
        if neurons.timing == "window" or torch.as_tensor(neurons.v_init).any():
            options["v_init"] = neurons.v_init / over
        path = paths[0].times(neurons.factor / unit)  # type: ignore[operator]
        path.bias = path.bias + per_channel(name, "the current of the reset", neurons.offset / over)
        return self.module(name, self._layer(path, *_SPIKING, **options), path.x.node, **keywords)

    def _pooled(self, name: str, neurons: Neuron, values: list[Any]) -> fx.Node | None:
        """Make spiking average pooling, if the spikes have the value 1."""
        pool, *others = values
        if others or not isinstance(pool, _Pool) or pool.x.kind != "spikes" or not pool.x.unscaled:
            return None
        if neurons.factor != 1 or neurons.leak != 1 or not torch.as_tensor(neurons.threshold).eq(pool.times).all():
            return None
        v_init = uniform(name, "the initial potential", neurons.v_init) / pool.times
        pooling = _pool(pool.nir, spiking=True, v_init=v_init, timing=neurons.timing)
        return self.module(name, pooling, pool.x.node)

    def named(self, name: str, value: Any) -> str:
        """Store ``value`` under a valid name that is new, since torch.fx writes names into source code."""
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not name.isidentifier() or keyword.iskeyword(name):
            name = f"_{name}"
        while name in self.root or hasattr(fx.GraphModule, name):
            name += "_"
        return super().named(name, value)


def _timing(neurons: Any) -> Any:
    return plain(neurons.metadata.get("timing", "step"))


def _pool(node: Any, **options: Any) -> tnn.AvgPool2d:
    return tnn.AvgPool2d(*(numbers(v) for v in (node.kernel_size, node.stride, node.padding)), **options)
