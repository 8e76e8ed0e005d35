"""from_nir: a graph of the Neuromorphic Intermediate Representation as a network of our layers."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tandem_ext import checks
from tandem_ext.functional.neuron import over_inputs

from .. import nn as tnn
from ..errors import extra
from .nir_file import compact, near_one, numbers, per_channel, plain, read_nir, tensor, uniform

HARD_RESET_SINCE = (1, 0, 8)


def from_nir(
    graph: Any, T: int | None = None, *, mode: str | None = None, dt: float | None = None, reset: str | None = None
) -> fx.GraphModule:
    """A spiking network from a NIR graph of Conv1d, Conv2d, Affine, Linear, AvgPool2d, Flatten, Scale, IF and LIF, or
    of the loops of primitives that :func:`to_nir` writes for IF and LIF.

    The network runs T steps and returns the sum of the graph's output over them, or the spike train if the graph ends
    in neurons. The bias of a layer is T times the bias of a step; Scale nodes are folded into weights and thresholds. A
    graph from :func:`to_nir` gives the same spikes, except for rounding by factors that are not powers of two.

    Args:
        graph: a ``nir.NIRGraph`` or the path of a file.
        T: the number of time steps; None: from the metadata, if :func:`to_nir` wrote the graph.
        mode: of the encoder; None: from the metadata, else "direct".
        dt: the length of a time step in the unit of the graph's time constants; None: from the metadata, else 1.
        reset: "subtract": IF and LIF nodes subtract their threshold. None: as the nodes' metadata say; files of nir
            before 1.0.8 meant subtraction.

    Raises:
        UserError: a file that cannot be read; the package nir is not installed.
        ValueError: a node is not supported, above all neurons that reset to a value; the message names it.

    >>> from tandem_snn import to_nir
    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> x = torch.rand(2, 4)
    >>> torch.allclose(from_nir(to_nir(net, x))(x), net(x))
    True
    """
    nir = extra("nir", "the import of NIR")
    if reset not in (None, "subtract"):
        raise ValueError(f"reset: expected None or 'subtract', the only reset of these layers, got {reset!r}")
    if isinstance(graph, (str, PathLike)):
        graph, version = read_nir(Path(graph))
        if version < HARD_RESET_SINCE:
            reset = "subtract"
    facts = {} if graph.metadata is dict else {key: plain(value) for key, value in graph.metadata.items()}
    T = facts.get("T") if T is None else T
    if T is None:
        raise ValueError("T: give the number of time steps: the graph does not say it")
    encoder = tnn.Encoder(int(T), mode or facts.get("input", "direct"))
    return _Importer(nir, graph, encoder, float(dt or facts.get("dt", 1.0)), reset).network()


@dataclass
class _Signal:
    """A module's output, times the Scale nodes after it: one factor for all, or an array of its shape.

    kind: "spikes"; "image", real numbers before the first spikes; or "counts", real numbers for the readout.
    """

    node: fx.Node
    kind: str
    scale: Tensor | None = None


@dataclass
class _Synapses:
    """A convolution or affine map, with the bias of a step, before its neurons are read. ``nir`` has the geometry."""

    name: str
    nir: Any
    x: _Signal
    weight: Tensor
    bias: Tensor

    def times(self, factor: float | Tensor) -> _Synapses:
        """The same map with currents times a factor, or a factor per channel."""
        rows = over_inputs(factor, self.weight) if isinstance(factor, Tensor) else factor
        return replace(self, weight=self.weight * rows, bias=self.bias * factor)


@dataclass
class _Average:
    """A pooling that may have neurons."""

    name: str
    nir: Any
    x: _Signal


@dataclass
class _Neurons:
    """A neuron in any of NIR's forms: v = leak·v + factor·I, fires at ϑ and subtracts ϑ, with our timing."""

    threshold: Tensor
    factor: float
    leak: float = 1.0
    v_init: Tensor | None = None
    timing: str = "step"


