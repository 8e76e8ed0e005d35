"""Common parts of the ONNX graphs of a step and of a window: values, products and averages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import extra
from ..frozen.stages import Stage as Layer
from .listing import Listing, Stage

OPSET, IR_VERSION = 21, 10  # the first that have 4-bit integers


class Graph:
    """A graph under construction. A node and its value have the same name."""

    def __init__(self, network: Listing) -> None:
        self.onnx = extra("onnx", "the export to ONNX")
        self.network = network
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._weights: dict[str, str] = {}
        self._spoilers: list[str] = []  # [batch], NaN where a potential is not finite, else 0

    def checked(self, name: str, **facts: str) -> Any:
        """The finished model, checked."""
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tandem_snn"
        )
        helper.set_model_props(model, {"T": str(self.network.T), "input": self.network.mode, **facts})
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, values: Tensor) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(values.detach().cpu().contiguous().numpy(), name)
        return name

    def integers(self, name: str, q: Tensor, largest: int) -> str:
        """int8; int4 if all values fit: two in a byte, the first in its lower half."""
        if largest > 7:
            return self.constant(name, q)
        halves = np.append(q.flatten().numpy().astype(np.uint8) & 15, np.zeros(q.numel() % 2, np.uint8))
        content = (halves[::2] | halves[1::2] << 4).tobytes()
        self.constants[name] = self.onnx.helper.make_tensor(
            name, self.onnx.TensorProto.INT4, q.shape, content, raw=True
        )
        return name

    def number(self, value: float) -> str:
        return self.constant(f"number {np.float32(value)!s}", torch.tensor([value], dtype=torch.float32))

    def per_channel(self, name: str, values: Tensor, dims: int) -> str:
        return self.constant(name, values.float().view(-1, *[1] * (dims - 1)))

    def info(self, name: str, shape: tuple[int, ...], batch: bool, steps: int | None = None) -> Any:
        dims: list[Any] = [] if steps is None else [steps]
        dims += ["batch", *shape] if batch else [1, *shape]
        return self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, dims)

    def input(self, name: str, shape: tuple[int, ...], batch: bool = True, steps: int | None = None) -> str:
        self.inputs.append(self.info(name, shape, batch, steps))
        return name

    def output(self, name: str, value: str, shape: tuple[int, ...]) -> None:
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name], f"{name} out"))
        self.outputs.append(self.info(name, shape, True))

    def watch(self, stage: Stage, v: str) -> None:
        """Makes the answer of a sample NaN if one of these potentials is infinite or NaN."""
        axes = self.constant(f"{len(stage.shape)} axes", torch.arange(len(stage.shape)) + 1)
        self._spoilers.append(self.op("ReduceSum", self.op("Sub", v, v), axes, keepdims=0))

    def answer(self, value: str, shape: tuple[int, ...]) -> None:
        if self._spoilers:
            axis = self.constant("1 axes", torch.tensor([1]))
            value = self.op("Add", value, self.op("Unsqueeze", self.op("Sum", *self._spoilers), axis))
        self.output("answer", value, shape)

    def weight(self, name: str, layer: Layer) -> str:
        if name not in self._weights:
            self._weights[name] = self._weight(name, layer)
        return self._weights[name]

    def _weight(self, name: str, layer: Layer) -> str:
        """Weights of few bits are integers; their step is in the scale of the currents. A readout multiplies by it."""
        assert layer.weight is not None
        if layer.step is None:
            return self.constant(f"{name}.weight", layer.weight.detach().float())
        q = self.integers(f"{name}.weight", layer.weight, int(layer.weight.abs().max()))
        step = layer.step.float() if layer.kind == "readout" else torch.ones(len(layer.step))
        return self.op("DequantizeLinear", q, self.constant(f"{name}.scale", step), axis=0)

    def product(self, name: str, layer: Layer, x: str) -> str:
        """Gemm, not MatMul: for dequantised weights, onnxruntime would round MatMul's input to 8 bits."""
        weight = self.weight(name, layer)
        if layer.axes == 0:
            return self.op("Gemm", x, weight, transB=1)
        return self.op("Conv", x, weight, group=layer.groups, **window_of(layer))

    def affine(self, stage: Stage, y: str, parts: int) -> str:
        """The currents of the product y, with one of ``parts`` equal parts of the window's shift."""
        dims, layer = len(stage.shape), stage.layer
        if layer.scale is not None:
            y = self.op("Mul", y, self.per_channel(f"{stage.name}.current_scale", layer.scale, dims))
        if layer.shift is not None:
            share = layer.shift.detach().float() / parts
            y = self.op("Add", y, self.per_channel(f"{stage.name}.current_shift", share, dims))
        return y

    def readout(self, stage: Stage, counts: str, share: str | None = None) -> str:
        """The answer at these counts; ``share`` multiplies the bias, by default 1."""
        layer = stage.layer
        if layer.gain != 1.0:
            counts = self.op("Mul", counts, self.number(layer.gain))
        y = self.product(stage.name, layer, counts)
        if layer.shift is None:
            return y
        bias = self.constant(f"{stage.name}.bias", layer.shift.detach().float())
        return self.op("Add", y, bias if share is None else self.op("Mul", bias, share))

    def residual(self, stage: Stage, value: str) -> str:
        scale = stage.layer.residual_scale
        if scale is None:
            return value
        return self.op("Mul", value, self.per_channel(f"{stage.name}.residual_scale", scale, len(stage.shape)))

    def start(self, stage: Stage) -> str | None:
        """The initial potential; None if it is 0."""
        given = stage.layer.v_init
        if given is None or not bool(given.any()):
            return None
        given = given.detach().float()
        return self.constant(f"{stage.name}.v_init", given if given.dim() else given.view(1))

    def spikes(self, v: str, threshold: float) -> str:
        return self.op("Cast", self.op("GreaterOrEqual", v, self.number(threshold)), to=self.onnx.TensorProto.FLOAT)

    def max_pool(self, stage: Stage, x: str) -> str:
        return self.op("MaxPool", x, **window_of(stage.layer), ceil_mode=int(stage.layer.ceil))

    def flatten(self, stage: Stage, x: str) -> str:
        return self.op("Reshape", x, self.constant(f"{stage.name}.shape", torch.tensor([-1, *stage.shape])))

    def spiking_average(self, stage: Stage, spikes: str) -> str:
        """Counts the spikes of each pooling window, which is exact, and multiplies once."""
        layer, channels = stage.layer, stage.in_shape[0]
        ones = self.constant(f"{stage.name}.weight", torch.ones(channels, 1, *layer.kernel))
        inside = self.op("Conv", spikes, ones, group=channels, **window_of(layer))
        return self.op("Mul", inside, self.number(1 / (layer.kernel[0] * layer.kernel[1])))

    def average(self, stage: Stage, x: str) -> str:
        layer, (kernel, strides, padding) = stage.layer, stage.windows()
        window = {"kernel_shape": kernel, "strides": strides, "pads": padding * 2}
        if layer.scale is not None:
            x = self.op("Mul", x, self.per_channel(f"{stage.name}.gain", layer.scale, len(stage.shape)))
        elif layer.gain != 1.0:
            x = self.op("Mul", x, self.number(layer.gain))
        return self.op("AveragePool", x, count_include_pad=1, **window)


def window_of(layer: Layer) -> dict[str, Any]:
    kernel, strides, padding, after = map(layer.over_axes, (layer.kernel, layer.stride, layer.padding, layer.after))
    window = {"kernel_shape": kernel, "strides": strides}
    window["pads"] = (*padding, *(p + more for p, more in zip(padding, after, strict=True)))
    dilates = layer.kind in ("layer", "max_pool")
    return window | ({"dilations": layer.over_axes(layer.dilation)} if dilates else {})
