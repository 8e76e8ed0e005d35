"""to_qonnx: write a frozen network as QONNX, for tools that build FPGAs of it."""

import math
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from ..container import write_atomically
from ..frozen import FrozenNetwork
from ..integer.graph import IntegerGraph, Node
from ..listing import NamedStage
from ..nn.currents import Currents
from .builder import kernel_of
from .export import EXACT, OnnxGraph

_DOMAIN = "qonnx.custom_op.general"


def to_qonnx(frozen: FrozenNetwork, path: str | PathLike[str]) -> None:
    """Write a frozen network as QONNX: products of integers and ``MultiThreshold``, with the datatype of each tensor.

    The graph takes the counts ``x`` [1, *features] and gives ``answer``; ``NAME.counts`` are the counts of a layer, the
    same as those of the network. FINN and hls4ml read such files, and the package qonnx runs them.

    Args:
        frozen: a frozen network as for :func:`to_c`, all of whose neurons have thresholds and sums below 2^24.
        path: the file to write.

    Raises:
        TypeError, ValueError, CannotLower: as :func:`to_c`.
        UserError: the package onnx is not installed.

    >>> layer, x = tnn.Linear(4, 3, timing="window"), te.SpikeTrain.from_counts(torch.ones(1, 4), T=8)
    >>> frozen = tandem_snn.freeze(nn.Sequential(layer, tnn.Readout(3, 2)), weight_bits=4, T=8, example=x)
    >>> tandem_snn.to_qonnx(frozen, "net.onnx")
    """
    graph = _QonnxGraph(IntegerGraph.of(frozen))
    write_atomically(Path(path), graph.model().SerializeToString())


class _QonnxGraph(OnnxGraph):
    opsets: ClassVar = {"": 13, _DOMAIN: 1}
    ir_version = 8

    def __init__(self, integers: IntegerGraph) -> None:
        super().__init__(integers.network)
        self.integers = integers.nodes
        self.datatypes: dict[str, str] = {}
        for node in integers.nodes.values():
            if node.stage.signal is Currents or (node.stage.fires and node.thresholds is None):
                why = "it adds currents, or has a residual and too many thresholds"
                raise node.stage.refusal(f"{why}: to_c takes it")
            counts = 0 if node.stage.residual is None or node.thresholds is None else len(node.thresholds)
            if max(node.apart * counts, node.sums + 1) >= EXACT:
                why = f"its sums reach {node.sums}" + f", apart for each count to {counts} of its residual" * (
                    counts > 0
                )
                why += ", more than floats hold exactly"
                raise node.stage.refusal(f"{why}: take fewer bits or a smaller T, or to_c")

    def model(self) -> Any:
        model, proto = super().model(), self.onnx
        for name, datatype in self.datatypes.items():
            entry = proto.StringStringEntryProto(key="finn_datatype", value=datatype)
            annotation = proto.TensorAnnotation(tensor_name=name, quant_parameter_tensor_names=[entry])
            model.graph.quantization_annotation.append(annotation)
        return model

    def begin(self) -> str:
        counts = self.input("x", self.network.shape) if self.network.mode == "events" else super().begin()
        self.typed("x", most := self.network.levels["input"])
        return self.typed(counts, most)

    def typed(self, name: str, most: int, sign: str = "U") -> str:
        """Note the datatype of a tensor whose integers are at most this large."""
        self.datatypes[name] = f"{sign}INT{most.bit_length() + (not sign)}"
        return name

    def info(self, name: str, shape: tuple[int, ...], batch: bool, steps: int | None = None) -> Any:
        return super().info(name, shape, False)  # tools for hardware want one sample

    def has_table(self, node: Node) -> bool:
        return node.thresholds is not None

    def fire_by_table(self, node: Node) -> str:
        stage, T, u = node.stage, node.most, self.sums(node)
        table, r = node.staircase(), self.values.get(str(stage.residual))
        if r is not None:
            u = self.op("Add", u, self.times(r, float(node.apart)))
        if node.place is not None:
            u = self.reshaped(u, (math.prod(stage.shape),))
        table = table.flatten(0, 1)
        levels = self.typed(self.constant(f"{stage.name}.thresholds", table.float()), int(table.abs().max()), "")
        layout = "NC" if node.place is not None else {1: "NC", 2: "NCW", 3: "NCHW"}[len(stage.shape)]
        bits = {"data_layout": layout, "out_dtype": f"UINT{table.shape[1].bit_length()}", "domain": _DOMAIN}
        counts = self.op("MultiThreshold", u, levels, **bits, out_scale=1.0, out_bias=0.0)
        if node.place is not None:
            counts = self.reshaped(counts, stage.shape)
        if r is not None:
            counts = self.op("Sub", counts, self.times(r, float(T)))
        self.typed(self.show(stage, "counts", counts), T)
        return self.typed(counts, T)

    def sums(self, node: Node) -> str:
        """Add the product with a node's integers."""
        weight, x = node.weight, self.values[node.stage.x]
        assert weight is not None
        is_matrix = node.geometry.axes == 0
        name = self.constant(f"{node.stage.name}.weight", (weight.t() if is_matrix else weight).float())
        self.typed(name, int(weight.abs().max()), "")
        if is_matrix:
            return self.op("MatMul", x, name)
        return self.op("Conv", x, name, group=node.geometry.groups, **kernel_of(node.geometry))

    def average(self, stage: NamedStage, x: str) -> str:
        return self.sums(self.integers[stage.name])

    def readout(self, stage: NamedStage, counts: str) -> str:
        node = self.integers[stage.name]
        scale, shift = node.logits()
        y = self.times(self.sums(node), 1 / node.divisor)
        return self.per_channel("Add", self.per_channel("Mul", y, stage, "scale", scale), stage, "bias", shift)
