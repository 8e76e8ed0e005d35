"""to_onnx: export a network as an ONNX graph of one time step or of a whole window."""

import math
from functools import cached_property, partial, reduce
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tandem_ext import ConstantInput, SpikeTrain

from ..container import write_atomically
from ..errors import extra
from ..frozen import FrozenNetwork, freeze
from ..frozen.instruction import CannotLower
from ..frozen.stages import MODES
from ..integer.graph import LARGEST_SUM, IntegerGraph, Node
from ..listing import Listing, NamedStage, listing_of
from ..nn.signals import batches
from .builder import Builder, along_channels, kernel_of

EXACT = 2**24  # sums of integers below it are exact in float32


def to_onnx(net: nn.Module, path: str | PathLike[str], x: Any) -> None:
    """Export a network as an ONNX file of one time step, or of the whole window if its layers have timing "window".

    A graph of one step has the inputs ``x`` (spikes or image), ``step`` and the state, which starts as zeros; a graph
    of a window has ``x`` only. T, the kind of input and the timing are in the metadata of the model. The batch size is
    free. docs/onnx.md describes all inputs and outputs.

    Weights rounded by ``freeze(weight_bits=...)`` are int8, or int4 up to 4 bits, in a DequantizeLinear node; their
    quantisation step is in the scale of the currents, except for the readout. The inference engine sums in float32 in
    its own order, so a potential within rounding error of the threshold may fall on the other side. If a potential of a
    sample is infinite or NaN, its answer is NaN.

    Args:
        net: a network, which is frozen first, or a frozen network.
        path: the file to write.
        x: a batch of inputs, for the shapes, or a tuple of several; of a frozen network from a file
            ``torch.zeros(1, *frozen.shape)``.

    Raises:
        CannotLower: a layer cannot run step by step, or has another timing than others. It is a ValueError that names
            the layer.
        UserError: the package onnx is not installed.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> to_onnx(net, "net.onnx", torch.rand(1, 4))
    """
    extra("onnx", "the export to ONNX")
    T = next((each.T for each in batches(x) if isinstance(each, SpikeTrain)), None)
    frozen = net if isinstance(net, FrozenNetwork) else freeze(net, T=T, example=x)
    write_atomically(Path(path), OnnxGraph(listing_of(frozen, x)).model().SerializeToString())


