"""to_nir for the general way: export the graph of the ANN twin, as conversion reads it, operator by operator."""

import math
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain
from tandem_ext._torch import pytree
from tandem_ext.functional.products import convolution

from .. import nn as tnn
from ..convert import kinds
from ..convert.exported import exported
from ..convert.graph import CannotConvert, Op
from ..convert.layers import average_of, is_over_space, norm_of, sizes_of
from ..convert.to_ann import Scale, to_ann
from ..frozen.instruction import INPUT, TENSORS, CannotLower, Instruction
from ..frozen.lowering import geometry_of
from ..frozen.network import FrozenNetwork
from ..frozen.stages import Stage
from ..frozen.trace import refuse_hooks
from ..listing import NamedStage, identifier
from ..nn.batch_norm import fold_norm, uses_batch
from ..nn.general import Neurons
from ..nn.hooks import evaluating
from .writer import Writer, full


@dataclass
class _Value:
    """The result [*features] of an Op: the sum of some NIR nodes, times ``gain``."""

    names: list[str]
    shape: tuple[int, ...]
    gain: float | Tensor = 1.0
    spikes: bool = False

    def gains(self) -> Tensor:
        """The gain, [] or [*features]."""
        gain = torch.as_tensor(self.gain).detach().float()
        if not gain.dim():
            return gain
        return torch.from_numpy(full(self.shape, gain.repeat_interleave(self.shape[0] // len(gain))))


def graph_of_maps(net: nn.Module, x: Any, dt: float) -> Any:
    """Export a network; arguments as in :func:`to_nir`."""
    net = net.net if isinstance(net, FrozenNetwork) else net
    refuse_hooks(net)
    with evaluating(net):
        return _Walk(net, x[:1], dt).written()


class _Walk:
    """Writes a node for each Op of the ANN twin, with the neurons of the spiking network instead of ReLUs."""

    def __init__(self, net: nn.Module, x: Any, dt: float) -> None:
        self.net = net
        encoder = next((m for m in net.modules() if isinstance(m, tnn.Encoder)), None)
        self.mode = "events" if encoder is None else encoder.mode
        T = x.T if isinstance(x, SpikeTrain) or encoder is None else encoder.T
        window_timing = any(getattr(m, "timing", "step") == "window" for m in net.modules())
        try:
            self.graph = exported(to_ann(net), x)
        except CannotConvert as error:
            raise CannotLower("net", str(error)) from error
        gain = 1.0 if isinstance(x, SpikeTrain) or encoder is None else encoder.signal_gain
        shape = tuple(x.shape[1:])
        self.writer = Writer(shape, T, dt, window_timing)
        self.input = _Value(["input"], shape, gain, isinstance(x, SpikeTrain))
        self.values: dict[Op, _Value] = {}
        self.constants: dict[Op, Any] = {}
        self.scales: dict[tuple[Op, float | Tensor], str] = {}
        self.waiting: dict[Op, NamedStage] = {}  # synapses that will be folded with the batch norm after them

    def written(self) -> Any:
        for op in self.graph.ops:
            if op.kind == "input":
                self.values[op] = self.input
            elif op.kind == "attribute":
                self.constants[op] = self.graph.attributes[op.target]
            elif op.kind == "output":
                if op.x not in self.values:
                    raise CannotLower("net", "its answer does not come from its input alone")
                value = self.values[op.x]
                return self.writer.graph(self._names(op.x), value.shape, self.mode)
            elif op.kind == "size":
                continue
            elif any(source in self.values for source in op.inputs):
                self._follow(op)
            elif all(source in self.constants for source in op.inputs):
                args, kwargs = pytree.tree_map_only(Op, self.constants.__getitem__, op.call)
                self.constants[op] = op.function(*args, **kwargs)
        raise CannotLower("net", "it has no answer")

    def _follow(self, op: Op) -> None:
        self.op, self.base = op, identifier(op.path or op.name, set())
        if isinstance(op.module, Scale) or op.path.endswith(".units") or op.kind in _ALIASES:
            self.values[op] = self.values[self._x]
            return
        self.name = self.writer.free(self.base)
        method = getattr(self, f"_on_{'reshape' if op.kind in _RESHAPES else op.kind}", None)
        if kinds.is_relu(op):
            method = self._neurons
        if method is None:
            self._refuse(op.kind)
        method()

    def _refuse(self, kind: str) -> NoReturn:
        why = "use AvgPool2d or strides" if "max_pool" in kind else "leave it out"
        raise CannotLower(self.name, f"NIR has no node for {kind}: {why}")

    # --- values -------------------------------------------------------------------------------------------------------

    @property
    def _x(self) -> Op:
        return next(source for source in self.op.inputs if source in self.values)

    def _given(self, name: str) -> Any:
        """Return an argument: an Op if it depends on the input, else its value."""
        value = self.op.args[name]
        return self.constants.get(value, value) if isinstance(value, Op) else value

    def _names(self, x: Op, factor: float | Tensor = 1.0) -> list[str]:
        """Return the NIR nodes whose sum is x times a factor."""
        value = self.values[x]
        gains = value.gains() * factor
        if bool((gains == 1).all()):
            return value.names
        if (x, factor) not in self.scales:
            scale = self.writer.nir.Scale(full(value.shape, gains))
            self.scales[x, factor] = self.writer.add(self.writer.free(f"{value.names[0]}_gain"), scale, *value.names)
        return [self.scales[x, factor]]

    def _sum(self, names: list[str]) -> None:
        self.values[self.op] = _Value(names, self.op.features)

    def _map(self, kind: str, names: list[str], name: str | None = None, **fields: Any) -> NamedStage:
        name, value = name or self.name, self.values[self._x]
        self.writer.result[f"{name} reads"] = names
        tensors = {tensor: fields.pop(tensor, None) for tensor in TENSORS}
        layer = Stage(name, Instruction(kind, INPUT, **fields), **tensors)
        return NamedStage(name, layer, f"{name} reads", None, False, value.shape, self.op.features)

    def _write(self, stage: NamedStage) -> None:
        self.writer.write(stage)
        self._sum(self.writer.result[stage.name])

    # --- neurons ------------------------------------------------------------------------------------------------------

    def _neurons(self) -> None:
        layer: Any = self.net.get_submodule(self.op.path)
        if not isinstance(layer, Neurons | tnn.SpikingLayer):
            self._refuse(self.op.kind)
        if getattr(layer, "has_offset", False):
            raise CannotLower(self.name, "NIR's neurons have no current of their own at every step, an offset")
        T = self.writer.T
        start = layer.unit(T) * torch.as_tensor(layer.initial_potential).detach()
        fields = layer.dynamics() | {"threshold": layer.threshold_for(T), "v_init": start, "timing": layer.timing}
        stage = self._map("layer", [], self.base, weight=torch.empty(0, 0), **fields)
        stage.fires = True
        names = [self.writer.neurons(stage, self._names(self._x))]
        self.values[self.op] = _Value(names, stage.shape, layer.spike_value(T), True)

    # --- linear maps --------------------------------------------------------------------------------------------------

    def _on_linear(self) -> None:
        if len(self.values[self._x].shape) != 1:
            raise CannotLower(self.name, "a linear map of each position, for which NIR has no node: use convolutions")
        self._synapses()

    def _on_conv2d(self) -> None:
        weight = self._given("weight")
        product = convolution(weight.shape[2:], *sizes_of(self.op))
        self._synapses(**geometry_of(product, weight.shape[2:]))

    _on_conv1d = _on_conv2d

    def _synapses(self, **geometry: Any) -> None:
        weight, bias = self._given("weight"), self._given("bias")
        if not isinstance(weight, Tensor) or isinstance(bias, Op):
            raise CannotLower(self.name, "its weights depend on the input")
        names, gain = self.values[self._x].names, self.values[self._x].gain
        if isinstance(gain, Tensor) and gain.dim():
            names, gain = self._names(self._x), 1.0
        shift = torch.zeros(len(weight)) if bias is None else bias.detach()
        stage = self._map("layer", names, weight=weight.detach(), shift=shift, gain=float(gain), **geometry)
        if len(self.op.users) == 1 and self.op.users[0].kind == "batch_norm":
            self.waiting[self.op] = stage
            self._sum([])
        else:
            self._write(stage)

    def _on_batch_norm(self) -> None:
        norm = norm_of(self.op, self.graph.attributes, training=False)
        if uses_batch(norm):
            raise CannotLower(self.name, "batch norm by the statistics of each batch has no fixed weights")
        scale, shift = fold_norm(norm)
        stage = self.waiting.pop(self._x, None) or self._each()
        stage.layer.scale, stage.layer.shift = scale, stage.layer.shift * scale + shift
        self._write(stage)

    def _each(self) -> NamedStage:
        """Return synapses from each channel to itself."""
        channels, *space = self.values[self._x].shape
        if len(space) > 2:
            self._refuse("batch norm of volumes")
        fields: dict[str, Any] = {"weight": torch.eye(channels), "shift": torch.zeros(channels)}
        if space:
            fields |= {"weight": torch.ones(channels, 1, *[1] * len(space)), "groups": channels}
        return self._map("layer", self._names(self._x), **fields)

    def _on_add(self) -> None:
        sign = 1.0 if self.op.kind == "add" else -1.0
        first, second = ("other", "self") if self.op.kind == "rsub" else ("self", "other")
        terms = [(self._given(first), 1.0), (self._given(second), sign * self.op.args["alpha"])]
        signals = [(term, factor) for term, factor in terms if isinstance(term, Op)]
        constants = [torch.as_tensor(term) * factor for term, factor in terms if not isinstance(term, Op)]
        if any(self.values[term].shape != self.op.features for term, _ in signals):
            raise CannotLower(self.name, "NIR has no node for additions that broadcast")
        if not constants:
            return self._sum([name for term, factor in signals for name in self._names(term, factor)])
        ((x, factor),) = signals
        stage = self._each()
        neurons = constants[0].expand(1, *self.values[x].shape)[0].flatten(1)
        if not bool((neurons == neurons[:, :1]).all()):
            raise CannotLower(self.name, "NIR has no node that adds another constant to each neuron of a channel")
        stage.layer.scale = torch.full(stage.shape[:1], factor)
        stage.layer.shift = neurons[:, 0].expand(stage.shape[:1])
        self._write(stage)

    _on_sub = _on_rsub = _on_add

    def _on_mul(self) -> None:
        self._times(self._given("other" if self.op.args["self"] in self.values else "self"))

    def _on_div(self) -> None:
        other = self._given("other")
        self._times(other if isinstance(other, Op) else 1 / torch.as_tensor(other))

    def _on_neg(self) -> None:
        self._times(-1.0)

    def _times(self, factor: Any) -> None:
        if isinstance(factor, Op) or self.op.args.get("rounding_mode"):
            self._refuse(f"{self.op.kind} of activations")
        factor, shape = torch.as_tensor(factor).float(), self.values[self._x].shape
        self._sum(self._names(self._x, factor.expand(1, *shape)[0] if factor.dim() else factor))

    # --- pooling and views --------------------------------------------------------------------------------------------

    def _on_avg_pool2d(self) -> None:
        pool = average_of(self.op)
        if pool is None:
            raise CannotLower(self.name, "NIR has no average pooling whose kernels differ at the border")
        pooling: dict[str, Any] = {"kernel": pool.kernel_size, "stride": pool.stride, "padding": pool.padding}
        layer, x = self.op.path and self.net.get_submodule(self.op.path), self.values[self._x]
        if not isinstance(layer, tnn.AvgPool2d) or not layer.spiking or not x.spikes:
            return self._pool("mean", **pooling)
        neurons: dict[str, Any] = {"threshold": layer.threshold, "timing": layer.timing}
        stage = self._map("average", x.names, v_init=torch.tensor(layer.initial_potential), **neurons, **pooling)
        stage.fires = True
        self.writer.write(stage)
        self.values[self.op] = replace(x, names=self.writer.result[stage.name], shape=stage.shape)

    def _on_adaptive_avg_pool2d(self) -> None:
        self._pool("adaptive_mean")

    def _on_mean(self) -> None:
        shape = self.values[self._x].shape
        if not is_over_space(self.op):
            raise CannotLower(self.name, "NIR has no node for means other than those over the space of images")
        stage = self._map("mean", self._names(self._x), kernel=shape[1:], stride=shape[1:])
        stage.shape = (shape[0], 1, 1)
        self._write(stage)
        if not self.op.args["keepdim"]:
            flat = self.writer.nir.Flatten({"input": torch.tensor(stage.shape).numpy()}, -3, -1)
            self._sum([self.writer.add(self.writer.free(f"{self.name}_flat"), flat, *self.values[self.op].names)])

    def _pool(self, kind: str, **pooling: Any) -> None:
        stage = self._map(kind, self._names(self._x), **pooling)
        if len(stage.in_shape) != 3:
            self._refuse("pooling of what is no image")
        self._write(stage)

    def _on_reshape(self) -> None:
        x, wanted = self.values[self._x], self.op.features
        if x.shape == wanted:
            self.values[self.op] = x
            return
        for first in range(len(x.shape)):
            for last in range(first + 1, len(x.shape)):
                if (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]) == wanted:
                    stage = self._map("flatten", x.names, first=first + 1, last=last + 1)
                    self.writer.write(stage)
                    self.values[self.op] = replace(x, names=self.writer.result[stage.name], shape=wanted)
                    return
        raise CannotLower(self.name, "NIR has no node for views other than those that flatten")


_RESHAPES = ("flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze")
_ALIASES = (*kinds.SAME, *kinds.DROPOUT)