class _Importer:
    def __init__(self, nir: Any, graph: Any, encoder: tnn.Encoder, dt: float, reset: str | None) -> None:
        self.nir, self.dt, self.reset, self.encoder = nir, dt, reset, encoder
        self.nodes, self.edges = dict(graph.nodes), list(dict.fromkeys(graph.edges))
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {"encoder": encoder}
        self.values: dict[str, Any] = {}

    def network(self) -> fx.GraphModule:
        name = ""
        try:
            for name, node in list(self.nodes.items()):
                if isinstance(node, self.nir.Threshold):
                    self._collapse(name, node)
            for name in self._order():
                self._import(name, self.nodes[name])
        except (ArithmeticError, AttributeError, LookupError, TypeError, RuntimeError) as error:  # arrays of any kind
            raise ValueError(f"node {name!r}: {type(error).__name__}: {error}") from error
        return fx.GraphModule(self.root, self.graph, "FromNIR")

    def _sources(self, name: str) -> list[str]:
        return [a for a, b in self.edges if b == name]

    def _collapse(self, name: str, threshold: Any) -> None:
        """Replaces the loop integrator -> Threshold -> Scale -> integrator by one node under the Threshold's name."""
        (integrator,) = self._sources(name) or [""]
        loops = [b for a, b in self.edges if a == name and (b, integrator) in self.edges]
        node = self.nodes.get(integrator)
        if len(loops) != 1 or not isinstance(self.nodes[loops[0]], self.nir.Scale) or node is None:
            raise ValueError(f"node {name!r}: a Threshold without the loop that makes it a neuron")
        theta = tensor(-self.nodes[loops[0]].scale)
        factor, leak = self._dynamics(integrator, node)
        self.nodes[name] = _Neurons(theta, factor, leak, theta - tensor(threshold.threshold))
        inside = {integrator, loops[0]}
        self.edges = [
            (a, name if b == integrator else b)
            for a, b in self.edges
            if a not in inside and not (a == name and b in inside)
        ]
        for gone in inside:
            del self.nodes[gone]

    def _dynamics(self, name: str, node: Any) -> tuple[float, float]:
        """(factor of the input, leak) of a step, of I, IF, LI and LIF alike."""
        if isinstance(node, (self.nir.I, self.nir.IF)):
            return near_one(uniform(name, "r", node.r) * self.dt), 1.0
        if isinstance(node, (self.nir.LI, self.nir.LIF)):
            if np.any(node.v_leak != 0):
                raise ValueError(f"node {name!r}: v_leak other than 0")
            share = self.dt / uniform(name, "tau", node.tau)
            if not 0 < share < 1:
                raise ValueError(f"node {name!r}: tau must exceed the time step dt = {self.dt:g}")
            return near_one(uniform(name, "r", node.r) * share), 1 - share
        raise ValueError(f"node {name!r}: {type(node).__name__} before a Threshold")

    def _order(self) -> list[str]:
        try:
            return list(TopologicalSorter({name: self._sources(name) for name in self.nodes}).static_order())
        except CycleError as error:
            raise ValueError(f"nodes {error.args[1]}: recurrent connections are not supported") from error

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _import(self, name: str, node: Any) -> None:
        nir, values = self.nir, [self.values[source] for source in self._sources(name)]
        if isinstance(node, nir.Input):
            encoded = self.graph.call_module("encoder", (self.graph.placeholder("x"),))
            self.values[name] = _Signal(encoded, "spikes" if self.encoder.mode == "events" else "image")
            return
        if isinstance(node, (nir.IF, nir.LIF)):
            self._check_reset(name, node)
            timing, v_init = self._timing(name, node)
            node = _Neurons(tensor(node.v_threshold), *self._dynamics(name, node), v_init, timing=timing)
        if isinstance(node, _Neurons):
            self.values[name] = _Signal(self._neurons(name, node, values), "spikes")
            return
        if len(values) != 1:
            raise ValueError(f"node {name!r}: {len(values)} inputs, where only neurons have other than one")
        (x,) = values
        if isinstance(node, nir.Output):
            self.graph.output(self._answer(name, x))
            return
        if isinstance(node, nir.Scale) and isinstance(x, _Synapses):
            self.values[name] = x.times(per_channel(name, "a Scale", tensor(node.scale)))
            return
        x = self._signal(name, x)
        if x.kind == "image":  # pooled once for all who read it
            self.values[self._sources(name)[0]] = x
        if isinstance(node, (nir.Conv1d, nir.Conv2d, nir.Affine, nir.Linear)):
            self.values[name] = self._synapses(name, node, x)
        elif isinstance(node, nir.AvgPool2d):
            self.values[name] = _Average(name, node, x)
        elif isinstance(node, nir.Flatten):
            self.values[name] = self._flatten(name, node, x)
        elif isinstance(node, nir.Scale):
            scale = compact(tensor(node.scale))
            self.values[name] = replace(x, scale=scale if x.scale is None else x.scale * scale)
        else:
            raise ValueError(f"node {name!r}: {type(node).__name__} has no counterpart")

    def _check_reset(self, name: str, node: Any) -> None:
        reset = self.reset or plain(node.metadata.get("reset"))
        if reset != "subtract":
            raise ValueError(
                f"node {name!r}: {type(node).__name__} resets to v_reset (nir 1.0.8), where these layers subtract the "
                'threshold: give reset="subtract" if that is what the graph means'
            )

    def _timing(self, name: str, node: Any) -> tuple[str, Tensor | None]:
        """Timing and initial potential, which to_nir says in the metadata."""
        timing, v_init = plain(node.metadata.get("timing", "step")), node.metadata.get("v_init")
        if timing not in checks.TIMINGS or (timing == "window" and isinstance(node, self.nir.LIF)):
            raise ValueError(f"node {name!r}: {type(node).__name__} with timing {timing!r:.80} has no counterpart")
        if v_init is not None and np.shape(v_init) != np.shape(node.v_threshold):
            raise ValueError(f"node {name!r}: v_init is not of the shape of its neurons")
        return timing, None if v_init is None else tensor(v_init)

    def _answer(self, name: str, x: Any) -> fx.Node:
        if isinstance(x, _Synapses) and x.weight.dim() == 2:
            return self._readout("readout", x)
        if isinstance(x, _Signal) and x.kind == "spikes" and x.scale is None:
            return x.node
        raise ValueError(f"node {name!r}: the graph must end in an Affine or Linear node, or in neurons")

    def _signal(self, name: str, x: Any) -> _Signal:
        """x for a node that is not neurons: what waited for some goes without."""
        if isinstance(x, _Average):
            if x.x.scale is not None and x.x.scale.dim():
                raise ValueError(f"node {x.name!r}: a Scale before AvgPool2d must be the same for all neurons")
            image = x.x.kind == "image"  # pooling of an image gives an image
            node = self._call(x.name, _pool(x.nir, spiking=image), x.x.node)
            return _Signal(node, "image" if image else "counts", x.x.scale)
        if isinstance(x, _Synapses):
            if x.weight.dim() != 2:
                raise ValueError(f"node {name!r}: it follows {x.name!r}, which is not neurons")
            return _Signal(self._readout(x.name, x), "counts")
        assert isinstance(x, _Signal)
        return x

    def _readout(self, name: str, x: _Synapses) -> fx.Node:
        outputs, inputs = x.weight.shape
        readout = tnn.Readout(inputs, outputs, device="meta")
        readout.weight, readout.bias = torch.nn.Parameter(x.weight), torch.nn.Parameter(x.bias * self.encoder.T)
        return self._call(name, readout, x.x.node)

    def _flatten(self, name: str, node: Any, x: _Signal) -> _Signal:
        start, end = int(node.start_dim), int(node.end_dim)
        layer = tnn.Flatten(*(d + 1 if d >= 0 else d for d in (start, end)))
        scale = x.scale.flatten(start, end) if x.scale is not None and x.scale.dim() else x.scale
        return _Signal(self._call(name, layer, x.node), x.kind, scale)

    def _synapses(self, name: str, node: Any, x: _Signal) -> _Synapses:
        weight = tensor(node.weight)
        bias = tensor(node.bias) if hasattr(node, "bias") else torch.zeros(len(weight))
        affine = isinstance(node, (self.nir.Affine, self.nir.Linear))
        if affine and weight.dim() != 2:
            raise ValueError(f"node {name!r}: a weight of {weight.dim()} dimensions")
        if x.scale is not None:
            if x.scale.dim() > affine:
                raise ValueError(f"node {name!r}: a Scale before a convolution must be the same for all neurons")
            weight = weight * x.scale
        return _Synapses(name, node, x, weight, bias)

    def _neurons(self, name: str, neurons: _Neurons, values: list[Any]) -> fx.Node:
        paths = [value for value in values if isinstance(value, _Synapses)]
        shortcuts = [value for value in values if isinstance(value, _Signal)]
        pools = [value for value in values if isinstance(value, _Average)]
        if len(pools) == 1 and len(values) == 1:
            return self._pooled(name, neurons, pools[0])
        if len(paths) not in (1, 2) or len(paths) + len(shortcuts) != len(values) or len(values) > 2:
            raise ValueError(f"node {name!r}: neurons take one or two synaptic paths, or one and a shortcut")
        if any(path.x.kind == "counts" for path in paths) or any(shortcut.kind != "spikes" for shortcut in shortcuts):
            raise ValueError(f"node {name!r}: mean counts are for the readout alone, and a shortcut must be spikes")
        unit = torch.ones(())
        keywords: dict[str, Any] = {}
        if len(paths) == 2:
            layer = self._layer(paths[1].times(neurons.factor), timing=neurons.timing)
            keywords["residual"] = self._call(f"{name}_shortcut", layer, paths[1].x.node, fire=False)
        elif shortcuts:  # whose spikes are worth one: that is the unit of the potential
            unit = neurons.factor * (unit if shortcuts[0].scale is None else shortcuts[0].scale)
            if not bool((unit > 0).all()):
                raise ValueError(f"node {name!r}: the Scale of a shortcut must be positive")
            keywords["residual"] = shortcuts[0].node
        threshold = per_channel(name, "v_threshold", neurons.threshold / unit)
        options: dict[str, Any] = {"threshold": threshold, "leak": neurons.leak, "timing": neurons.timing}
        if neurons.v_init is not None and neurons.v_init.any():
            options["v_init"] = neurons.v_init / unit
        path = paths[0].times(neurons.factor / per_channel(name, "a Scale", unit))
        return self._call(name, self._layer(path, **options), path.x.node, **keywords)

    def _pooled(self, name: str, neurons: _Neurons, pool: _Average) -> fx.Node:
        plain = neurons.threshold.eq(1).all() and neurons.factor == 1 and neurons.leak == 1
        if not plain:
            raise ValueError(f"node {name!r}: neurons after AvgPool2d must be IF with r = 1 and threshold 1")
        if pool.x.kind != "spikes" or pool.x.scale is not None:
            raise ValueError(f"node {name!r}: AvgPool2d with neurons of something other than spikes")
        v_init = 0.0 if neurons.v_init is None else uniform(name, "the initial potential", neurons.v_init)
        pooling = _pool(pool.nir, spiking=True, v_init=v_init, timing=neurons.timing)
        return self._call(name, pooling, pool.x.node)

    def _layer(self, path: _Synapses, **options: Any) -> tnn.SpikingLayer:
        node, weight = path.nir, path.weight
        if weight.dim() == 2:
            layer: Any = tnn.Linear(weight.shape[1], weight.shape[0], **options)
        else:
            cls: Any = tnn.Conv1d if weight.dim() == 3 else tnn.Conv2d
            groups = int(node.groups)
            geometry = (numbers(node.stride), numbers(node.padding), numbers(node.dilation), groups)
            layer = cls(weight.shape[1] * groups, weight.shape[0], weight.shape[2:], *geometry, **options)
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(path.bias * self.encoder.T)
        return layer

    def _call(self, name: str, module: Any, x: fx.Node, **keywords: Any) -> fx.Node:
        name = _identifier(name, self.root)
        self.root[name] = module
        return self.graph.call_module(name, (x,), keywords)


def _identifier(name: str, taken: Mapping[str, Any]) -> str:
    """The name of a module. torch.fx writes it into the source of a program, so that nothing but a name may be in it.

    >>> _identifier('n1") + print("', {})
    'n1_____print__'
    """
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not name.isidentifier() or keyword.iskeyword(name):
        name = f"_{name}"
    while name in taken or hasattr(fx.GraphModule, name):
        name += "_"
    return name


def _pool(node: Any, **options: Any) -> tnn.AvgPool2d:
    return tnn.AvgPool2d(*(numbers(v) for v in (node.kernel_size, node.stride, node.padding)), **options)
