"""to_nir where neurons get any sum of linear maps: map by map, for which the network runs once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tandem_ext import SpikeTrain
from tandem_ext.functional.products import convolution

from .. import nn as tnn
from ..frozen import stages as frozen
from ..frozen.lowering import LEAVES, Lowering, geometry_of, trace
from ..frozen.network import FrozenNetwork
from ..frozen.stages import INPUT, CannotLower
from ..nn import general
from ..nn.batch_norm import fold_norm, uses_batch
from ..nn.hooks import evaluating
from ..nn.maximum import MaxPool
from .listing import NO_STEP, Stage, identifier
from .nir_writer import Writer, full

_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
# Modules as the operators that they are: names of their attributes, in the order of the operator's arguments.
_MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.Linear: ("linear", ("weight", "bias")),
    nn.Conv1d: ("conv1d", _CONV),
    nn.Conv2d: ("conv2d", _CONV),
    nn.AvgPool2d: ("avg_pool2d", ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.Flatten: ("flatten", ()),
    nn.Dropout: ("dropout", ()),
    nn.Identity: ("dropout", ()),
}


@dataclass
class _Value:
    """What a node of the network gives, [*features]: the sum of some nodes of NIR, times ``gain``."""

    shape: tuple[int, ...]
    depth: int
    gain: float | Tensor = 1.0
    image: bool = False  # the input, before its encoder

    def worth(self) -> Tensor:
        """The gain, [] or [*features]."""
        gain = torch.as_tensor(self.gain).detach().float()
        if not gain.dim():
            return gain
        return torch.from_numpy(full(self.shape, gain.repeat_interleave(self.shape[0] // len(gain))))


def graph_of_maps(net: nn.Module, x: Any, form: str, dt: float) -> Any:
    """As :func:`to_nir`."""
    net = net.net if isinstance(net, FrozenNetwork) else net
    traced = fx.GraphModule(net, trace(net))
    with evaluating(traced):
        return _Walk(traced, x[:1], form, dt).written(x[:1])


class _Walk(fx.Interpreter):
    """Runs a network, and writes what each of its nodes is."""

    def __init__(self, net: fx.GraphModule, x: Any, form: str, dt: float) -> None:
        super().__init__(net, garbage_collect_values=False)
        self.extra_traceback = False  # an error's own message is enough
        encoder = next((m for m in net.modules() if isinstance(m, tnn.Encoder)), None)
        self.mode = "events" if encoder is None else encoder.mode
        T = x.T if isinstance(x, SpikeTrain) or encoder is None else encoder.T
        waits = any(getattr(m, "timing", "step") == "window" for m in net.modules())
        self.writer = Writer(tuple(x.shape[1:]), T, form, dt, waits)
        self.layers = Lowering(net, 1.0)  # of the layers of tandem_snn.nn
        self.values: dict[fx.Node, _Value] = {}
        self.scales: dict[tuple[fx.Node, float | Tensor], str] = {}
        self.waiting: dict[fx.Node, Stage] = {}  # synapses, for their batch norm

    def written(self, x: Any) -> Any:
        self.run(x)
        (answer,) = (node.args[0] for node in self.graph.nodes if node.op == "output")
        if answer not in self.values:
            raise CannotLower("net", "its answer does not come from its input alone")
        value = self.values[answer]
        return self.writer.graph(self._names(answer), value.shape, self.mode, value.depth)

    def run_node(self, node: fx.Node) -> Any:
        y = super().run_node(node)
        if node.op == "placeholder":
            gain = y.gain if isinstance(y, SpikeTrain) else 1.0
            self._set(node, ["input"], _Value(tuple(y.shape[1:]), 0, gain, not isinstance(y, SpikeTrain)))
        elif node.op != "output" and any(given in self.values for given in node.all_input_nodes):
            self._follow(node, y)
        return y

    def _set(self, node: fx.Node, names: list[str], value: _Value) -> None:
        self.writer.result[node.name], self.values[node] = names, value

    def _follow(self, node: fx.Node, y: Any) -> None:
        module: Any = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        first: Any = node.args[0]  # of a function of the general way: an operator's name, or a module's path
        path = node.target if module is not None else first
        if isinstance(first, fx.Node) and first.op == "get_attr":
            path = first.target
        self.name = self.writer.free(identifier(path if isinstance(path, str) else node.name, set()))
        self.node, self.y = node, y
        if getattr(module, "gate", "relu") == "resu":
            raise CannotLower(self.name, NO_STEP)
        if isinstance(module, MaxPool):
            self._refuse("max_pool2d")
        if isinstance(module, general.Neurons):
            return self._neurons(module, first)
        if isinstance(module, LEAVES):
            return self._layer(module)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda a: a if a in self.values else self.env[a])
        kind, args = self._operator(module, args)
        x = args[0]
        if isinstance(x, fx.Node) and self.values[x].image and kind not in _RESHAPES:
            raise CannotLower(self.name, f"{kind} of the input, before its encoder, is no part of the graph")
        method = getattr(self, f"_on_{'reshape' if kind in _RESHAPES else kind}", None)
        if method is None:
            self._refuse(kind)
        try:
            inspect.signature(method).bind(*args, **kwargs)
        except TypeError as error:
            raise CannotLower(self.name, f"NIR has no node for {kind} with these arguments: {error}") from error
        method(*args, **kwargs)

    def _operator(self, module: Any, args: Any) -> tuple[str, Any]:
        """What a node computes as the operator of ``torch.ops.aten`` that it is."""
        target: Any = self.node.target
        if target in (general.linear_map, general.affine_map, general.rearranged):
            f, args = args[0], args[2 if target is general.rearranged else 1 :]
            if isinstance(f, str):
                return f, args
            module = f
        if target in (general.total, general.dropped):
            return "dropout", args[:1]
        if target is general.normalise or isinstance(module, _BatchNorm):
            return "batch_norm", (args[0], args[1] if module is None else module)
        if module is not None:
            kind, names = _MODULES.get(type(module), (type(module).__name__, ()))
            return kind, (*args, *(getattr(module, name) for name in names))
        if isinstance(target, torch._ops.OpOverload):
            return target.overloadpacket.__name__, args
        return getattr(target, "__name__", str(target)), args

    def _refuse(self, kind: str) -> NoReturn:
        why = "use AvgPool2d or strides" if "max_pool" in kind or kind == "largest" else "leave it out"
        raise CannotLower(self.name, f"NIR has no node for {kind}: {why}")

    # --- what a node gives --------------------------------------------------------------------------------------------

    def _names(self, x: fx.Node, factor: float | Tensor = 1.0) -> list[str]:
        """The nodes of NIR of which x, times a factor, is the sum."""
        value, names = self.values[x], self.writer.result[x.name]
        worth = value.worth() * factor
        if bool((worth == 1).all()):
            return names
        if (x, factor) not in self.scales:
            scale = self.writer.nir.Scale(full(value.shape, worth))
            self.scales[x, factor] = self.writer.add(self.writer.free(f"{names[0]}_worth"), scale, *names)
        return [self.scales[x, factor]]

    def _depth(self) -> int:
        return max(self.values[given].depth for given in self.node.all_input_nodes if given in self.values)

    def _sum(self, names: list[str]) -> None:
        self._set(self.node, names, _Value(tuple(self.y.shape[1:]), self._depth()))

    def _map(self, kind: str, x: fx.Node, names: list[str], **fields: Any) -> Stage:
        return self._stage(frozen.Stage(self.name, kind, INPUT, **fields), x, names)

    def _stage(self, layer: frozen.Stage, x: fx.Node, names: list[str]) -> Stage:
        self.writer.result[f"{self.name} reads"] = names
        shapes = self.values[x].shape, tuple(self.y.shape[1:])
        return Stage(self.name, layer, f"{self.name} reads", None, False, *shapes, self._depth())

    def _write(self, stage: Stage) -> None:
        self.writer.write(stage)
        self._sum(self.writer.result[stage.name])

    # --- layers of tandem_snn.nn, and neurons -------------------------------------------------------------------------

    def _layer(self, module: nn.Module) -> None:
        for given in self.node.all_input_nodes:
            value = self.values[given]
            self.layers.values.setdefault(given, INPUT if value.image else len(self.layers.list))
            self.layers.gains[given] = value.gain
        known = len(self.layers.list)
        self.layers.call(self.node, self.name, module)
        x: Any = self.node.args[0]
        residual: Any = self.node.kwargs.get("residual")
        names, made = self.writer.result[x.name], self.layers.list[known:]
        value = replace(self.values[x], gain=self.layers.gains[self.node], depth=self._depth())
        value.image &= not isinstance(module, tnn.Encoder)
        if made and not (made[0].kind == "flatten" and len(value.shape) == 1):
            stage = self._stage(made[0], x, names)
            stage.fires = isinstance(self.y, SpikeTrain) and made[0].kind in ("layer", "average")
            if made[0].kind == "layer" and not stage.fires:
                stage.shape = stage.shape[1:]  # currents are [T, B, *features]
            stage.residual = residual and residual.name
            self.writer.write(stage)
            names = self.writer.result[self.name]
            value = replace(value, shape=stage.shape, depth=value.depth + stage.waits)
        self._set(self.node, names, value)

    def _neurons(self, module: general.Neurons, x: fx.Node) -> None:
        if module.moved:
            raise CannotLower(self.name, "NIR's neurons have no current of their own at every step, an offset")
        neuron = {"v_init": module.v_init, "threshold": module.threshold, "leak": module.leak, "timing": module.timing}
        stage = self._map("layer", x, [], weight=torch.empty(0), **neuron)  # neurons alone, without synapses
        stage.fires = True
        name = self.writer.neurons(stage, self._names(x))
        gain = module.threshold if module.gain == "threshold" else module.gain
        self._set(self.node, [name], _Value(stage.shape, stage.depth + stage.waits, gain))  # type: ignore[arg-type]

    # --- linear maps --------------------------------------------------------------------------------------------------

    def _on_linear(self, x: fx.Node, weight: Tensor, bias: Tensor | None = None) -> None:
        if len(self.values[x].shape) != 1:
            raise CannotLower(self.name, "a linear map of each position, for which NIR has no node: use convolutions")
        self._synapses(x, weight, bias)

    def _on_conv2d(
        self,
        x: fx.Node,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        kernel = weight.shape[2:]
        product = convolution(kernel, stride, padding, dilation, groups)
        self._synapses(x, weight, bias, **geometry_of(product, kernel))

    _on_conv1d = _on_conv2d

    def _synapses(self, x: fx.Node, weight: Tensor, bias: Tensor | None, **geometry: Any) -> None:
        names, gain = self.writer.result[x.name], self.values[x].gain
        if isinstance(gain, Tensor) and gain.dim():
            names, gain = self._names(x), 1.0
        shift = torch.zeros(len(weight)) if bias is None else bias.detach()
        fields = {"weight": weight.detach(), "shift": shift, "gain": float(gain), **geometry}
        stage = self._map("layer", x, names, **fields)
        users = list(self.node.users)
        if len(users) == 1 and users[0].target is general.normalise:
            self.waiting[self.node] = stage
            self._sum([])
        else:
            self._write(stage)

    def _on_batch_norm(self, x: fx.Node, norm: _BatchNorm) -> None:
        if uses_batch(norm):
            raise CannotLower(self.name, "batch norm by the statistics of each batch has no fixed weights")
        scale, shift = fold_norm(norm)
        stage = self.waiting.pop(x, None) or self._each(x)
        stage.layer.scale, stage.layer.shift = scale, stage.layer.shift * scale + shift  # type: ignore[operator]
        self._write(stage)

    def _each(self, x: fx.Node) -> Stage:
        """Synapses from each channel to itself."""
        channels, *space = self.values[x].shape
        if len(space) > 2:
            self._refuse("batch norm of volumes")
        fields: dict[str, Any] = {"weight": torch.eye(channels), "shift": torch.zeros(channels)}
        if space:
            fields |= {"weight": torch.ones(channels, 1, *[1] * len(space)), "groups": channels}
        return self._map("layer", x, self._names(x), **fields)

    def _on_add(self, x: Any, other: Any, alpha: float = 1) -> None:
        self._add((x, 1.0), (other, float(alpha)))

    def _on_sub(self, x: Any, other: Any, alpha: float = 1) -> None:
        self._add((x, 1.0), (other, -float(alpha)))

    def _on_rsub(self, x: Any, other: Any, alpha: float = 1) -> None:
        self._add((other, 1.0), (x, -float(alpha)))

    def _add(self, *terms: tuple[Any, float]) -> None:
        signals = [(term, factor) for term, factor in terms if isinstance(term, fx.Node)]
        constants = [torch.as_tensor(term) * factor for term, factor in terms if not isinstance(term, fx.Node)]
        if any(self.values[term].shape != tuple(self.y.shape[1:]) for term, _ in signals):
            raise CannotLower(self.name, "NIR has no node for additions that broadcast")
        if not constants:
            return self._sum([name for term, factor in signals for name in self._names(term, factor)])
        ((x, factor),) = signals
        stage = self._each(x)
        each = constants[0].expand(1, *self.values[x].shape)[0].flatten(1)
        if not bool((each == each[:, :1]).all()):
            raise CannotLower(self.name, "NIR has no node that adds another constant to each neuron of a channel")
        stage.layer.scale = torch.full(stage.shape[:1], factor)
        stage.layer.shift = each[:, 0].expand(stage.shape[:1])
        self._write(stage)

    def _on_mul(self, x: Any, other: Any) -> None:
        x, factor = (x, other) if isinstance(x, fx.Node) else (other, x)
        factor = torch.as_tensor(factor).float()
        factor = factor.expand(1, *self.values[x].shape)[0] if factor.dim() else factor
        self._sum(self._names(x, factor))

    def _on_div(self, x: fx.Node, other: Any) -> None:
        self._on_mul(x, 1 / torch.as_tensor(other))

    def _on_neg(self, x: fx.Node) -> None:
        self._sum(self._names(x, -1.0))

    def _on_avg_pool2d(
        self,
        x: fx.Node,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        padding = _sizes(padding, 2, 0)
        if ceil_mode or divisor_override is not None or (any(padding) and not count_include_pad):
            raise CannotLower(self.name, "NIR has no average pooling whose windows differ at the border")
        kernel = _sizes(kernel_size, 2, 1)
        self._pool(x, "mean", kernel=kernel, stride=_sizes(stride, 2, 1) if stride else kernel, padding=padding)

    def _on_adaptive_avg_pool2d(self, x: fx.Node, output_size: Any) -> None:
        self._pool(x, "adaptive_mean")

    def _on_mean(self, x: fx.Node, dim: Any = None, keepdim: bool = False) -> None:
        shape = self.values[x].shape
        if len(shape) != 3 or sorted(d % 4 for d in dim or ()) != [2, 3]:
            raise CannotLower(self.name, "NIR has no node for means other than those over the space of images")
        self._pool(x, "mean", kernel=shape[1:], stride=shape[1:])
        if not keepdim:
            pooled = (shape[0], 1, 1)
            node = self.writer.nir.Flatten({"input": np.array(pooled)}, -3, -1)
            flat = self.writer.add(self.writer.free(f"{self.name}_flat"), node, *self.writer.result[self.node.name])
            self._sum([flat])

    def _pool(self, x: fx.Node, kind: str, **windows: Any) -> None:
        stage = self._map(kind, x, self._names(x), **windows)
        if len(stage.in_shape) != 3:
            self._refuse("pooling of what is no image")
        stage.shape = stage.shape if len(stage.shape) == 3 else (*stage.shape, 1, 1)
        self._write(stage)

    def _on_reshape(self, x: fx.Node, *_: Any) -> None:
        given, wanted = self.values[x].shape, tuple(self.y.shape[1:])
        if given == wanted:
            return self._set(self.node, self.writer.result[x.name], self.values[x])
        for first in range(len(given)):
            for last in range(first + 1, len(given)):
                if (*given[:first], math.prod(given[first : last + 1]), *given[last + 1 :]) == wanted:
                    return self._write(self._map("flatten", x, self._names(x), first=first + 1, last=last + 1))
        raise CannotLower(self.name, "NIR has no node for views other than those that flatten")


_RESHAPES = ("flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "dropout", "contiguous", "clone")


def _sizes(sizes: Any, axes: int, neutral: int) -> tuple[int, int]:
    """Vertical and horizontal."""
    each = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    vertical, horizontal = (neutral, neutral, *(each * axes if len(each) == 1 else each))[-2:]
    return int(vertical), int(horizontal)