class OnnxGraph(Builder):
    """Builds the ONNX graph of a network.

    If the layers have timing "window", the graph is a whole window, like a call of a :class:`FrozenNetwork`, and the
    value of a train is its counts, of currents their sum. Otherwise it is one time step, like
    :meth:`FrozenNetwork.step`, with the state of the neurons as inputs and outputs, and the value of a train is the
    spikes of the step, of currents those of the step.
    """

    opsets: ClassVar = {"": 21}  # the first with 4-bit integers
    ir_version = 10

    def __init__(self, network: Listing) -> None:
        super().__init__()
        self.network = network
        self.T, self.streams = network.T, not network.window_timing
        if self.streams and network.mode == "pixels":
            raise CannotLower("net", "pixels are exported with a whole window, and its neurons have step timing")
        nodes = IntegerGraph(network).nodes.values()
        self.tables = {node.stage.name: node for node in nodes if self.has_table(node)}
        self.values: dict[str, str] = {}  # by the name of the stage
        self._not_finite: list[str] = []  # [batch], NaN where a potential is not finite, else 0

    def model(self) -> Any:
        """Return the model, after onnx's checker has accepted it."""
        self.values["input"] = self.begin()
        for stage in self.network.stages:
            self._write(stage)
        for stage in self.network.answers:
            answer = self.values[stage.name]
            if self._not_finite:
                bad = self.op("Unsqueeze", self.op("Sum", *self._not_finite), self._axes(stage.shape))
                answer = self.op("Add", answer, bad)
            several = stage.instruction.kind == "output"
            self.output(f"answer.{stage.layer.name}" if several else "answer", answer, stage.shape)
        helper, name = self.onnx.helper, "step" if self.streams else "window"
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.constants.values()))
        versions: dict[str, Any] = {"ir_version": self.ir_version}
        versions["opset_imports"] = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        model = helper.make_model(graph, producer_name="tandem_snn", **versions)
        timing = {} if self.streams else {"timing": "window"}
        helper.set_model_props(model, {"T": str(self.T), "input": self.network.mode, **timing})
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def begin(self) -> str:
        """Add the inputs that are no state; return the value of the network's input."""
        x = self._given("x", self.network.shape, self.network.mode)
        if self.streams:
            self.input("step", (), batch=False)
        return x

    def _given(self, name: str, shape: tuple[int, ...], mode: str) -> str:
        """Add an input of the network."""
        in_time = mode == "events" and not self.streams
        x = self.input(name, shape, steps=self.T if in_time else None)
        if in_time:
            return self.op("ReduceSum", x, self.constant("time", torch.tensor([0])), keepdims=0)
        if self.streams and mode == "zero_expand":
            return self.op("Mul", x, self.op("Cast", self._is_first, to=self.onnx.TensorProto.FLOAT))
        return x

    @cached_property
    def _is_first(self) -> str:
        return self.op("Equal", "step", self.number(0.0))

    def _write(self, stage: NamedStage) -> None:
        kind, x = stage.instruction.kind, self.values[stage.x]
        if stage.fires and stage.window_timing == self.streams:
            why = 'it has timing "step" and others "window", but the graph is one step or one window: use one timing'
            raise stage.refusal(why)
        if stage.name in self.tables:
            self.values[stage.name] = self.fire_by_table(self.tables[stage.name])
            return
        if kind == "input":
            result = self._given(stage.name, stage.shape, MODES[stage.instruction.first])
        elif kind == "output":
            result = x
        elif kind in ("layer", "neurons", "sum"):
            result = self._currents(stage, x)
        elif stage.fires:
            result = self.spiking_average(stage, x)
        elif kind == "attention":
            result = self._attention(stage, x)
        elif kind == "gather":
            result = self._gather(stage, x)
        elif kind == "max_pool":
            result = self.op("MaxPool", x, **kernel_of(stage.instruction), ceil_mode=int(stage.instruction.ceil))
        elif kind == "flatten":
            result = self.reshaped(x, stage.shape)
        elif kind == "upsample":
            result = self._upsampled(stage, x)
        elif kind == "readout":
            result = self.readout(stage, self._counts(stage, x))
        else:
            result = self.average(stage, self._counts(stage, x) if stage.signal is Tensor else x)
        self.values[stage.name] = self._fire(stage, result) if stage.fires else result

    def _counts(self, stage: NamedStage, x: str) -> str:
        """Return the sum of a stage's input over the steps so far; for numbers, the present input."""
        if not self.streams:
            return self._window_sum(stage, x)
        if stage.reads is Tensor:
            return x
        so_far = self.op("Add", self.input(f"{stage.name}.counts", stage.in_shape), x)
        self.output(f"{stage.name}.counts.next", so_far, stage.in_shape)
        return so_far

    def _window_sum(self, stage: NamedStage, y: str) -> str:
        """Return y, which the stage makes of its input, as a sum over the steps of the graph."""
        return y if self.streams or stage.reads is not ConstantInput else self.times(y, float(self.T))

    def readout(self, stage: NamedStage, counts: str) -> str:
        """Return the answer at the counts so far, with the share of the bias that belongs to these steps."""
        layer = stage.layer
        y = self.product(stage.name, layer, self.times(counts, stage.instruction.gain))
        if layer.shift is None:
            return y
        return self.op("Add", y, self._bias(stage, layer.shift))

    def _bias(self, stage: NamedStage, shift: Tensor) -> str:
        """Return the share of the shift of an answer that belongs to the steps so far."""
        bias = self.constant(f"{stage.name}.bias", along_channels(stage, shift))
        if not self.streams:
            return bias
        steps = self.op("Add", "step", self.number(1.0))
        return self.op("Mul", bias, self.op("Div", steps, self.number(float(self.T))))

    def _currents(self, stage: NamedStage, x: str) -> str:
        """Return the currents of the step or the window, with its part of the shift."""
        layer = stage.layer
        y = x if layer.weight is None else self.product(stage.name, layer, x)
        y = self.per_channel("Mul", self._window_sum(stage, y), stage, "current_scale", layer.scale)
        if stage.signal is Tensor:
            y = y if layer.shift is None else self.op("Add", y, self._bias(stage, layer.shift))
        else:
            shift = None if layer.shift is None else layer.shift.float() / (self.T if self.streams else 1)
            y = self.per_channel("Add", y, stage, "current_shift", shift)
        if stage.residual is None:
            return y
        added = self.per_channel("Mul", self.values[stage.residual], stage, "residual_scale", layer.residual_scale)
        return self.op("Add", y, added)

    def _attention(self, stage: NamedStage, x: str) -> str:
        i, (channels, tokens) = stage.instruction, stage.in_shape
        keys, heads = (channels - i.outputs) // 2, i.groups
        wide = tokens * keys // heads * self.network.levels[stage.x] ** 3 > 2**24  # than float32 holds
        x = self.op("Cast", x, to=self.onnx.TensorProto.DOUBLE) if wide else x
        sizes = self.constant(f"{stage.name}.sizes", torch.tensor([keys, keys, i.outputs]))
        parts = [f"{stage.name}.{name}" for name in "qkv"]
        self.nodes.append(self.onnx.helper.make_node("Split", [x, sizes], parts, f"{stage.name}.split", axis=1))
        each = zip(parts, (keys, keys, i.outputs), strict=True)
        q, k, v = (self.reshaped(part, (heads, size // heads, tokens)) for part, size in each)
        memory = self.op("MatMul", v, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        u = self.reshaped(self.op("MatMul", memory, q), stage.shape)
        return self.times(self.op("Cast", u, to=self.onnx.TensorProto.FLOAT) if wide else u, i.gain)

    def _gather(self, stage: NamedStage, x: str) -> str:
        x = x if stage.residual is None else self.op("Concat", x, self.values[stage.residual], axis=1)
        i, index = stage.instruction, stage.layer.index
        if index is None:
            return x
        index = index.long() if i.by_channel else stage.places().flatten()
        name = f"{stage.name}.index"
        y = self.op(
            "Gather", x if i.by_channel else self.reshaped(x, (i.channels,)), self.constant(name, index.clamp(min=0)),
            axis=1,
        )  # fmt: skip
        y = y if i.by_channel else self.reshaped(y, stage.shape)
        if not bool((index < 0).any()):
            return y
        inside = index.view(-1, *[1] * (len(stage.shape) - 1)) if i.by_channel else index.view(stage.shape)
        return self.op("Where", self.constant(f"{name}.inside", inside >= 0), y, self.number(0.0))

    def _upsampled(self, stage: NamedStage, x: str) -> str:
        shape = self.constant(f"{stage.name}.shape", torch.tensor(stage.shape))
        sizes = self.op("Concat", self.op("Shape", x, end=1), shape, axis=0)
        places = "align_corners" if stage.instruction.ceil else "half_pixel"
        return self.op("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode=places)

    def _fire(self, stage: NamedStage, current: str) -> str:
        name, i = stage.name, stage.instruction
        v = self.start(stage)
        if self.streams:
            before = self._made(stage, self.input(f"{name}.v", stage.seen))
            v = before if v is None else self.op("Where", self._is_first, v, before)
        v = current if v is None else self.op("Add", v, current)
        if not self.streams:
            self.watch(stage, v)
            counts = self._burst(v, i.threshold, i.own_T or self.T)
            self.show(stage, "counts", counts)
            return counts
        spikes, left = self.spikes(v, i.threshold, self.times(v, i.leak))
        self.watch(stage, left)
        self.show(stage, "v.next", left)
        self.show(stage, "spikes", spikes)
        return spikes

    def show(self, stage: NamedStage, what: str, value: str) -> str:
        """Output a value of neurons in the order in which their layer returns it; return the name of the output."""
        seen, name = stage.layer.seen, f"{stage.name}.{what}"
        self.output(name, value if seen is None else self._picked(stage, "seen", value, seen), stage.seen)
        return name

    def _made(self, stage: NamedStage, value: str) -> str:
        """Return a value of neurons, in the order in which their layer returns it, in that of the stage."""
        seen = stage.layer.seen
        return value if seen is None else self._picked(stage, "made", value, seen.flatten().argsort().view(stage.shape))

    def _picked(self, stage: NamedStage, name: str, x: str, index: Tensor) -> str:
        places = self.constant(f"{stage.name}.{name}", index.flatten())
        return self.reshaped(self.op("Gather", self.reshaped(x, (index.numel(),)), places, axis=1), tuple(index.shape))

    def has_table(self, node: Node) -> bool:
        """Whether neurons are written as thresholds of integer sums. Averages are exact without."""
        table = node.thresholds if node.stage.layer.weight is not None else None
        return table is not None and node.apart * len(table) <= LARGEST_SUM

    def fire_by_table(self, node: Node) -> str:
        """Return counts from integer sums: how many thresholds they reach. Any engine finds the same."""
        stage, T, to_int = node.stage, node.most, self.onnx.TensorProto.INT32
        parts = [self.op("Cast", part, to=to_int) for part in self._sums(node)]
        if stage.residual is not None:
            steps = self.constant(f"{stage.name}.apart", torch.tensor(node.apart, dtype=torch.int32))
            r = self.op("Cast", self.values[stage.residual], to=to_int)
            parts.append(self.op("Mul", r, steps))
        u = reduce(partial(self.op, "Add"), parts)
        space = stage.shape[1:] if node.place is not None else (1,) * (len(stage.shape) - 1)
        levels = self.constant(f"{stage.name}.thresholds", node.staircase().int().view(stage.shape[0], *space, -1))
        last = self.constant("last axis", torch.tensor([-1]))
        reached = self.op("GreaterOrEqual", self.op("Unsqueeze", u, last), levels)
        counts = self.op("ReduceSum", self.op("Cast", reached, to=self.onnx.TensorProto.FLOAT), last, keepdims=0)
        if stage.residual is not None:
            counts = self.op("Sub", counts, self.times(self.values[stage.residual], float(T)))
        self.show(stage, "counts", counts)
        return counts

    def _sums(self, node: Node) -> list[str]:
        """Return a product in parts whose sums are less than 2^24, which floats add exactly in any order."""
        stage, weight, x = node.stage, node.weight, self.values[node.stage.x]
        assert weight is not None
        flat = weight.flatten(1)
        place, number, parts = torch.arange(flat.shape[1]), 1, [flat]
        while any(int(part.abs().sum(1).max()) * self.network.levels[stage.x] >= EXACT for part in parts):
            number *= 2
            parts = [flat.where(place * number // len(place) == n, 0) for n in range(number)]
        names = [f"{stage.name}.{n}" for n in range(number)] if number > 1 else [stage.name]
        ones = torch.ones(len(weight))
        weights = [self.quantised(name, part.view_as(weight), ones) for name, part in zip(names, parts, strict=True)]
        return [self.multiply(weight, node.geometry, x) for weight in weights]

    def _burst(self, v: str, threshold: float, T: int) -> str:
        """Return the counts, up to T, in a window: by a division if ϑ is a power of two, else by subtraction."""
        if math.frexp(threshold)[0] == 0.5:
            v = self.times(v, 1 / threshold)
            least, most = (self.constant(f"{n} spikes", torch.tensor(float(n))) for n in (0, T))
            return self.op("Clip", self.op("Floor", v), least, most)
        train = []
        for _ in range(T):
            spikes, v = self.spikes(v, threshold, v)
            train.append(spikes)
        return self.op("Sum", *train)

    def watch(self, stage: NamedStage, v: str) -> None:
        """Make the answer of a sample NaN if one of its potentials is infinite or NaN."""
        self._not_finite.append(self.op("ReduceSum", self.op("Sub", v, v), self._axes(stage.shape), keepdims=0))

    def _axes(self, shape: tuple[int, ...]) -> str:
        return self.constant(f"{len(shape)} axes", torch.arange(len(shape)) + 1)

    def start(self, stage: NamedStage) -> str | None:
        """Return the initial potential, or None if it is 0."""
        v_init = stage.layer.v_init
        if v_init is None or not bool(v_init.any()):
            return None
        v_init = v_init.detach().float()
        v_init = v_init if v_init.dim() > 1 else along_channels(stage, v_init)
        return self.constant(f"{stage.name}.v_init", v_init)

    def spikes(self, v: str, threshold: float, kept: str) -> tuple[str, str]:
        """Return the spikes of potentials v, and what is left of ``kept``, their potentials after the leak."""
        theta = self.number(threshold)
        spikes = self.op("Cast", self.op("GreaterOrEqual", v, theta), to=self.onnx.TensorProto.FLOAT)
        return spikes, self.op("Sub", kept, self.op("Mul", spikes, theta))

    def spiking_average(self, stage: NamedStage, spikes: str) -> str:
        """Count the spikes under each place of a pooling kernel, which is exact."""
        channels, kernel = stage.in_shape[0], kernel_of(stage.instruction)
        ones = self.constant(f"{stage.name}.weight", torch.ones(channels, 1, *kernel["kernel_shape"]))
        return self.op("Conv", spikes, ones, group=channels, **kernel)

    def average(self, stage: NamedStage, x: str) -> str:
        x = self.per_channel("Mul", self.times(x, stage.instruction.gain), stage, "gain", stage.layer.scale)
        pooling = stage.pooling()
        if pooling is None:
            return self._uneven_average(stage, x)
        kernel, strides, padding = (stage.instruction.over_axes((sizes[0], sizes[1])) for sizes in pooling)
        return self.op("AveragePool", x, count_include_pad=1, kernel_shape=kernel, strides=strides, pads=padding * 2)

    def _uneven_average(self, stage: NamedStage, x: str) -> str:
        """Return adaptive means whose kernels differ: sums of rows and of columns, and a division."""
        rows, columns = map(_adaptive, stage.in_shape[1:], stage.shape[1:])
        x = self.op("MatMul", self.constant(f"{stage.name}.rows", rows), x)
        x = self.op("MatMul", x, self.constant(f"{stage.name}.columns", columns.T))
        return self.op("Div", x, self.constant(f"{stage.name}.sizes", rows.sum(1, keepdim=True) * columns.sum(1)))


def _adaptive(size: int, outputs: int) -> Tensor:
    """Return which of ``size`` pixels are in each of the means of an adaptive pooling, [outputs, size]."""
    pixels, n = torch.arange(size), torch.arange(outputs).unsqueeze(1)
    return ((pixels >= n * size // outputs) & (pixels * outputs < (n + 1) * size)).float()
