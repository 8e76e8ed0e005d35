"""A whole window of a network as an ONNX graph without state: layers that wait are a product and a rounding."""

from __future__ import annotations

import math
from typing import Any

import torch

from .listing import Listing, Stage
from .onnx_graph import Graph


class WindowGraph(Graph):
    """The counterpart of calling a :class:`FrozenNetwork`.

    A value is one of the window, such as counts, or, of a layer that fires at once, T values, one of each step; either
    is made of the other where a reader wants it.
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
        """Of counts the burst."""
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
        """The spikes of neurons that have integrated v. Of a threshold that is a power of two a division says how often
        it can be subtracted; of another one, whose multiples are rounded, subtraction alone does.
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
