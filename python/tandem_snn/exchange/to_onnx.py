"""to_onnx: one time step of a network as an ONNX graph, with the neurons' state as inputs and outputs."""

from __future__ import annotations

from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..container import atomically
from ..errors import extra
from ..frozen.network import FrozenNetwork, freeze
from ..frozen.stages import CannotLower
from ..frozen.stages import Stage as Layer
from .listing import Listing, Stage, listing_of

OPSET, IR_VERSION = 21, 10  # the first that have 4-bit integers


def to_onnx(net: nn.Module, path: str | PathLike[str], x: Any = None) -> None:
    """Writes one time step of a frozen network as an ONNX file, the counterpart of :meth:`FrozenNetwork.step`.

    Inputs of the graph, all float32, are ``x`` [batch, *features], the step's spikes, 0 and 1, or the image, the same
    at every step; ``step`` [1], the number of the step from 0; and the state: ``NAME.v`` [batch, *features], the
    potentials of each layer with neurons, and ``NAME.counts``, the spikes that the readout has seen. Before the first
    step the state is zeros. Outputs are ``answer`` [batch, outputs], the readout so far; ``NAME.v.next`` and
    ``NAME.counts.next``, the state for the next step; and ``NAME.spikes`` of each layer with neurons, which cost
    nothing unless they are asked for. The batch is free; T and the kind of input stand in the model's metadata.

    Weights that ``freeze(weight_bits=...)`` rounded are int8 or, up to 4 bits, int4, in a DequantizeLinear node; their
    step is in the scale of the currents, but for the readout. Sums are those of the engine that runs the file, in
    float32: a potential within rounding of its threshold may fall on the other side. Where a potential of a sample is
    infinite or NaN, its answer is NaN.

    Args:
        net: a frozen network, or one to freeze.
        path: the file.
        x: a batch of what it takes, for the shapes; not needed if the frozen network has run.

    Raises:
        ValueError: neither x nor a run gave the shapes; a layer that has no step (see :class:`CannotLower`).
        UserError: the package onnx is not installed.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> to_onnx(net, "net.onnx", torch.rand(1, 4))
    """
    extra("onnx", "the export to ONNX")
    frozen = net if isinstance(net, FrozenNetwork) else freeze(net)
    model = _Writer(listing_of(frozen, frozen.example() if x is None else x)).model()
    atomically(Path(path), lambda temporary: temporary.write_bytes(model.SerializeToString()))


