"""to_onnx: a network as an ONNX graph, of one time step or of a whole window."""

from __future__ import annotations

import math
from functools import cached_property
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
    model = Network(network).model()
    atomically(Path(path), lambda temporary: temporary.write_bytes(model.SerializeToString()))


class Network(Graph):
    """A whole window, as a call of a :class:`FrozenNetwork`, if a layer has timing "window"; else one time step, as
    :meth:`FrozenNetwork.step`, with the neurons' state as inputs and outputs.

    A stage's result is one value, such as counts, or, where a layer fires at once, a value for each step in the graph.
    Each form is made from the other when a reader asks for it.
    """

    def __init__(self, network: Listing) -> None:
        super().__init__(network)
        self.T, self.streams = network.T, not network.waits
        self.whole: dict[str, str] = {}
        self.steps: dict[str, list[str]] = {}
        self.real = {"input"} if network.mode != "events" else set()  # stages whose result is no train

    def model(self) -> Any:
        events = self.network.mode == "events"
        self.input("x", self.network.shape, steps=self.T if events and not self.streams else None)
        if self.streams:
            self.input("step", (), batch=False)
        if events and self.streams:
            self.steps["input"] = ["x"]
        elif events:
            self.steps["input"] = [
                self.op("Gather", "x", self.constant(f"step {t}", torch.tensor(t)), axis=0) for t in range(self.T)
            ]
            self.whole["input"] = self.op("ReduceSum", "x", self.constant("time", torch.tensor([0])), keepdims=0)
        elif self.streams and self.network.mode == "zero_expand":
            now = self.op("Cast", self._is_first, to=self.onnx.TensorProto.FLOAT)
            self.whole["input"] = self.op("Mul", "x", now)
        else:
            self.whole["input"] = "x"
        for stage in self.network.stages:
            self._write(stage)
        last = self.network.stages[-1]
        self.answer(self.whole[last.name], last.shape)
        return self.checked("step") if self.streams else self.checked("window", timing="window")

    @cached_property
    def _is_first(self) -> str:
        return self.op("Equal", "step", self.number(0.0))

    def _whole(self, name: str) -> str:
        if name not in self.whole:
            self.whole[name] = self.op("Sum", *self.steps[name])
        return self.whole[name]

    def _counts(self, stage: Stage) -> str:
        """What a stage has read so far, summed over the steps; a real number is what it is now."""
        if not self.streams or stage.x in self.real:
            return self._whole(stage.x)
        so_far = self.op("Add", self.input(f"{stage.name}.counts", stage.in_shape), *self.steps[stage.x])
        self.output(f"{stage.name}.counts.next", so_far, stage.in_shape)
        return so_far

    def _steps(self, name: str) -> list[str]:
        """The steps of a value; counts become bursts."""
        if name not in self.steps:
            counts = self.whole[name]
            self.steps[name] = [self.spikes(counts, t + 1) for t in range(self.T)]
        return self.steps[name]

    def _write(self, stage: Stage) -> None:
        layer, name, x = stage.layer, stage.name, stage.x
        result: str | list[str]
        if layer.kind == "layer":
            result = self._window_currents(stage) if layer.timing == "window" else self._step_currents(stage)
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
            result = self._readout(stage)
        else:
            result = self.average(stage, self._counts(stage))
        if isinstance(result, str):
            self.whole[name] = result
        else:
            self.steps[name] = result
        if stage.fires and not self.streams:
            self.output(f"{name}.counts", self._whole(name), stage.shape)
        elif layer.kind in ("mean", "adaptive_mean") or (layer.kind != "layer" and x in self.real):
            self.real.add(name)

    def _readout(self, stage: Stage) -> str:
        counts = self._counts(stage)
        if not self.streams or stage.layer.shift is None:
            return self.readout(stage, counts)
        steps = self.op("Add", "step", self.number(1.0))
        return self.readout(stage, counts, self.op("Div", steps, self.number(float(self.T))))

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
        if self.streams:
            return [current]
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
        name, layer, v, train = stage.name, stage.layer, self.start(stage), []
        if stage.residual is not None:
            more = [self.residual(stage, value) for value in self._steps(stage.residual)]
            currents = [self.op("Add", current, each) for current, each in zip(currents, more, strict=True)]
        if self.streams:
            before = self.input(f"{name}.v", stage.shape)
            v = before if v is None else self.op("Where", self._is_first, v, before)
        for current in currents:
            potential = current if v is None else self.op("Add", v, current)
            train.append(self.spikes(potential, layer.threshold))
            left = potential if layer.leak == 1.0 else self.op("Mul", potential, self.number(layer.leak))
            v = self.op("Sub", left, self.op("Mul", train[-1], self.number(layer.threshold)))
        assert v is not None
        self.watch(stage, v)
        if self.streams:
            self.output(f"{name}.v.next", v, stage.shape)
            self.output(f"{name}.spikes", train[0], stage.shape)
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
