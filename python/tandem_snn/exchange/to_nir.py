"""to_nir: a network as a graph of the Neuromorphic Intermediate Representation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tandem_ext.functional.neuron import over_inputs

from ..errors import extra
from ..frozen.stages import CannotLower
from .listing import Listing, Stage, listing_of

FORMS = ("IF", "primitives")


def to_nir(net: nn.Module, x: Any, *, neurons: str = "IF", dt: float = 1.0) -> Any:
    """A NIR graph of the network's evaluation, for inputs shaped like x.

    The input of each time step is the image (direct encoding), the image once and then zeros (zero expand), or the
    step's spikes. The output of a step is its share of the readout: the sum over T steps is the network's answer.
    Gains, batch norm, per-channel thresholds and the bias of a step (bias/T) are folded into weights and biases;
    adaptive pooling becomes pooling over windows.

    NIR's IF resets to ``v_reset`` (since nir 1.0.8; older versions subtract the threshold), so the reset by subtraction
    is written in one of two ways:

    * ``neurons="IF"``: IF and LIF nodes with the metadata ``reset = "subtract"``. Chips and simulators know these
      nodes; use a tool that subtracts, or map the nodes to neurons that do.
    * ``neurons="primitives"``: an IF neuron as a loop of an integrator (I; LI with a leak), a Threshold, and a Scale
      that returns -ϑ to the integrator one step later. It means the same in every tool that runs recurrent graphs.

    Neurons with timing "window" integrate T steps and fire in the next T. They are IF nodes with the metadata
    ``timing = "window"`` and, if it is not zero, ``v_init``. With such neurons in the network, every IF node has a
    ``phase``: the number of windows by which its input is delayed. A reader that works layer by layer sums the currents
    of T steps, then runs the node T times without input.

    Args:
        net: a network of layers of ``tandem_snn.nn``, or a frozen one.
        x: a batch of inputs, for the shapes.
        neurons: "IF" or "primitives".
        dt: the length of a time step, in the unit of the time constants: an IF node has r = 1/dt.

    Returns:
        A ``nir.NIRGraph``; ``nir.write(path, graph)`` writes the file.

    Raises:
        CannotLower: maximum pooling, one-sided padding, an initial potential in the form "IF" (or with a leak), timing
            "window" as primitives, layers that are not a chain to the Readout. It is a ValueError that names the layer.
        UserError: the package nir is not installed.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> sorted(to_nir(net, torch.rand(1, 4)).nodes)
    ['input', 'n1', 'n1_neurons', 'n2', 'output']
    """
    if neurons not in FORMS:
        raise ValueError(f"neurons: expected one of {', '.join(map(repr, FORMS))}, got {neurons!r}")
    if not dt > 0:
        raise ValueError(f"dt: expected a positive number, got {dt}")
    return _Writer(listing_of(net, x), neurons, dt).graph()


class _Writer:
    def __init__(self, network: Listing, form: str, dt: float) -> None:
        self.nir = extra("nir", "the export to NIR")
        self.network = network
        self.form, self.dt = form, dt
        self.taken = {"input", "output", *(stage.name for stage in network.stages)}
        self.nodes: dict[str, Any] = {"input": self.nir.Input({"input": np.array(network.shape)})}
        self.edges: list[tuple[str, str]] = []
        self.result = {"input": "input"}  # the node of each stage's result

    def graph(self) -> Any:
        for stage in self.network.stages:
            self._write(stage)
        last = self.network.stages[-1]
        self.nodes["output"] = self.nir.Output({"output": np.array(last.shape)})
        self.edges.append((self.result[last.name], "output"))
        facts = {"producer": "tandem_snn", "T": self.network.T, "dt": self.dt, "input": self.network.mode}
        if self.network.waits:  # the answer comes ``phase`` windows later
            facts |= {"timing": "window", "phase": last.depth}
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=facts)

    def _write(self, stage: Stage) -> None:
        kind, source = stage.layer.kind, self.result[stage.x]
        if kind in ("layer", "readout"):
            name = self._add(stage.name, self._synapses(stage), source)
            self.result[stage.name] = self._neurons(stage, name) if stage.fires else name
        elif kind == "flatten":
            node = self.nir.Flatten({"input": np.array(stage.in_shape)}, *self._flattened(stage))
            self.result[stage.name] = self._add(stage.name, node, source)
        elif kind in ("average", "mean", "adaptive_mean"):
            self._average(stage, source)
        else:
            raise CannotLower(stage.name, "NIR has no MaxPool2d: use AvgPool2d or strides")

    def _add(self, name: str, node: Any, *sources: str) -> str:
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def _free(self, name: str) -> str:
        """A name for a further node of a stage, different from all stages' names."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _flattened(self, stage: Stage) -> tuple[int, int]:
        """Dimensions counted from the end: readers disagree on whether positive numbers count the batch."""
        start, end, dims = stage.layer.first, stage.layer.last, len(stage.in_shape) + 1
        return start % dims - dims, end % dims - dims

    def _folded(self, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
        """Weights and the bias of one step."""
        layer = stage.layer
        weight = layer.real_weight().to(torch.float32, copy=True) * layer.gain  # a copy: the network may train on
        if layer.scale is not None:
            weight *= over_inputs(layer.scale, weight)
        shift = torch.zeros(len(weight)) if layer.shift is None else layer.shift.detach().float() / self.network.T
        return weight.cpu().numpy(), shift.cpu().numpy()

    def _synapses(self, stage: Stage) -> Any:
        layer, (weight, bias) = stage.layer, self._folded(stage)
        if layer.axes == 0:
            return self.nir.Affine(weight, bias)
        weight = _without_groups(weight, layer.groups)
        padding = _padding(stage)
        if layer.axes == 1:
            (size,), stride, dilation = stage.in_shape[1:], layer.stride[1], layer.dilation[1]
            return self.nir.Conv1d(size, weight, stride, padding[1], dilation, 1, bias)
        return self.nir.Conv2d(stage.in_shape[1:], weight, layer.stride, padding, layer.dilation, 1, bias)

    def _average(self, stage: Stage, source: str) -> None:
        layer = stage.layer
        if layer.kind == "adaptive_mean":
            kernel = tuple(size // out for size, out in zip(stage.in_shape[1:], stage.shape[1:], strict=True))
            if any(size % out for size, out in zip(stage.in_shape[1:], stage.shape[1:], strict=True)):
                raise CannotLower(stage.name, "adaptive pooling with windows of different sizes")
            windows: tuple[Any, ...] = (kernel, kernel, (0, 0))
        else:
            windows = (layer.kernel, layer.stride, layer.padding)
        node = self.nir.AvgPool2d(*(np.array(value) for value in windows))
        node.input_type, node.output_type = {"input": np.array(stage.in_shape)}, {"output": np.array(stage.shape)}
        name = self._add(stage.name, node, source)
        if stage.fires:
            name = self._neurons(stage, name)
        elif layer.scale is not None or layer.gain != 1.0:
            each = torch.tensor(layer.gain) if layer.scale is None else layer.scale
            gain = self.nir.Scale(_full(stage.shape, each))
            name = self._add(self._free(f"{name}_gain"), gain, name)
        self.result[stage.name] = name

    def _neurons(self, stage: Stage, currents: str) -> str:
        sources = [currents]
        if stage.residual is not None:
            residual = self.result[stage.residual]
            if stage.layer.residual_scale is not None:
                scale = self.nir.Scale(_full(stage.shape, stage.layer.residual_scale))
                residual = self._add(self._free(f"{stage.name}_shortcut"), scale, residual)
            sources.append(residual)
        v_init = stage.layer.v_init
        starts_at_zero = v_init is None or not bool(v_init.any())
        if stage.waits and self.form != "IF":
            raise CannotLower(
                stage.name, 'timing "window" needs a clock, which primitives do not have: use neurons="IF"'
            )
        if not starts_at_zero and not stage.waits and (self.form == "IF" or stage.layer.leak < 1):
            raise CannotLower(
                stage.name,
                "NIR's neurons start at potential 0: set v_init=0"
                + (', or use neurons="primitives"' if stage.layer.leak == 1 else ""),
            )
        if self.form == "IF":
            return self._add(self._free(f"{stage.name}_neurons"), self._if(stage), *sources)
        # With u = v - v_init the potential starts at 0 and the threshold is ϑ - v_init.
        above = torch.tensor(stage.layer.threshold) - (0 if v_init is None else v_init)
        potential, spikes, reset = (self._free(f"{stage.name}_{part}") for part in ("potential", "spikes", "reset"))
        self._add(potential, self._integrator(stage), *sources, reset)
        self._add(spikes, self.nir.Threshold(_full(stage.shape, above)), potential)
        self._add(reset, self.nir.Scale(_full(stage.shape, torch.tensor(-stage.layer.threshold))), spikes)
        return spikes

    def _if(self, stage: Stage) -> Any:
        facts: dict[str, Any] = {"reset": "subtract", "fires": "v >= v_threshold"}
        if self.network.waits:
            facts |= {"timing": stage.layer.timing, "phase": stage.depth}
        if stage.waits and stage.layer.v_init is not None and bool(stage.layer.v_init.any()):
            facts["v_init"] = _full(stage.shape, stage.layer.v_init)
        zeros, threshold = np.zeros(stage.shape, np.float32), np.full(stage.shape, stage.layer.threshold, np.float32)
        if stage.layer.leak == 1.0:
            return self.nir.IF(zeros + np.float32(1 / self.dt), threshold, zeros.copy(), metadata=facts)
        tau, r = self._leak(stage)
        return self.nir.LIF(tau, r, zeros, threshold, zeros.copy(), metadata=facts)

    def _integrator(self, stage: Stage) -> Any:
        if stage.layer.leak == 1.0:
            return self.nir.I(np.full(stage.shape, 1 / self.dt, np.float32))
        tau, r = self._leak(stage)
        return self.nir.LI(tau, r, np.zeros(stage.shape, np.float32))

    def _leak(self, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
        """tau and r for which a step of length dt is v = λv + I."""
        lost = 1.0 - stage.layer.leak
        return np.full(stage.shape, self.dt / lost), np.full(stage.shape, 1.0 / lost)


def _without_groups(weight: np.ndarray, groups: int) -> np.ndarray:
    """The kernel of one group, with zeros between the groups: nir 1.0.8's type check ignores groups."""
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    dense = np.zeros((weight.shape[0], inputs * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense


def _padding(stage: Stage) -> tuple[int, ...]:
    if any(stage.layer.after):
        raise CannotLower(stage.name, "padding that is not the same on both sides: use an odd kernel")
    return tuple(stage.layer.padding)


def _full(shape: tuple[int, ...], values: Tensor) -> np.ndarray:
    """One value for all, one per channel, or one per neuron, as an array of the neurons' shape."""
    values = values.detach().float().cpu()
    if values.dim() == 1 and len(shape) > 1:
        values = values.view(-1, *[1] * (len(shape) - 1))
    return np.ascontiguousarray(values.expand(shape).numpy())