class _Writer:
    def __init__(self, network: Listing) -> None:
        self.onnx = extra("onnx", "the export to ONNX")
        self.network = network
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.spoilers: list[str] = []  # [batch, 1], NaN where a potential is not finite, else 0
        self.result = {"input": "x"}  # the value that holds a stage's result
        self.fed = {"input"} if network.mode != "events" else set()  # stages whose result is not spikes

    def model(self) -> Any:
        helper = self.onnx.helper
        self._input("x", self.network.shape)
        self._input("step", (), batch=False)
        if self.network.mode == "zero_expand":
            now = self._op("Cast", self._op("Equal", "step", self._number(0.0)), to=self.onnx.TensorProto.FLOAT)
            self.result["input"] = self._op("Mul", "x", now)
        for stage in self.network.stages:
            self._write(stage)
        last = self.network.stages[-1]
        answer = reduce(lambda a, b: self._op("Add", a, b), self.spoilers, self.result[last.name])
        self._output("answer", answer, last.shape)
        graph = helper.make_graph(self.nodes, "step", self.inputs, self.outputs, list(self.constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tandem_snn"
        )
        helper.set_model_props(model, {"T": str(self.network.T), "input": self.network.mode})
        self.onnx.checker.check_model(model, full_check=True)
        return model

    # --- values -------------------------------------------------------------------------------------------------------

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def _constant(self, name: str, values: Tensor) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(values.detach().cpu().contiguous().numpy(), name)
        return name

    def _integers(self, name: str, q: Tensor, largest: int) -> str:
        """int8, or int4 where all fit: two in a byte, the first in its lower half."""
        if largest > 7:
            return self._constant(name, q)
        halves = np.append(q.flatten().numpy().astype(np.uint8) & 15, np.zeros(q.numel() % 2, np.uint8))
        content = (halves[::2] | halves[1::2] << 4).tobytes()
        self.constants[name] = self.onnx.helper.make_tensor(
            name, self.onnx.TensorProto.INT4, q.shape, content, raw=True
        )
        return name

    def _number(self, value: float) -> str:
        return self._constant(f"number {np.float32(value)!s}", torch.tensor([value], dtype=torch.float32))

    def _per_channel(self, name: str, values: Tensor, dims: int) -> str:
        return self._constant(name, values.float().view(-1, *[1] * (dims - 1)))

    def _info(self, name: str, shape: tuple[int, ...], batch: bool) -> Any:
        dims = ["batch", *shape] if batch else [1, *shape]
        return self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, dims)

    def _input(self, name: str, shape: tuple[int, ...], batch: bool = True) -> str:
        self.inputs.append(self._info(name, shape, batch))
        return name

    def _output(self, name: str, value: str, shape: tuple[int, ...]) -> None:
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name], f"{name} out"))
        self.outputs.append(self._info(name, shape, True))

    # --- stages -------------------------------------------------------------------------------------------------------

    def _write(self, stage: Stage) -> None:
        layer, source = stage.layer, self.result[stage.x]
        kind, spikes_in = layer.kind, stage.x not in self.fed
        if kind == "readout":
            result = self._readout(stage, self._counts(stage, source) if spikes_in else source)
        elif kind == "layer":
            current = self._affine(stage, self._product(stage.name, layer, source))
            result = self._neurons(stage, current) if stage.fires else current
        elif stage.fires:
            result = self._neurons(stage, self._spiking_average(stage, source))
        elif kind in ("average", "mean", "adaptive_mean"):
            result = self._average(stage, self._counts(stage, source) if spikes_in else source)
        elif kind == "max_pool":
            result = self._op("MaxPool", source, **_window(layer), ceil_mode=int(layer.ceil))
        else:
            result = self._op(
                "Reshape", source, self._constant(f"{stage.name}.shape", torch.tensor([-1, *stage.shape]))
            )
        self.result[stage.name] = result
        if kind in ("mean", "adaptive_mean") or (not spikes_in and kind != "layer"):
            self.fed.add(stage.name)

    def _weight(self, name: str, layer: Layer) -> str:
        """Few bits: integers, whose step is in the scale of the currents; a readout's are times their step."""
        assert layer.weight is not None
        if layer.step is None:
            return self._constant(f"{name}.weight", layer.weight.detach().float())
        q = self._integers(f"{name}.weight", layer.weight, int(layer.weight.abs().max()))
        step = layer.step.float() if layer.kind == "readout" else torch.ones(len(layer.step))
        return self._op("DequantizeLinear", q, self._constant(f"{name}.scale", step), axis=0)

    def _product(self, name: str, layer: Layer, x: str) -> str:
        """Gemm, not MatMul: onnxruntime would round its input to 8 bits where the weights are dequantised."""
        weight = self._weight(name, layer)
        if layer.axes == 0:
            return self._op("Gemm", x, weight, transB=1)
        return self._op(
            "Conv",
            x,
            weight,
            group=layer.groups,
            **_window(layer),
        )

    def _affine(self, stage: Stage, y: str) -> str:
        dims, layer = len(stage.shape), stage.layer
        if layer.scale is not None:
            y = self._op("Mul", y, self._per_channel(f"{stage.name}.current_scale", layer.scale, dims))
        if layer.shift is not None:
            share = layer.shift.detach().float() / self.network.T
            y = self._op("Add", y, self._per_channel(f"{stage.name}.current_shift", share, dims))
        return y

    def _neurons(self, stage: Stage, current: str) -> str:
        name, layer = stage.name, stage.layer
        if stage.residual is not None:
            residual = self.result[stage.residual]
            if layer.residual_scale is not None:
                scale = self._per_channel(f"{name}.residual_scale", layer.residual_scale, len(stage.shape))
                residual = self._op("Mul", residual, scale)
            current = self._op("Add", current, residual)
        v = self._input(f"{name}.v", stage.shape)
        if layer.v_init is not None and bool(layer.v_init.any()):
            given = layer.v_init.detach().float()
            start = self._constant(f"{name}.v_init", given if given.dim() else given.view(1))
            v = self._op("Where", self._op("Equal", "step", self._number(0.0)), start, v)
        v = self._op("Add", v, current)
        flat = self._op("Flatten", v)
        last_axis = self._constant("last axis", torch.tensor([1]))
        self.spoilers.append(self._op("ReduceSum", self._op("Sub", flat, flat), last_axis))
        threshold = self._number(layer.threshold)
        spikes = self._op("Cast", self._op("GreaterOrEqual", v, threshold), to=self.onnx.TensorProto.FLOAT)
        if layer.leak != 1.0:
            v = self._op("Mul", v, self._number(layer.leak))
        self._output(f"{name}.v.next", self._op("Sub", v, self._op("Mul", spikes, threshold)), stage.shape)
        self._output(f"{name}.spikes", spikes, stage.shape)
        return spikes

    def _counts(self, stage: Stage, spikes: str) -> str:
        """The spikes that have come so far."""
        so_far = self._op("Add", self._input(f"{stage.name}.counts", stage.in_shape), spikes)
        self._output(f"{stage.name}.counts.next", so_far, stage.in_shape)
        return so_far

    def _spiking_average(self, stage: Stage, spikes: str) -> str:
        """The spikes of each window are counted, which is exact, and weighted once."""
        layer, channels = stage.layer, stage.in_shape[0]
        ones = self._constant(f"{stage.name}.weight", torch.ones(channels, 1, *layer.kernel))
        inside = self._op("Conv", spikes, ones, group=channels, **_window(layer))
        return self._op("Mul", inside, self._number(1 / (layer.kernel[0] * layer.kernel[1])))

    def _average(self, stage: Stage, x: str) -> str:
        layer = stage.layer
        if layer.kind == "adaptive_mean":
            sizes, outputs = stage.in_shape[1:], stage.shape[1:]
            if any(size % out for size, out in zip(sizes, outputs, strict=True)):
                raise CannotLower(stage.name, "adaptive pooling with windows of different sizes")
            kernel = [size // out for size, out in zip(sizes, outputs, strict=True)]
            window: dict[str, Any] = {"kernel_shape": kernel, "strides": kernel}
        else:
            window = _window(layer)
        if layer.gain != 1.0:
            x = self._op("Mul", x, self._number(layer.gain))
        return self._op("AveragePool", x, count_include_pad=1, **window)

    def _readout(self, stage: Stage, counts: str) -> str:
        layer = stage.layer
        if layer.gain != 1.0:
            counts = self._op("Mul", counts, self._number(layer.gain))
        y = self._product(stage.name, layer, counts)
        if layer.shift is None:
            return y
        steps = self._op("Add", "step", self._number(1.0))
        share = self._op("Div", steps, self._number(float(self.network.T)))
        bias = self._constant(f"{stage.name}.bias", layer.shift.detach().float())
        return self._op("Add", y, self._op("Mul", bias, share))


def _window(layer: Layer) -> dict[str, Any]:
    kernel, strides, padding, after = map(layer.over_axes, (layer.kernel, layer.stride, layer.padding, layer.after))
    window = {"kernel_shape": kernel, "strides": strides}
    window["pads"] = (*padding, *(p + more for p, more in zip(padding, after, strict=True)))
    dilates = layer.kind in ("layer", "max_pool")
    return window | ({"dilations": layer.over_axes(layer.dilation)} if dilates else {})
