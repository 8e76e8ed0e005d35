"""to_onnx: a network as an ONNX graph, of one time step or of a whole window."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..container import atomically
from ..errors import extra
from ..frozen.network import FrozenNetwork, freeze
from .listing import Listing, Stage, listing_of
from .onnx_graph import Graph


def to_onnx(net: nn.Module, path: str | PathLike[str], x: Any = None) -> None:
    """Writes a network as an ONNX file: one time step, as :meth:`FrozenNetwork.step`; or the whole window, if a layer
    has timing "window".

    One step has these inputs, all float32: ``x`` [batch, *features], the step's spikes, 0 and 1, or the image, the same
    at every step; ``step`` [1], the number of the step from 0; and the state: ``NAME.v`` [batch, *features], the
    potentials of each layer with neurons, and ``NAME.counts``, the spikes that the readout has received. The state
    starts as zeros. Outputs: ``answer`` [batch, outputs], the readout so far; ``NAME.v.next`` and ``NAME.counts.next``,
    the state for the next step; and ``NAME.spikes`` of each layer with neurons, at no cost unless requested. The batch
    size is free. T and the kind of input are in the model's metadata.

    A whole window has no state; its metadata have ``timing`` "window". Its input ``x`` is the image [batch, *features],
    or the spikes [T, batch, *features]. Its outputs are ``answer`` and ``NAME.counts`` of each layer with neurons. A
    layer with timing "window" is a product, a Floor and a Clip, or T subtractions if its threshold is not a power of
    two. A layer with timing "step" is written T times.

    Weights rounded by ``freeze(weight_bits=...)`` are int8, or int4 up to 4 bits, in a DequantizeLinear node; their
    step is in the scale of the currents, except for the readout. The engine sums in float32, in its own order: a
    potential within rounding of the threshold may be on the other side. If a potential of a sample is infinite or NaN,
    its answer is NaN.

    Args:
        net: a frozen network, or one to freeze.
        path: the file.
        x: a batch of inputs, for the shapes; not needed if the frozen network has run.

    Raises:
        ValueError: the shapes are unknown: give x; or a layer cannot run step by step (see :class:`CannotLower`).
        UserError: the package onnx is not installed.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> to_onnx(net, "net.onnx", torch.rand(1, 4))
    """
    extra("onnx", "the export to ONNX")
    frozen = net if isinstance(net, FrozenNetwork) else freeze(net)
    network = listing_of(frozen, frozen.example() if x is None else x)
    model = (WindowGraph if network.waits else StepGraph)(network).model()
    atomically(Path(path), lambda temporary: temporary.write_bytes(model.SerializeToString()))


class StepGraph(Graph):
    """One time step, with the neurons' state as inputs and outputs: the counterpart of :meth:`FrozenNetwork.step`."""

    def __init__(self, network: Listing) -> None:
        super().__init__(network)
        self.result = {"input": "x"}  # the name of each stage's result
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
        """The sum of the spikes so far."""
        so_far = self.op("Add", self.input(f"{stage.name}.counts", stage.in_shape), spikes)
        self.output(f"{stage.name}.counts.next", so_far, stage.in_shape)
        return so_far

    def _readout(self, stage: Stage, counts: str) -> str:
        if stage.layer.shift is None:
            return self.readout(stage, counts)
        steps = self.op("Add", "step", self.number(1.0))
        return self.readout(stage, counts, self.op("Div", steps, self.number(float(self.network.T))))


