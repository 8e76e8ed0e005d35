"""Lower a network to a list of stages; round it to few bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from tandem_ext._torch import remove_weight_hooks
from tandem_ext.functional.neuron import Tensors, fold, over_inputs, tensors_of
from tandem_ext.functional.products import LINEAR, Product

from .. import nn as tnn
from ..nn.batch_norm import fold_norm
from ..nn.general import Neurons, rearranged, total
from ..nn.hooks import given
from ..nn.maximum import MaxPool, largest
from ..nn.options import INTEGRATE_ONLY
from ..nn.quantise import quantise
from .stages import ABSENT, FIRES, FORMS, INPUT, CannotLower, Stage, Stages
from .trace import LAYERS, LEAVES, MOVES, trace

_Gain = float | Tensor


@torch.no_grad()
def lower(net: nn.Module, gain: _Gain = 1.0) -> Stages:
    """Return the evaluation of ``net`` as stages, for a gain of its input; raise CannotLower if that is impossible."""
    if not isinstance(net, Stages):
        return Lowering(net, gain).stages()
    if torch.as_tensor(gain).ne(1).any():
        raise ValueError(f"x: the gain of its spikes is {gain}, but a network from a file was saved for a gain of 1")
    return net


def snapshot(net: nn.Module) -> nn.Module:
    """Copy a network in evaluation mode; pruning, weight norm and other parametrisations become plain weights."""
    values = [value for module in net.modules() for value in vars(module).values()]
    # deepcopy does not support tensors that are not leaves
    memo = {id(v): v.detach().clone() for v in values if isinstance(v, Tensor) and not v.is_leaf}
    net = copy.deepcopy(net, memo).eval().requires_grad_(False)
    for module in net.modules():
        remove_weight_hooks(module)
        if parametrize.is_parametrized(module):  # remove_parametrizations would change the class shared with net
            parametrizations: Any = module.parametrizations
            made = {name: nn.Parameter(getattr(module, name)) for name in parametrizations}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in made.items():
                module.register_parameter(name, value)
    return net.requires_grad_(False)


class Lowering:
    def __init__(self, net: nn.Module, gain: _Gain) -> None:
        self.net = nn.Sequential(net) if isinstance(net, LEAVES) else net
        self.list: list[Stage] = []
        self.values: dict[Any, int] = {}  # the number of each node's value
        self.gains: dict[Any, _Gain] = {}  # the gain of each node's value
        # The timing whose form a train has, by the number of its value; None for values that are no trains.
        self.forms: dict[int, str | None] = {ABSENT: None, INPUT: "step"}
        self.converted: dict[int, int] = {}
        self.images = {INPUT}  # the input, and the input after moves such as pooling
        self.first_gain = gain
        self.mode: str | None = None
        self.T: int | None = None

    def stages(self) -> Stages:
        nodes = list(trace(self.net).nodes)
        for node in nodes:
            if node.op == "call_module":
                layer = self.net.get_submodule(str(node.target))
                _refuse_the_general_way(str(node.target), layer)
                if isinstance(layer, tnn.Encoder) and layer.mode != "events":
                    self.forms[INPUT] = None
        for node in nodes:
            if node.op == "placeholder":
                if self.values:
                    raise CannotLower("net", f"it has a second input, {node.name!r}")
                self._same(node, INPUT, self.first_gain)
            elif node.op == "output":
                if not self.list or self.values.get(node.args[0]) != len(self.list) - 1:
                    raise CannotLower("net", "its output is not that of its last layer, a Readout")
            elif node.op == "call_module" and len(node.args) <= 2 and set(node.kwargs) <= {"x", "residual", "fire"}:
                self.call(node, str(node.target), self.net.get_submodule(str(node.target)))
            else:
                name, module = node.meta["module"]
                operator = _operator(node)
                what = f"{type(module).__name__}, with {operator} in its forward," if name else operator
                raise CannotLower(name or "net", f"{what} is not a layer of tandem_snn.nn")
        return Stages(self.list, self.mode or "events", self.T, self.forms[len(self.list) - 1])

    def _same(self, node: fx.Node, value: int, gain: _Gain) -> None:
        self.values[node], self.gains[node] = value, gain

    def _add(self, node: fx.Node, stage: Stage, gain: _Gain) -> None:
        if stage.kind in FIRES:
            stage.input, stage.residual = self._read(stage.input, stage), self._read(stage.residual, stage)
        form = self.forms[stage.input] if stage.kind in ("max_pool", "flatten", "average") else None
        self._same(node, self._append(stage, stage.timing if stage.kind == "layer" and stage.fires else form), gain)

    def _append(self, stage: Stage, form: str | None) -> int:
        self.list.append(stage)
        self.forms[len(self.list) - 1] = form
        return len(self.list) - 1

    def _read(self, value: int, reader: Stage) -> int:
        """Return the number of a value; a train in the form of another timing is first converted, once."""
        if self.forms[value] in (None, reader.timing):
            return value
        if value not in self.converted:
            kind = next(kind for kind, timing in FORMS.items() if timing == reader.timing)
            self.converted[value] = self._append(Stage(reader.name, kind, value), reader.timing)
        return self.converted[value]

    def call(self, node: fx.Node, name: str, layer: Any) -> None:
        x, further = given(node.args, node.kwargs)
        if x not in self.values:
            raise CannotLower(name, "its input does not come from a layer of tandem_snn.nn")
        value, gain = self.values[x], self.gains[x]
        if type(layer) in (tnn.Dropout, nn.Identity):
            self._same(node, value, gain)
        elif type(layer) is tnn.Encoder:
            if (self.mode or layer.mode, self.T or layer.T) != (layer.mode, layer.T):
                raise CannotLower(name, "a second Encoder, of another mode or T")
            if any(stage.weight is not None for stage in self.list):
                raise CannotLower(name, "an Encoder after a layer is not supported")
            self.mode, self.T = layer.mode, layer.T
            self._same(node, value, gain if layer.mode == "events" else layer.gain)
        elif type(layer) in MOVES:
            stage = _move(name, value, layer)
            means = stage.kind in ("mean", "adaptive_mean")
            if means and self.mode not in (None, "events") and value in self.images:
                raise CannotLower(name, "it averages the input, so nothing in the network spikes")
            if means and _by_channel(gain):
                stage.scale = _constant(gain)  # type: ignore[arg-type]
            elif means:
                stage.gain = float(gain)
            self._add(node, stage, 1.0 if means else gain)
            if value in self.images:
                self.images.add(self.values[node])
        elif type(layer) in LAYERS:
            self._layer(node, name, layer, value, gain, further.get("residual"), bool(further.get("fire", True)))
        elif type(layer) is tnn.Readout:
            weight, gain = _weighted(layer, gain)
            stage = _synapses(name, "readout", value, layer, weight)
            stage.shift, stage.gain = _constant(layer.bias), float(gain)
            self._add(node, stage, 1.0)
        else:
            raise CannotLower(name, f"{type(layer).__name__} is not a layer of tandem_snn.nn")

    def _layer(
        self, node: fx.Node, name: str, layer: Any, x: int, gain: _Gain, residual: fx.Node | None, fire: bool
    ) -> None:
        weight, gain = _weighted(layer, gain)
        neuron = layer.numbers() | ({} if fire else INTEGRATE_ONLY)
        del neuron["gate"]  # there is no backward pass
        stage = _synapses(name, "layer", x, layer, weight, fires=fire, **neuron)
        channels, tensors = len(weight), Tensors()
        if fire:
            given = layer.v_init.shape if isinstance(layer.v_init, Tensor) and layer.v_init.dim() > 1 else ()
            shape = (1, *(given or (channels, *[1] * (weight.dim() - 2))))
            tensors = tensors_of(weight, 1, shape, None, layer.threshold, layer.v_init, layer.timing)
        scale, shift = fold(tensors.theta, layer.bias, *fold_norm(layer.norm), stage.step, gain, channels, weight)
        stage.scale, stage.shift, stage.v_init = _constant(scale), _constant(shift), _constant(tensors.v_init)
        if residual is not None:
            stage.residual, residual_gain = self.values[residual], self.gains[residual]
            scale, _ = fold(tensors.theta, None, None, None, None, residual_gain, channels, weight)
            stage.residual_scale = _constant(scale)
        result: _Gain = layer.threshold if layer.gain == "threshold" else layer.gain
        self._add(node, stage, result if fire else 1.0)


def _operator(node: fx.Node) -> str:
    """Name the operator of the user's network, for which :func:`tandem_snn.convert` may have put other functions."""
    if node.target is total and node.users:
        return _operator(next(iter(node.users)))
    target: Any = node.args[0] if node.target in (rearranged, largest) else node.target
    target = getattr(target, "overloadpacket", target)
    return f"{node.name!r} ({node.op} {target if isinstance(target, str) else getattr(target, '__name__', target)})"


