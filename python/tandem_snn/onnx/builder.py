"""The nodes of an ONNX graph, and products among them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import extra
from ..frozen.instruction import Instruction
from ..frozen.stages import Stage
from ..listing import NamedStage


class Builder:
    """Collects what a graph has. A node and its value have the same name."""

    def __init__(self) -> None:
        self.onnx = extra("onnx", "the export to ONNX")
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, values: Tensor, dtype: Any = None) -> str:
        array = values.detach().cpu().contiguous().numpy()
        array = array if dtype is None else array.astype(self.onnx.helper.tensor_dtype_to_np_dtype(dtype))
        self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def number(self, value: float) -> str:
        return self.constant(f"number {np.float32(value)!s}", torch.tensor([value], dtype=torch.float32))

    def times(self, x: str, factor: float) -> str:
        return x if factor == 1.0 else self.op("Mul", x, self.number(factor))

    def per_channel(self, kind: str, x: str, stage: NamedStage, name: str, values: Tensor | None) -> str:
        """Add a value of each channel to x, or multiply x by it; None leaves x as it is."""
        if values is None:
            return x
        return self.op(kind, x, self.constant(f"{stage.name}.{name}", along_channels(stage, values)))

    def reshaped(self, x: str, shape: tuple[int, ...]) -> str:
        sizes = (-1, *shape)
        return self.op("Reshape", x, self.constant(f"shape {sizes}", torch.tensor(sizes)))

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

    def weight(self, name: str, layer: Stage) -> str:
        """Add the weight. Quantised weights are integers; their step is in the scale, except for a readout."""
        assert layer.weight is not None
        if layer.step is None:
            return self.constant(f"{name}.weight", layer.weight.float())
        step = layer.step.float() if layer.instruction.kind == "readout" else torch.ones(len(layer.step))
        return self.quantised(name, layer.weight, step)

    def quantised(self, name: str, q: Tensor, step: Tensor) -> str:
        """Add integer weights of the type that has the fewest bits, times a step for each output."""
        proto = self.onnx.TensorProto
        fewest = proto.INT4 if int(q.abs().max()) <= 7 else proto.INT8
        q_name = self.constant(f"{name}.weight", q, fewest)
        return self.op("DequantizeLinear", q_name, self.constant(f"{name}.scale", step), axis=0)

    def product(self, name: str, layer: Stage, x: str) -> str:
        return self.multiply(self.weight(name, layer), layer.instruction, x)

    def multiply(self, weight: str, i: Instruction, x: str) -> str:
        """Add a product: Gemm, because onnxruntime rounds the input of MatMul to 8 bits if weights are dequantised."""
        if i.axes == 0:
            return self.op("Gemm", x, weight, transB=1)
        return self.op("Conv", x, weight, group=i.groups, **kernel_of(i))


def along_channels(stage: NamedStage, values: Tensor) -> Tensor:
    return values.detach().float().view(-1, *[1] * (len(stage.shape) - 1))


def kernel_of(i: Instruction) -> dict[str, Any]:
    kernel, strides, padding, after = map(i.over_axes, (i.kernel, i.stride, i.padding, i.after))
    attributes = {"kernel_shape": kernel, "strides": strides}
    attributes["pads"] = (*padding, *(p + added for p, added in zip(padding, after, strict=True)))
    dilates = i.kind in ("layer", "max_pool", "readout")
    return attributes | ({"dilations": i.over_axes(i.dilation)} if dilates else {})