class WindowGraph(Graph):
    """A whole window, without state: the counterpart of calling a :class:`FrozenNetwork`.

    A stage's result is one value for the window, such as counts, or, where a layer fires at once, T values, one per
    step. Each form is made from the other when a reader asks for it.
    """

    def __init__(self, network: Listing) -> None:
        super().__init__(network)
        self.whole: dict[str, str] = {}
        self.steps: dict[str, list[str]] = {}
        self.real = {"input"} if network.mode != "events" else set()  # stages whose result is no train

    def model(self) -> Any:
        events = self.network.mode == "events"
        self.input("x", self.network.shape, steps=self.network.T if events else None)
        if events:
            self.steps["input"] = [
                self.op("Gather", "x", self.constant(f"step {t}", torch.tensor(t)), axis=0) for t in range(self.T)
            ]
            self.whole["input"] = self.op("ReduceSum", "x", self.constant("time", torch.tensor([0])), keepdims=0)
        else:
            self.whole["input"] = "x"
        for stage in self.network.stages:
            self._write(stage)
        last = self.network.stages[-1]
        self.answer(self.whole[last.name], last.shape)
        return self.checked("window", timing="window")

    @property
    def T(self) -> int:
        return self.network.T

    def _whole(self, name: str) -> str:
        if name not in self.whole:
            self.whole[name] = self.op("Sum", *self.steps[name])
        return self.whole[name]

    def _steps(self, name: str) -> list[str]:
        """The T steps of a value; counts become bursts."""
        if name not in self.steps:
            counts = self.whole[name]
            self.steps[name] = [self.spikes(counts, t + 1) for t in range(self.T)]
        return self.steps[name]

    def _write(self, stage: Stage) -> None:
        layer, name, x = stage.layer, stage.name, stage.x
        if layer.kind == "layer":
            waits = layer.timing == "window"
            result: str | list[str] = self._window_currents(stage) if waits else self._step_currents(stage)
            result = self._neurons(stage, result) if stage.fires else result
        elif stage.fires and layer.timing == "window":
            result = self._neurons(stage, self.spiking_average(stage, self._whole(x)))
        elif stage.fires:
            result = self._neurons(stage, [self.spiking_average(stage, value) for value in self._steps(x)])
        elif layer.kind in ("max_pool", "flatten"):
            move = self.max_pool if layer.kind == "max_pool" else self.flatten
            in_steps = x not in self.real and x in self.steps
            result = [move(stage, value) for value in self.steps[x]] if in_steps else move(stage, self._whole(x))
        elif layer.kind == "readout":
            result = self.readout(stage, self._whole(x))
        else:
            result = self.average(stage, self._whole(x))
        if isinstance(result, str):
            self.whole[name] = result
        else:
            self.steps[name] = result
        if stage.fires:
            self.output(f"{name}.counts", self._whole(name), stage.shape)
        elif layer.kind not in ("layer", "max_pool", "flatten") or (layer.kind != "layer" and x in self.real):
            self.real.add(name)

    def _window_currents(self, stage: Stage) -> str:
        y = self.product(stage.name, stage.layer, self._whole(stage.x))
        if stage.x in self.real and self.network.mode == "direct":
            y = self.op("Mul", y, self.number(float(self.T)))
        return self.affine(stage, y, 1)

    def _step_currents(self, stage: Stage) -> list[str]:
        if stage.x not in self.real:
            products = [self.product(stage.name, stage.layer, value) for value in self._steps(stage.x)]
            return [self.affine(stage, y, self.T) for y in products]
        y = self.product(stage.name, stage.layer, self._whole(stage.x))
        current = self.affine(stage, y, self.T)
        if self.network.mode == "direct":
            return [current] * self.T
        silence = self.affine(stage, self.op("Mul", y, self.number(0.0)), self.T)
        return [current, *[silence] * (self.T - 1)]

    def _neurons(self, stage: Stage, currents: str | list[str]) -> str | list[str]:
        return self._wait(stage, currents) if isinstance(currents, str) else self._fire(stage, currents)

    def _wait(self, stage: Stage, z: str) -> str:
        if stage.residual is not None:
            z = self.op("Add", z, self.residual(stage, self._whole(stage.residual)))
        start = self.start(stage)
        v = z if start is None else self.op("Add", start, z)
        self.watch(stage, v)
        return self._fired(v, stage.layer.threshold)

    def _fire(self, stage: Stage, currents: list[str]) -> list[str]:
        layer, v, train = stage.layer, self.start(stage), []
        if stage.residual is not None:
            more = [self.residual(stage, value) for value in self._steps(stage.residual)]
            currents = [self.op("Add", current, each) for current, each in zip(currents, more, strict=True)]
        for current in currents:
            potential = current if v is None else self.op("Add", v, current)
            train.append(self.spikes(potential, layer.threshold))
            left = potential if layer.leak == 1.0 else self.op("Mul", potential, self.number(layer.leak))
            v = self.op("Sub", left, self.op("Mul", train[-1], self.number(layer.threshold)))
        if v is not None:
            self.watch(stage, v)
        return train

    def _fired(self, v: str, threshold: float) -> str:
        """The counts of neurons with potential v after integration: a division if the threshold is a power of two, else
        repeated subtraction, since multiples of the threshold are rounded.
        """
        if math.frexp(threshold)[0] == 0.5:
            v = v if threshold == 1.0 else self.op("Mul", v, self.number(1 / threshold))
            least, most = (self.constant(f"{n} spikes", torch.tensor(float(n))) for n in (0, self.T))
            return self.op("Clip", self.op("Floor", v), least, most)
        train = []
        for _ in range(self.T):
            train.append(self.spikes(v, threshold))
            v = self.op("Sub", v, self.op("Mul", train[-1], self.number(threshold)))
        return self.op("Sum", *train)