def _refuse_the_general_way(name: str, layer: nn.Module) -> None:
    """Raise an error that names the neurons, which is clearer than an error about an operator before them."""
    if isinstance(layer, Neurons):
        why = f"it uses the general way ({layer.sums or 'any sum of linear maps'})"
        raise CannotLower(name, f"{why}, so it is not a layer of tandem_snn.nn, and cannot run step by step")
    if isinstance(layer, MaxPool):
        why = f"{layer.f} is not a layer of tandem_snn.nn"
        other = 'convert with timing="window", or put tnn.MaxPool2d in its place'
        raise CannotLower(name, f"{why}: {other if layer.f == 'max_pool2d' else 'only tnn.MaxPool2d, of images, is'}")


def _constant(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()


def _by_channel(gain: object) -> bool:
    return isinstance(gain, Tensor) and gain.dim() > 0


def _weighted(layer: Any, gain: _Gain) -> tuple[Tensor, _Gain]:
    """Multiply a gain per channel into the layer's weight; return the weight and the remaining gain."""
    weight = layer.weight.detach()
    if not _by_channel(gain):
        return weight, gain
    product = layer.synapses() if isinstance(layer, tnn.SpikingLayer) else LINEAR
    each = weight.shape[1] * product.groups // len(gain)  # type: ignore[arg-type]  # features per channel, if flattened
    return product.weighted(weight, gain.detach().repeat_interleave(each)), 1.0  # type: ignore[union-attr]


def _synapses(name: str, kind: str, x: int, layer: Any, weight: Tensor, **neuron: Any) -> Stage:
    step = None
    if layer.weight_bits is not None:
        q, step = quantise(weight, layer.weight_bits)
        weight = q if q.dtype == torch.float64 else q.to(torch.int8)  # int8 kernels do not support a float64 scale
    geometry = geometry_of(layer.synapses(), weight.shape[2:]) if weight.dim() > 2 else {}
    return Stage(name, kind, x, weight=weight, step=step, **geometry, **neuron)


def geometry_of(product: Product, kernel: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a Stage for a convolution with this kernel size."""
    return {
        "groups": product.groups,
        "kernel": _pair(kernel, 1),
        "stride": _pair(product.stride, 1),
        "padding": _pair(product.padding, 0),
        "dilation": _pair(product.dilation, 1),
        "after": _pair(product.sides[1::2][::-1], 0),
    }


def _pair(sizes: Sequence[Any], neutral: int) -> tuple[int, int]:
    """Return sizes as (vertical, horizontal)."""
    vertical, horizontal = (neutral, neutral, *sizes)[-2:]
    return vertical, horizontal


def _move(name: str, x: int, layer: Any) -> Stage:
    if isinstance(layer, tnn.Flatten):
        return Stage(name, "flatten", x, first=layer.start_dim, last=layer.end_dim)
    if isinstance(layer, tnn.AdaptiveAvgPool2d):
        size = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * 2
        if None in size:
            raise CannotLower(name, f"output_size: expected two sizes, got {size}")
        return Stage(name, "adaptive_mean", x, kernel=_pair(size, 1))
    window: dict[str, Any] = {"kernel": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
    window["dilation"] = layer.dilation
    if isinstance(layer, tnn.MaxPool2d):
        return Stage(name, "max_pool", x, ceil=layer.ceil_mode, **window)
    if not layer.spiking:
        return Stage(name, "mean", x, **window)
    start = torch.tensor(layer.initial_potential)
    return Stage(name, "average", x, v_init=start, threshold=layer.threshold, timing=layer.timing, **window)


@dataclass(frozen=True, eq=False)
class Grid:
    """Weights as integers q [N, ...], floats or int8, times a quantisation step [N] per output channel."""

    q: Tensor
    step: Tensor

    def weight(self) -> Tensor:
        """Return the weights step·q."""
        if self.q.dim() < 2 or self.step.shape != self.q.shape[:1]:
            raise ValueError(f"steps of shape {list(self.step.shape)} for weights of shape {list(self.q.shape)}")
        return self.q.to(self.step.dtype) * over_inputs(self.step, self.q)


@torch.no_grad()
def round_(net: nn.Module, bits: int | None) -> None:
    """Round weights in place to ``bits``, or to each layer's own. Layers with gains per channel round when they run."""
    general = next((name for name, layer in net.named_modules() if isinstance(layer, Neurons)), None)
    if bits is not None and general is not None:
        raise ValueError(f"weight_bits: {general!r} uses the general way, in which weights cannot be rounded")
    layers: list[Any] = [layer for layer in net.modules() if isinstance(layer, tnn.SpikingLayer | tnn.Readout)]
    firing = [layer for layer in layers if isinstance(layer, tnn.SpikingLayer)]
    by_channel = any(_by_channel(layer.threshold if layer.gain == "threshold" else layer.gain) for layer in firing)
    for layer in layers:
        layer.weight_bits = layer.weight_bits if bits is None else bits
        if layer.weight_bits is not None and not by_channel:
            layer.weight.copy_(Grid(*quantise(layer.weight, layer.weight_bits)).weight())


@torch.no_grad()
def grids_of(net: nn.Module) -> dict[str, Grid]:
    """Return the grids of the layers with ``weight_bits``, by name."""
    if isinstance(net, Stages):
        return {stage.name: Grid(stage.weight, stage.step) for stage in net.stages if stage.step is not None}
    grids = {}
    for name, layer in net.named_modules():
        if getattr(layer, "weight_bits", None) is not None:
            q, step = quantise(layer.weight, layer.weight_bits)
            grids[name] = Grid(q.to(torch.int8), step)
    return grids
