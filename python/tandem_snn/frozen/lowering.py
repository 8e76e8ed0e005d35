"""Lower a network to a list of stages; round it to few bits."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tandem_ext._torch import remove_weight_hooks
from tandem_ext.functional.neuron import Tensors, fold, over_inputs, tensors_of
from tandem_ext.functional.products import LINEAR, Product

from .. import nn as tnn
from ..nn.batch_norm import fold_norm
from ..nn.general import Neurons
from ..nn.maximum import MaxPool
from ..nn.options import INTEGRATE_ONLY
from ..nn.quantise import quantise
from .instruction import CONVERSIONS, INPUT, CannotLower, Instruction
from .stages import Stage, Stages
from .trace import LAYERS, LEAVES, MOVES, Value, trace

_Gain = float | Tensor


@torch.no_grad()
def lower(net: nn.Module, gain: _Gain = 1.0, T: int | None = None) -> Stages:
    """Return the evaluation of ``net`` as stages, for a gain of its input; raise CannotLower if that is impossible.

    T is the number of time steps of a network without Encoder, for the default thresholds of its layers.
    """
    if not isinstance(net, Stages):
        return Lowering(net, gain, T).stages()
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
    """Makes the stages of a network while its layers are called with values."""

    def __init__(self, net: nn.Module, gain: _Gain, T: int | None) -> None:
        self.net = nn.Sequential(net) if isinstance(net, LEAVES) else net
        self.list: list[Stage] = []
        self.gain = gain  # of the input
        self.mode: str | None = None
        self.T: int | None = None  # None: any
        self.default_T = T

    def stages(self) -> Stages:
        timing: str | None = "step"
        for name, layer in self.net.named_modules():
            _refuse_the_general_way(name, layer)
            timing = None if isinstance(layer, tnn.Encoder) and layer.mode != "events" else timing
        answer = trace(self.net, Value(INPUT, timing, self.gain, is_image=True), self.call)
        if not isinstance(answer, Value) or answer.number != len(self.list) - 1:
            raise CannotLower("net", "its output is not that of its last layer, a Readout")
        return Stages(self.list, self.mode or "events", self.T, answer.timing)

    def call(self, name: str, layer: Any, x: Value, residual: Value | None = None, fire: bool = True) -> Value:
        """Append what a layer does; return the value of its result."""
        if type(layer) in (tnn.Dropout, nn.Identity):
            return x
        if type(layer) is tnn.Encoder:
            if (self.mode or layer.mode, self.T or layer.T) != (layer.mode, layer.T):
                raise CannotLower(name, "a second Encoder, of another mode or T")
            if any(stage.weight is not None for stage in self.list):
                raise CannotLower(name, "an Encoder after a layer is not supported")
            self.mode, self.T = layer.mode, layer.T
            return x if layer.mode == "events" else Value(x.number, x.timing, layer.signal_gain, x.is_image)
        if type(layer) in MOVES:
            return self._move(name, layer, x)
        if type(layer) in LAYERS:
            return self._layer(name, layer, x, residual, fire)
        if type(layer) is tnn.Readout:
            weight, gain = _weighted(layer, x.gain)
            tensors = _weights(layer, weight) | {"shift": layer.bias}
            return self._add(name, "readout", x, None, 1.0, tensors, gain=float(gain), **_geometry(layer, weight))
        raise CannotLower(name, f"{type(layer).__name__} is not a layer of tandem_snn.nn")

    def _add(
        self, name: str, kind: str, x: Value, result: str | None, worth: _Gain, tensors: dict[str, Any], **fields: Any
    ) -> Value:
        """Append an instruction that reads x; the result has this timing, None for numbers, and gain."""
        tensors = {key: None if tensor is None else tensor.detach() for key, tensor in tensors.items()}
        self.list.append(Stage(name, Instruction(kind, x.number, **fields), **tensors))
        return Value(len(self.list) - 1, result, worth)

    def _converted(self, name: str, x: Value, timing: str) -> Value:
        """Return a value for a reader with this timing: a train of the other timing is first converted, once."""
        if x.timing in (None, timing):
            return x
        if x.converted is None:
            kind = next(kind for kind, other in CONVERSIONS.items() if other == timing)
            x.converted = self._add(name, kind, x, timing, x.gain, {})
        return x.converted

    def _move(self, name: str, layer: Any, x: Value) -> Value:
        means = isinstance(layer, tnn.AdaptiveAvgPool2d) or (isinstance(layer, tnn.AvgPool2d) and not layer.spiking)
        if means and self.mode not in (None, "events") and x.is_image:
            raise CannotLower(name, "it averages the input, so nothing in the network spikes")
        gain, read = (1.0, x) if means else (x.gain, x)
        tensors, fields = dict[str, Any](), dict[str, Any]()
        if means and _by_channel(x.gain):
            tensors["scale"] = x.gain
        elif means:
            fields["gain"] = float(x.gain)
        if isinstance(layer, tnn.Flatten):
            kind, fields = "flatten", {"first": layer.start_dim, "last": layer.end_dim}
        elif isinstance(layer, tnn.AdaptiveAvgPool2d):
            size = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * 2
            if None in size:
                raise CannotLower(name, f"output_size: expected two sizes, got {size}")
            kind, fields["kernel"] = "adaptive_mean", _pair(size, 1)
        else:
            kind = "mean" if means else "average" if isinstance(layer, tnn.AvgPool2d) else "max_pool"
            fields |= {"kernel": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            fields |= {"dilation": layer.dilation}
        if kind == "max_pool":
            fields["ceil"] = layer.ceil_mode
        if kind == "average":
            read = self._converted(name, x, layer.timing)
            tensors["v_init"] = torch.tensor(layer.initial_potential)
            fields |= {"threshold": float(layer.threshold), "timing": layer.timing}
        y = self._add(name, kind, read, None if means else read.timing, gain, tensors, **fields)
        y.is_image = x.is_image
        return y

    def _layer(self, name: str, layer: Any, x: Value, residual: Value | None, fire: bool) -> Value:
        weight, gain = _weighted(layer, x.gain)
        neuron = layer.numbers() | ({} if fire else INTEGRATE_ONLY)
        del neuron["gate"]  # there is no backward pass
        made, channels, unit, tensors = Tensors(), len(weight), 1.0, _weights(layer, weight)
        if fire:
            if layer.threshold is None:
                self.T = self.T or self.default_T
            unit = layer.unit(self.T)
            given = layer.v_init.shape if isinstance(layer.v_init, Tensor) and layer.v_init.dim() > 1 else ()
            shape = (1, *(given or (channels, *[1] * (weight.dim() - 2))))
            made = tensors_of(weight, 1, shape, None, layer.dynamics()["threshold"], layer.v_init, layer.timing)
        scaled = (*fold_norm(layer.norm), tensors["step"], gain, channels, tensors["weight"], unit)
        tensors["scale"], tensors["shift"] = fold(made.theta, layer.bias, *scaled)
        tensors["v_init"] = made.v_init
        x = self._converted(name, x, layer.timing)
        if residual is not None:
            worth = residual.gain
            if isinstance(worth, Tensor) and worth.dim():  # a channel may have become several features
                worth = worth.repeat_interleave(channels // len(worth))
            scale, _ = fold(made.theta, None, None, None, None, worth, channels, tensors["weight"], unit)
            residual, tensors["residual_scale"] = self._converted(name, residual, layer.timing), scale
            neuron["residual"] = residual.number
        worth = layer.spike_value(self.T) if fire else 1.0
        result = layer.timing if fire else None
        return self._add(name, "layer", x, result, worth, tensors, fires=fire, **neuron, **_geometry(layer, weight))


def _refuse_the_general_way(name: str, layer: nn.Module) -> None:
    """Raise an error that names the neurons, which is clearer than an error about an operator before them."""
    if isinstance(layer, Neurons):
        why = f"it uses the general way ({layer.sums or 'any sum of linear maps'})"
        raise CannotLower(name, f"{why}, so it is not a layer of tandem_snn.nn, and cannot run step by step")
    if isinstance(layer, MaxPool):
        why = f"{layer.f} is not a layer of tandem_snn.nn"
        other = 'convert with timing="window", or put tnn.MaxPool2d in its place'
        raise CannotLower(name, f"{why}: {other if layer.f == 'max_pool2d' else 'only tnn.MaxPool2d, of images, is'}")


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


def _weights(layer: Any, weight: Tensor) -> dict[str, Any]:
    if layer.weight_bits is None:
        return {"weight": weight, "step": None}
    q, step = quantise(weight, layer.weight_bits)
    # int8 kernels do not support a float64 scale
    return {"weight": q if q.dtype == torch.float64 else q.to(torch.int8), "step": step}


def _geometry(layer: Any, weight: Tensor) -> dict[str, Any]:
    return geometry_of(layer.synapses(), weight.shape[2:]) if weight.dim() > 2 else {}


def geometry_of(product: Product, kernel: Sequence[int]) -> dict[str, Any]:
    """Return the fields of an instruction for a convolution with this kernel size."""
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
    by_channel = any(_by_channel(layer.threshold if layer.gain is None else layer.gain) for layer in firing)
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
