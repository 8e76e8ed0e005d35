"""Write a NIR graph, stage by stage."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import extra
from ..frozen.instruction import CannotLower
from ..listing import NamedStage


class Writer:
    """Builds a NIR graph.

    Attributes:
        result: for each stage, the nodes whose sum is its result.
        window_timing: whether some layer has timing "window".
    """

    def __init__(self, shape: tuple[int, ...], T: int, dt: float, window_timing: bool) -> None:
        self.nir = extra("nir", "the export to NIR")
        self.T, self.dt, self.window_timing = T, dt, window_timing
        self.taken = {"input", "output"}
        self.nodes: dict[str, Any] = {"input": self.nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.result = {"input": ["input"]}

    def graph(self, answer: list[str], shape: tuple[int, ...], mode: str) -> Any:
        self.add("output", self.nir.Output({"output": np.array(shape)}), *answer)
        metadata = {"producer": "tandem_snn", "T": self.T, "dt": self.dt, "input": mode}
        if self.window_timing:
            metadata["timing"] = "window"
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=metadata)

    def write(self, stage: NamedStage) -> None:
        kind = stage.instruction.kind
        if kind in ("layer", "readout"):
            node = self._synapses(stage)
        elif kind == "flatten":
            # negative dimensions, because tools disagree on whether positive ones count the batch
            dims = len(stage.in_shape) + 1
            first, last = (d % dims - dims for d in (stage.instruction.first, stage.instruction.last))
            node = self.nir.Flatten({"input": np.array(stage.in_shape)}, first, last)
        elif kind in ("average", "mean", "adaptive_mean"):
            node = self._average(stage)
        else:
            raise CannotLower(stage.name, "NIR has no MaxPool2d: use AvgPool2d or strides")
        name = self.add(stage.name, node, *self.result[stage.x])
        if stage.fires:
            name = self.neurons(stage, [name])
        elif kind in ("mean", "adaptive_mean") and (stage.layer.scale is not None or stage.instruction.gain != 1.0):
            gain = torch.tensor(stage.instruction.gain) if stage.layer.scale is None else stage.layer.scale
            name = self.add(self.free(f"{name}_gain"), self.nir.Scale(full(stage.shape, gain)), name)
        self.result[stage.name] = [name]

    def add(self, name: str, node: Any, *sources: str) -> str:
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def free(self, name: str) -> str:
        """Return an unused name for a further node of a stage."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _synapses(self, stage: NamedStage) -> Any:
        i, (weight, bias) = stage.instruction, (values.cpu().numpy() for values in stage.folded(self.T))
        if i.axes == 0:
            return self.nir.Affine(weight, bias)
        weight = without_groups(weight, i.groups)
        if any(i.after):
            raise CannotLower(stage.name, "padding that is not the same on both sides: use an odd kernel")
        padding: tuple[int, ...] = i.padding
        if i.axes == 1:
            (size,), stride, dilation = stage.in_shape[1:], i.stride[1], i.dilation[1]
            return self.nir.Conv1d(size, weight, stride, padding[1], dilation, 1, bias)
        weight, padding = _square(stage.name, weight, padding, i.dilation)
        return self.nir.Conv2d(stage.in_shape[1:], weight, i.stride, padding, i.dilation, 1, bias)

    def _average(self, stage: NamedStage) -> Any:
        """Return a mean, or a sum for neurons if 1/k² is no power of two: then readers would round each current."""
        layer, cls = stage.layer, self.nir.AvgPool2d
        if stage.fires and math.frexp(stage.instruction.threshold)[0] != 0.5:
            cls = self.nir.SumPool2d
        elif stage.fires:
            assert layer.v_init is not None
            layer.v_init = layer.v_init / stage.instruction.threshold
            layer.instruction = replace(stage.instruction, threshold=1.0)
        node = cls(*map(np.array, stage.pooling()))
        node.input_type, node.output_type = {"input": np.array(stage.in_shape)}, {"output": np.array(stage.shape)}
        return node

    def neurons(self, stage: NamedStage, sources: list[str]) -> str:
        """Add the neurons of a stage, which receive the currents of ``sources``; return the node of their spikes."""
        if stage.residual is not None:
            residual = self.result[stage.residual]
            if stage.layer.residual_scale is not None:
                scale = self.nir.Scale(full(stage.shape, stage.layer.residual_scale))
                residual = [self.add(self.free(f"{stage.name}_shortcut"), scale, *residual)]
            sources = sources + residual
        return self.add(self.free(f"{stage.name}_neurons"), self._if(stage), *sources)

    def _if(self, stage: NamedStage) -> Any:
        metadata: dict[str, Any] = {"reset": "subtract", "fires": "v >= v_threshold"}
        if self.window_timing:
            metadata["timing"] = stage.instruction.timing
        if stage.layer.v_init is not None and bool(stage.layer.v_init.any()):
            if not stage.window_timing:
                raise CannotLower(stage.name, "NIR's neurons start at potential 0: set v_init=0")
            metadata["v_init"] = full(stage.shape, stage.layer.v_init)
        zeros = np.zeros(stage.shape, np.float32)
        threshold = full(stage.shape, torch.as_tensor(stage.instruction.threshold))
        cls = self.nir.IF if stage.instruction.leak == 1.0 else self.nir.LIF
        if cls is self.nir.LIF:
            metadata["leak"] = "before the reset: v = (1 - dt / tau) v - v_threshold"
        return cls(**self._dynamics(stage), v_threshold=threshold, v_reset=zeros, metadata=metadata)

    def _dynamics(self, stage: NamedStage) -> dict[str, np.ndarray]:
        """Return the parameters with which a step of length dt is v = λv + I."""
        lost = 1.0 - stage.instruction.leak
        if not lost:
            return {"r": np.full(stage.shape, 1 / self.dt, np.float32)}
        tau, r = np.full(stage.shape, self.dt / lost), np.full(stage.shape, 1.0 / lost)
        return {"tau": tau, "r": r, "v_leak": np.zeros(stage.shape, np.float32)}


def without_groups(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return the kernel with one group and zeros between groups, because nir 1.0.8 ignores groups in its type check."""
    if groups == 1:
        return weight
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    dense = np.einsum("gnk...,gh->gnhk...", blocks, np.eye(groups, dtype=weight.dtype))
    return dense.reshape(len(weight), -1, *weight.shape[2:])


def _square(
    name: str, weight: np.ndarray, padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a kernel [Cout, Cin, kh, kw] made square by zeros, and its padding: nir infers shapes from kh alone."""
    missing = [max(weight.shape[2:]) - k for k in weight.shape[2:]]
    if any(m % 2 for m in missing):
        raise CannotLower(name, f"nir 1.0.8 infers a wrong shape for a kernel of {weight.shape[2]}x{weight.shape[3]}")
    around = [m // 2 for m in missing]
    wider = tuple(p + d * a for p, d, a in zip(padding, dilation, around, strict=True))
    return np.pad(weight, [(0, 0), (0, 0), *((a, a) for a in around)]), wider


def full(shape: tuple[int, ...], values: Tensor) -> np.ndarray:
    """Return one value, one per channel, or one per neuron as an array of the neurons' shape."""
    values = values.detach().float().cpu()
    if values.dim() == 1 and len(shape) > 1:
        values = values.view(-1, *[1] * (len(shape) - 1))
    return np.ascontiguousarray(values.expand(shape).numpy())
