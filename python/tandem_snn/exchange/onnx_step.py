"""One time step of a network as an ONNX graph, with the neurons' state as inputs and outputs."""

from __future__ import annotations

from typing import Any

from .listing import Listing, Stage
from .onnx_graph import Graph


class StepGraph(Graph):
    """The counterpart of :meth:`FrozenNetwork.step`."""

    def __init__(self, network: Listing) -> None:
        super().__init__(network)
        self.result = {"input": "x"}  # the value that holds a stage's result
        self.fed = {"input"} if network.mode != "events" else set()  # stages whose result is not spikes

    def model(self) -> Any:
        self.input("x", self.network.shape)
        self.input("step", (), batch=False)
        if self.network.mode == "zero_expand":
            now = self.op("Cast", self.op("Equal", "step", self.number(0.0)), to=self.onnx.TensorProto.FLOAT)
            self.result["input"] = self.op("Mul", "x", now)
        for stage in self.network.stages:
            self._write(stage)
        last = self.network.stages[-1]
        self.answer(self.result[last.name], last.shape)
        return self.checked("step")

    def _write(self, stage: Stage) -> None:
        layer, source = stage.layer, self.result[stage.x]
        kind, spikes_in = layer.kind, stage.x not in self.fed
        if kind == "readout":
            result = self._readout(stage, self._counts(stage, source) if spikes_in else source)
        elif kind == "layer":
            current = self.affine(stage, self.product(stage.name, layer, source), self.network.T)
            result = self._neurons(stage, current) if stage.fires else current
        elif stage.fires:
            result = self._neurons(stage, self.spiking_average(stage, source))
        elif kind in ("average", "mean", "adaptive_mean"):
            result = self.average(stage, self._counts(stage, source) if spikes_in else source)
        elif kind == "max_pool":
            result = self.max_pool(stage, source)
        else:
            result = self.flatten(stage, source)
        self.result[stage.name] = result
        if kind in ("mean", "adaptive_mean") or (not spikes_in and kind != "layer"):
            self.fed.add(stage.name)

    def _neurons(self, stage: Stage, current: str) -> str:
        name, layer = stage.name, stage.layer
        if stage.residual is not None:
            current = self.op("Add", current, self.residual(stage, self.result[stage.residual]))
        v, start = self.input(f"{name}.v", stage.shape), self.start(stage)
        if start is not None:
            v = self.op("Where", self.op("Equal", "step", self.number(0.0)), start, v)
        v = self.op("Add", v, current)
        self.watch(stage, v)
        threshold, spikes = self.number(layer.threshold), self.spikes(v, layer.threshold)
        if layer.leak != 1.0:
            v = self.op("Mul", v, self.number(layer.leak))
        self.output(f"{name}.v.next", self.op("Sub", v, self.op("Mul", spikes, threshold)), stage.shape)
        self.output(f"{name}.spikes", spikes, stage.shape)
        return spikes

    def _counts(self, stage: Stage, spikes: str) -> str:
        """The spikes that have come so far."""
        so_far = self.op("Add", self.input(f"{stage.name}.counts", stage.in_shape), spikes)
        self.output(f"{stage.name}.counts.next", so_far, stage.in_shape)
        return so_far

    def _readout(self, stage: Stage, counts: str) -> str:
        if stage.layer.shift is None:
            return self.readout(stage, counts)
        steps = self.op("Add", "step", self.number(1.0))
        return self.readout(stage, counts, self.op("Div", steps, self.number(float(self.network.T))))
