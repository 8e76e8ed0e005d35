"""Write a NIR graph, stage by stage."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import extra
from ..frozen.instruction import INPUT, CannotLower, Instruction
from ..frozen.stages import Stage
from ..listing import Listing, NamedStage
from ..nn.currents import Currents

_MOST = 1 << 22  # the largest number of weights of a product that only moves


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
        kind, x = stage.instruction.kind, self.result[stage.x]
        if kind == "input":
            raise CannotLower("net", f"it has a second input, {stage.layer.name!r}: a graph has one")
        if kind == "output":
            raise CannotLower(
                "net", f"it returns several answers, of which {stage.layer.name!r} is one: a graph has one"
            )
        if kind == "neurons":
            self.result[stage.name] = [self.neurons(stage, self._scaled(stage, x))]
            return
        if kind in ("sum", "gather"):
            self.result[stage.name] = (self._sum if kind == "sum" else self._gather)(stage, x)
            return
        if kind in ("layer", "readout"):
            node = self._synapses(stage)
        elif kind == "flatten":
            node = self._flatten(stage.in_shape, stage.instruction.first, stage.instruction.last)
        elif kind in ("average", "mean", "adaptive_mean"):
            node = self._average(stage)
        elif kind == "attention":
            raise stage.refusal("NIR has no attention")
        else:
            raise stage.refusal("NIR has no MaxPool2d: use AvgPool2d or strides")
        name = self.add(stage.name, node, *x)
        if stage.fires:
            name = self.neurons(stage, [name])
        elif kind in ("mean", "adaptive_mean") and (stage.layer.scale is not None or stage.instruction.gain != 1.0):
            gain = torch.tensor(stage.instruction.gain) if stage.layer.scale is None else stage.layer.scale
            name = self.add(self.free(f"{name}_gain"), self.nir.Scale(full(stage.shape, gain)), name)
        self.result[stage.name] = [name]

    def _scaled(self, stage: NamedStage, x: list[str]) -> list[str]:
        """Return scale * x + shift / T, of the tensors of a stage."""
        layer = stage.layer
        if layer.shift is not None:
            each = torch.ones(len(layer.shift)) if layer.scale is None else layer.scale.detach().float().cpu()
            return [self._matrix(stage, stage.name, torch.diag(each), x, layer.shift)]
        return x if layer.scale is None else [self._scale(stage, stage.name, layer.scale, x)]

    def _scale(self, stage: NamedStage, name: str, scale: Tensor, x: list[str]) -> str:
        return self.add(name, self.nir.Scale(full(stage.shape, scale)), *x)

    def _sum(self, stage: NamedStage, x: list[str]) -> list[str]:
        terms = self._scaled(stage, x)
        return terms if stage.residual is None else terms + self._residual(stage, terms)

    def _residual(self, stage: NamedStage, others: list[str]) -> list[str]:
        """Return the nodes of a residual; one that is already among its sum's nodes gets a node of its own."""
        residual, scale = self.result[str(stage.residual)], stage.layer.residual_scale
        if scale is None and set(residual) & set(others):
            scale = torch.ones(())
        return residual if scale is None else [self._scale(stage, self.free(f"{stage.name}_shortcut"), scale, residual)]

    def _matrix(self, stage: NamedStage, name: str, matrix: Tensor, x: list[str], shift: Tensor | None = None) -> str:
        """Add a product with a matrix [N, C] at each pixel."""
        if matrix.numel() > _MOST:
            raise stage.refusal(f"NIR has no node for it but one of {matrix.numel():,} weights")
        weight = matrix.view(*matrix.shape, *[1] * (len(stage.in_shape) - 1))
        layer = Stage(name, Instruction("layer", INPUT), weight=weight, shift=shift)
        return self.add(name, self._synapses(replace(stage, layer=layer)), *x)

    def _gather(self, stage: NamedStage, x: list[str]) -> list[str]:
        """Write a move of channels, or of any features of a vector, as products with 0 and 1; a view as a Flatten."""
        i, parts = stage.instruction, [x] if stage.residual is None else [x, self.result[stage.residual]]
        if i.by_channel:
            index = torch.arange(i.channels) if stage.layer.index is None else stage.layer.index.long().cpu()
            moves = (index.unsqueeze(1) == torch.arange(i.channels)).float()
            split = stage.in_shape[0]
            pieces = moves[:, :split], moves[:, split:]
            names = [stage.name, self.free(f"{stage.name}_joined")][: len(parts)]
            return [self._matrix(stage, *each) for each in zip(names, pieces, parts, strict=False)]
        places, shape = stage.places(), stage.in_shape
        count = math.prod(shape)
        if len(parts) == 1 and torch.equal(places.flatten(), torch.arange(count)):
            for first in range(len(shape)):
                for last in range(first + 1, len(shape)):
                    if (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]) == stage.shape:
                        return [self.add(stage.name, self._flatten(shape, first + 1, last + 1), *x)]
        if len(parts) > 1 or len(stage.shape) > 1:
            raise stage.refusal("NIR has no node that moves the neurons of an image")
        if len(shape) > 1:
            flat = self._flatten(shape, 1, len(shape))
            x = [self.add(self.free(f"{stage.name}_flat"), flat, *x)]
        moves = (places.unsqueeze(1) == torch.arange(count)).float()
        return [self._matrix(replace(stage, in_shape=(count,)), stage.name, moves, x)]

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

    def _flatten(self, shape: tuple[int, ...], first: int, last: int) -> Any:
        # negative dimensions, because tools disagree on whether positive ones count the batch
        dims = len(shape) + 1
        return self.nir.Flatten({"input": np.array(shape)}, *(d % dims - dims for d in (first, last)))

    def _synapses(self, stage: NamedStage) -> Any:
        i, (weight, bias) = stage.instruction, (values.cpu().numpy() for values in stage.folded(self.T))
        if i.axes == 0:
            return self.nir.Affine(weight, bias)
        weight = without_groups(weight, i.groups)
        if any(i.after):
            raise stage.refusal("padding that is not the same on both sides: use an odd kernel")
        padding: tuple[int, ...] = i.padding
        if i.axes == 1:
            (size,), stride, dilation = stage.in_shape[1:], i.stride[1], i.dilation[1]
            return self.nir.Conv1d(size, weight, stride, padding[1], dilation, 1, bias)
        weight, padding = _square(stage.layer.name, weight, padding, i.dilation)
        return self.nir.Conv2d(stage.in_shape[1:], weight, i.stride, padding, i.dilation, 1, bias)

    def _average(self, stage: NamedStage) -> Any:
        """Return a mean, or a sum for neurons if 1/k² is no power of two: then readers would round each current."""
        layer, cls = stage.layer, self.nir.AvgPool2d
        if len(stage.in_shape) != 3:
            raise stage.refusal("NIR pools images alone, no lines: use strides")
        if stage.fires and math.frexp(stage.instruction.threshold)[0] != 0.5:
            cls = self.nir.SumPool2d
        elif stage.fires:
            assert layer.v_init is not None
            layer.v_init = layer.v_init / stage.instruction.threshold
            layer.instruction = replace(stage.instruction, threshold=1.0)
        pooling = stage.pooling()
        if pooling is None:
            raise stage.refusal("adaptive pooling with kernels of different sizes: use AvgPool2d")
        node = cls(*map(np.array, pooling))
        node.input_type, node.output_type = {"input": np.array(stage.in_shape)}, {"output": np.array(stage.shape)}
        return node

    def neurons(self, stage: NamedStage, sources: list[str]) -> str:
        """Add the neurons of a stage, which receive the currents of ``sources``; return the node of their spikes."""
        if (T := stage.instruction.own_T) not in (0, self.T):
            raise stage.refusal(f"it has its own T={T}, but a NIR graph has one, here {self.T}")
        if stage.residual is not None:
            sources = sources + self._residual(stage, sources)
        return self.add(self.free(f"{stage.name}_neurons"), self._if(stage), *sources)

    def _if(self, stage: NamedStage) -> Any:
        metadata: dict[str, Any] = {"reset": "subtract", "fires": "v >= v_threshold"}
        if self.window_timing:
            metadata["timing"] = stage.instruction.timing
        if stage.layer.v_init is not None and bool(stage.layer.v_init.any()):
            if not stage.window_timing:
                raise stage.refusal("NIR's neurons start at potential 0: set v_init=0")
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


def folded(network: Listing) -> Listing:
    """Fold scales and shifts of currents into the layer whose product they are, if nothing else reads it."""
    made = {stage.name: stage.layer for stage in network.stages if stage.signal is Currents}
    read = Counter(name for stage in network.stages for name in (stage.x, stage.residual))
    alone = {name: layer for name, layer in made.items() if layer.weight is not None and read[name] == 1}
    for stage in network.stages:
        layer = stage.layer
        if stage.instruction.kind in ("sum", "neurons") and stage.x in alone:
            _scale_and_shift(alone[stage.x], layer.scale, layer.shift)
            layer.scale = layer.shift = None
        if stage.residual in alone:
            _scale_and_shift(alone[stage.residual], layer.residual_scale)
            layer.residual_scale = None
    return network


def _scale_and_shift(layer: Stage, scale: Tensor | None, shift: Tensor | None = None) -> None:
    if scale is not None:
        layer.scale = scale if layer.scale is None else layer.scale * scale
        layer.shift = None if layer.shift is None else layer.shift * scale
    if shift is not None:
        layer.shift = shift if layer.shift is None else layer.shift + shift


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
