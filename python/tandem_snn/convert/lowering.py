"""From an ANN's graph to the spiking network's: fused layers where they fit, the general way elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import nn as tnn
from ..nn import general
from . import kinds
from .graph import CannotConvert, Graph, Op, does_only, leaves, refuse
from .traced import GIVE

FUSED: dict[str, type[tnn.SpikingLayer]] = {"linear": tnn.Linear, "conv1d": tnn.Conv1d, "conv2d": tnn.Conv2d}
REPLACES = "between the layers spikes pass ReLU, linear maps, pooling and additions, and nothing else"
_HINTS = {
    "use nn.ReLU instead, and train on": "gelu silu swish leakyrelu elu selu celu mish prelu rrelu softplus hardswish tanh",
    "a gate or a squashing function; use nn.ReLU, or a network without it": "sigmoid hardsigmoid logsigmoid",
    "attention; use a convolutional network": "softmax scaleddotproductattention multiheadattention",
    "it normalises each sample by itself; use batch norm": "layernorm groupnorm instancenorm rmsnorm",
}
HINTS = {name: hint for hint, names in _HINTS.items() for name in names.split()}


@dataclass
class Value:
    """What an Op has become.

    Attributes:
        kind: "image" (before the encoder), "spikes" (a train), "currents" (yet to be fired, made when asked for),
            "counts" (a tensor pooled from spikes), "answer" (a tensor after the spiking part), "constant", "size".
        node: in the new graph, once there is one.
        worth: of spikes: the node whose neurons say what each is worth; None where channels differ.
    """

    kind: str
    node: fx.Node | None = None
    worth: Any = None


@dataclass
class Term:
    """Synapses, with their batch norm, that a fused layer can be."""

    op: Op
    norm: Op | None
    cls: type[tnn.SpikingLayer]


class Lowering:
    """Builds the spiking network's graph, Op by Op."""

    def __init__(
        self, graph: Graph, encoder: tnn.Encoder, threshold: float, v_init: float,
        *, after: str | None = None, until: str | None = None,
    ) -> None:  # fmt: skip
        self.source, self.ann = graph, graph.ann
        self.modules = dict(self.ann.named_modules())
        self.encoder, self.threshold, self.v_init = encoder, threshold, v_init
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.env: dict[Op, Value] = {}
        self.encoded: dict[fx.Node, fx.Node] = {}
        self.counted: dict[fx.Node, fx.Node] = {}
        self.ways: dict[str, str] = {}
        self.front, self.back = self._cut(after, until)
        self.before_neurons = self._before_neurons()

    def run(self, name: str) -> fx.GraphModule:
        for op in self.source.ops:
            self.env[op] = self._lower(op)
        if not self.ways:
            raise self._silent()
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("output", "placeholder"):
                self.graph.erase_node(node)
        self.graph.lint()
        snn = fx.GraphModule(self.root, self.graph, f"Spiking{name}")
        snn.training = self.ann.training
        snn.meta["ways"] = self.ways
        return snn

    def _silent(self) -> CannotConvert:
        """Nothing would spike: names what stands behind the first synapses in the place of a ReLU."""
        why = "no nn.Linear or convolution has a ReLU behind it, so nothing would spike: put nn.ReLU"
        for op in self.source.ops:
            if op.kind in kinds.SYNAPSES and op.users:
                passed = (
                    *kinds.SYNAPSES,
                    *kinds.REARRANGE,
                    *kinds.SAME,
                    *kinds.DROPOUT,
                    *kinds.MAX_POOLS,
                    "batch_norm",
                )
                while op.kind in passed and op.users:
                    op = op.users[0]
                if op.kind != "output":
                    return refuse(op, f"{why} here")
                break
        return CannotConvert(f"{why} between the layers")

    def _cut(self, after: str | None, until: str | None) -> tuple[set[Op], set[Op]]:
        """What stays an ANN before the encoder, and after the last spikes."""
        ops = self.source.ops
        front, back = set[Op](), set[Op]()
        for name, path in ("after", after), ("until", until):
            if path is None:
                continue
            inside = [i for i, op in enumerate(ops) if op.path == path or op.path.startswith(f"{path}.")]
            if not inside:
                raise ValueError(f"{name}: the ANN calls no module {path!r} in evaluation")
            if name == "after":
                front = set(ops[: inside[-1] + 1])
            else:
                back = {op for op in ops[inside[-1] + 1 :] if op.kind != "attribute"}
        return front, back

    def _before_neurons(self) -> set[Op]:
        """The Ops from which some ReLU of the spiking part can be reached."""
        found: set[Op] = set()
        for op in reversed(self.source.ops):
            if any(user in found or (kinds.is_relu(user) and user not in self.back) for user in op.users):
                found.add(op)
        return found - self.back

    # --- what each Op becomes -----------------------------------------------------------------------------------------

    def _lower(self, op: Op) -> Value:
        if op.kind == "input":
            return self._input(op)
        if op.kind == "attribute":
            return Value("constant")
        if op.kind == "size":
            return Value("size")
        if op.kind == "output":
            return self._output(op)
        given = [self.env[value] for value in op.inputs]
        found = {value.kind for value in given} - {"constant", "size"}
        if not found:
            return Value("constant" if any(value.kind == "constant" for value in given) else "size")
        if op in self.front or (found == {"image"} and not self._wants_neurons(op)):
            return Value("image", self._copy(op))
        if kinds.is_relu(op) and op not in self.back and found <= {"image", "spikes", "currents"}:
            return self._relu(op, given)
        if op in self.before_neurons:
            if found == {"counts"} and (op.kind in ("flatten", "dropout") or op.kind in kinds.SAME):
                return self._behind(op, given)
            if found & {"counts", "answer"}:
                raise refuse(op, f"it follows an adaptive pooling whose windows are not known: {GIVE}")
            return self._towards_neurons(op, given)
        return self._behind(op, given)

    def _input(self, op: Op) -> Value:
        if not op.users:
            return Value("unused")
        if any(value.kind in ("image", "spikes") for value in self.env.values()):
            raise refuse(op, "a second input: a spiking network has one")
        assert op.source is not None
        x = self.graph.node_copy(op.source)
        if self.encoder.mode != "events":
            return Value("image", x)
        train = self._encode(x)
        return Value("spikes", train, train)

    def _wants_neurons(self, op: Op) -> bool:
        return op.kind in kinds.SYNAPSES and op in self.before_neurons

    def _output(self, op: Op) -> Value:
        value = self.env[op.x]
        node = self._counts(op.x) if value.kind == "currents" else value.node
        assert node is not None
        self.graph.output(node)
        return Value("answer")

    def _towards_neurons(self, op: Op, given: list[Value]) -> Value:
        """On the way to a ReLU: trains stay trains where they can, else they become currents."""
        x = self.env[op.x]
        if op.kind == "getitem":
            return self._item(op, x)
        self._check(op)
        signals = [value for value in given if value.kind not in ("constant", "size")]
        if op.kind in kinds.SAME:
            return x
        if all(value.kind == "spikes" for value in signals):
            if op.kind == "dropout":
                return self._layer(op, tnn.Dropout(op.args["p"]), x, p=op.args["p"])
            if op.kind == "max_pool2d" and x.worth is not None:
                return self._layer(op, self._max_pool(op), x)
            if op.kind in kinds.AVERAGES:
                pooled = self._average(op, x)
                if pooled is not None:
                    return pooled
            if (
                op.kind in kinds.REARRANGE
                and not kinds.is_affine(op, self._signals(op))
                and len(signals) == len([value for value in given if value.kind != "size"])
            ):
                return self._rearranged(op, signals)
        if op.kind == "batch_norm" or op.kind in kinds.DROPOUT or op.kind in kinds.MAX_POOLS:
            return Value("currents")
        if op.kind in (*kinds.SYNAPSES, *kinds.REARRANGE, *kinds.LINEAR):
            kinds.is_affine(op, self._signals(op))
            return Value("currents")
        raise refuse(op, self._no_counterpart(op))

    def _no_counterpart(self, op: Op) -> str:
        names = [op.kind, op.target.split()[-1] if op.target else "", type(op.module).__name__ if op.alone else ""]
        hint = next((HINTS[n] for n in (n.replace("_", "").lower() for n in names) if n in HINTS), None)
        unseen = op.kind == "unknown" and op.shape is None and self.source.shapeless
        return f"it has no spiking counterpart: {hint or (f'or none that is known without shapes; {GIVE}' if unseen else REPLACES)}"

    def _signals(self, op: Op) -> list[Op]:
        return [value for value in op.inputs if self.env[value].kind not in ("constant", "size")]

    def _check(self, op: Op) -> None:
        if op.kind.endswith("_with_indices"):
            raise refuse(op, "maximum pooling that returns indices: spikes have none")
        if op.kind in ("cat", "stack") and op.args["dim"] == 0:
            raise refuse(op, "it puts samples together: concatenate features, dimension 1")
        if op.shape is not None and (not op.shape or op.shape[0] is not None):
            raise refuse(op, "it mixes the samples of the batch: keep the first dimension as it is")

    def _behind(self, op: Op, given: list[Value]) -> Value:
        """No neurons follow: the answer, a tensor, in which spikes count."""
        x = self.env[op.x]
        if op.kind.endswith("_with_indices"):
            self._check(op)
        if len(self._signals(op)) == 1 and x.kind in ("spikes", "counts"):
            if op.kind in kinds.SAME:
                return x
            if op.kind == "dropout":
                return self._layer(op, tnn.Dropout(op.args["p"]), x)
            if op.kind == "max_pool2d" and x.kind == "spikes" and x.worth is not None:
                return self._layer(op, self._max_pool(op), x)
            flat = self._flatten(op)
            if flat is not None:
                return self._layer(op, flat, x)
            if op.kind in kinds.AVERAGES:
                pool = self._means(op)
                if pool is not None:
                    return Value("counts", self._call(op, pool, self._node(x)))
            if op.kind == "linear" and (op.dims or 2) == 2 and self._is_plain(op):
                path, weight, bias = self._parameters(op)
                layer = _sharing(tnn.Readout, op, weight, bias)
                return Value("answer", self._call_named(path, layer, self._node(x)))
        return Value("answer", self._copy(op))

    def _relu(self, op: Op, given: list[Value]) -> Value:
        x, ceiling = given[0], kinds.ceiling_of(op)
        if x.kind == "spikes" and ceiling is None:
            return x
        assert ceiling is not True
        source, after = op.x, []
        while source.kind in ("dropout", "max_pool2d", "flatten", *kinds.SAME) and len(source.users) == 1:
            if self.env[source].kind != "currents":
                break
            after.append(source)  # what comes before the ReLU but commutes with it
            source = source.x
        fused = self._fused(source)
        if fused is None and not any(layer.kind in kinds.MAX_POOLS for layer in after):
            source, after = op.x, []
        threshold = self.threshold if not ceiling else ceiling / self.encoder.T
        if fused is not None:
            node = self._fuse(*fused, threshold, ceiling or None)
        else:
            sums = self._sums(source)
            neurons = general.Neurons(threshold, self.v_init * threshold, ceiling=ceiling or None, sums=", ".join(sums))
            node = self._call(op, neurons, self._signal(source))
            self.ways[str(node.target)] = f"general: {', '.join(sums)}"
        value = Value("spikes", node, node)
        for layer in reversed(after):
            if layer.kind in kinds.SAME:
                continue
            module = self._max_pool(layer) if layer.kind == "max_pool2d" else self._flatten(layer)
            value = self._layer(layer, module or tnn.Dropout(layer.args["p"]), value)
        return value

    # --- the fused way ------------------------------------------------------------------------------------------------

    def _fused(self, op: Op) -> tuple[Term, Term | None, fx.Node | None] | None:
        """The layer that fires, the projection whose currents it gets too, or the spikes that it gets too."""
        if op.kind != "add" or len(op.users) > 1 or op.args.get("alpha", 1) != 1:
            term = self._term(op)
            return None if term is None else (term, None, None)
        pair = [op.args["self"], op.args["other"]]
        if not all(isinstance(value, Op) for value in pair) or self._broadcasts(op, pair):
            return None
        for body, other in (pair, pair[::-1]):
            term = self._term(body)
            if term is None:
                continue
            value = self.env[other]
            if value.kind == "spikes" and value.worth is not None:
                return term, None, value.node
            projection = self._term(other)
            if projection is not None:
                return term, projection, None
        return None

    def _broadcasts(self, op: Op, pair: list[Op]) -> bool:
        return any(value.shape is not None and value.shape != op.shape for value in pair)

    def _term(self, op: Op) -> Term | None:
        norm = None
        if op.kind == "batch_norm" and len(op.users) == 1:
            norm, op = op, op.x
        if op.kind not in FUSED or len(op.users) != 1 or self.env[op].kind != "currents" or not self._is_plain(op):
            return None
        x = self.env[op.x]
        if not (x.kind == "image" or (x.kind == "spikes" and x.worth is not None)):
            return None
        if op.kind == "linear" and (op.dims or 2) != 2:
            return None
        if norm is not None:
            weight = norm.args["weight"] if norm.module is None or not norm.alone else norm.module.weight  # type: ignore[union-attr]
            if weight is None:
                return None
        return Term(op, norm, FUSED[op.kind])

    def _is_plain(self, op: Op) -> bool:
        """Are its weight and bias Parameters, or buffers, that nothing computes?"""
        if op.alone and op.module is not None:
            if getattr(op.module, "padding_mode", "zeros") != "zeros":
                return False
            own = {**op.module._parameters, **op.module._buffers}
            hooks = op.module._forward_hooks or op.module._forward_pre_hooks
            return "weight" in own and "bias" in own and not hooks
        given = [op.args["weight"], op.args.get("bias")]
        return all(value is None or (isinstance(value, Op) and value.kind == "attribute") for value in given)

    def _parameters(self, op: Op) -> tuple[str, Any, Any]:
        """Where a product's weight is, the weight and the bias."""
        if op.alone and op.module is not None:
            return op.path, op.module.weight, op.module.bias
        weight, bias = op.args["weight"], op.args.get("bias")
        value = None if bias is None else self.source.attributes[bias.target]
        return weight.target.rpartition(".")[0] or op.name, self.source.attributes[weight.target], value

    def _fuse(
        self, body: Term, projection: Term | None, spikes: fx.Node | None, threshold: float, ceiling: float | None
    ) -> fx.Node:
        keywords: dict[str, Any] = {}
        if projection is not None:
            layer = self._spiking(projection, threshold)
            keywords["residual"] = self._call_named(
                self._parameters(projection.op)[0], layer, self._signal(projection.op.x), fire=False
            )
            self._add_norm(layer, projection)
        elif spikes is not None:
            keywords["residual"] = spikes
        layer = self._spiking(body, threshold)
        if ceiling is not None:
            layer.gate, layer.ceiling = "clip", ceiling
        node = self._call_named(self._parameters(body.op)[0], layer, self._signal(body.op.x), **keywords)
        self._add_norm(layer, body)
        parts = [body.op.kind, *["batch norm"] * (body.norm is not None)]
        parts += ["projection"] * (projection is not None) + ["shortcut"] * (spikes is not None)
        self.ways[str(node.target)] = f"fused: {', '.join(parts)}"
        return node

    def _spiking(self, term: Term, threshold: float) -> Any:
        _, weight, bias = self._parameters(term.op)
        layer = _sharing(term.cls, term.op, weight, bias)
        layer.gain = "threshold"
        like = layer.weight.detach()
        for name, value in (("threshold", threshold), ("v_init", self.v_init * threshold)):
            delattr(layer, name)
            layer.register_buffer(name, like.new_full((), value, dtype=torch.float32))
        return layer

    def _add_norm(self, layer: Any, term: Term) -> None:
        if term.norm is not None:  # after the layer's own mode was set: it keeps its own
            layer.norm = self._norm(term.norm)

    def _norm(self, op: Op) -> _BatchNorm:
        """The live batch norm, or one with its Parameters and buffers where the forward does more, or is a function."""
        if op.alone and isinstance(op.module, _BatchNorm):
            return op.module
        given = {
            name: self.source.attributes[value.target] if isinstance(value, Op) else value
            for name, value in op.args.items()
            if name in ("weight", "bias", "running_mean", "running_var")
        }
        like = next((value for value in given.values() if value is not None), None)
        channels = op.x.shape[1] if like is None and op.x.shape is not None else len(like)  # type: ignore[arg-type]
        cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[op.dims or 4]
        statistics = given["running_mean"] is not None
        norm = cls(channels, op.args["eps"], op.args["momentum"], like is not None, statistics, device="meta")  # type: ignore[arg-type]
        norm.weight, norm.bias = given["weight"], given["bias"]  # type: ignore[assignment]
        if statistics:
            norm.running_mean, norm.running_var = given["running_mean"], given["running_var"]
            tracked = getattr(op.module, "num_batches_tracked", None)
            norm.num_batches_tracked = torch.tensor(0) if tracked is None else tracked
        return norm.train(self.ann.training if op.module is None else op.module.training)

    # --- the general way ----------------------------------------------------------------------------------------------

    def _signal(self, op: Op) -> fx.Node:
        """The train, the encoded image or the currents that an Op is; currents are made when first asked for."""
        value = self.env[op]
        if value.kind == "image":
            return self._encode(self._node(value))
        if value.kind == "constant":
            return self._constant(op)
        if value.kind == "size":
            raise refuse(op, "a size of the batch, which spikes do not have")
        if value.node is None:
            value.node = self._currents(op)
        return value.node

    def _currents(self, op: Op) -> fx.Node:
        if op.kind == "getitem":
            return self.graph.call_function(operator.getitem, (self._signal(op.x), op.call[0][1]))
        if op.kind == "batch_norm":
            path = op.path if op.alone else self._path(op)
            return self.graph.call_function(general.normalise, (self._signal(op.x), self._get(path, self._norm(op))))
        if op.kind in kinds.DROPOUT:
            module = op.module if op.alone else nn.Dropout(op.args["p"]).train(self._mode(op))
            path = op.path if op.alone else self._path(op)
            return self.graph.call_function(general.dropped, (self._signal(op.x), self._get(path, module)))
        if op.kind in kinds.MAX_POOLS:
            return self.graph.call_function(general.largest, (op.kind, *self._arguments(op)[0]))
        affine = kinds.is_affine(op, self._signals(op))
        function: Callable[..., Any] = general.affine_map if affine else general.linear_map
        if op.alone and op.kind in kinds.SYNAPSES:
            return self.graph.call_function(function, (self._get(op.path, op.module), self._signal(op.x)))
        args, kwargs = self._arguments(op)
        return self.graph.call_function(function, (_reshaping(op), *args), kwargs)

    def _rearranged(self, op: Op, signals: list[Value]) -> Value:
        flat = self._flatten(op)
        if flat is not None:
            return self._layer(op, flat, signals[0])
        args, kwargs = self._arguments(op)
        node = self.graph.call_function(general.rearranged, (_reshaping(op), *args), kwargs)
        worths = {id(value.worth) for value in signals}
        return Value("spikes", node, signals[0].worth if len(worths) == 1 else None)

    def _item(self, op: Op, x: Value) -> Value:
        if x.kind == "currents":
            return Value("currents")
        node = self.graph.call_function(operator.getitem, (self._node(x), op.call[0][1]))
        return Value(x.kind, node, x.worth)

    def _arguments(self, op: Op) -> tuple[Any, Any]:
        """An operator's arguments in the new graph."""
        return _map(_any_batch(op), self._signal)

    def _sums(self, op: Op) -> list[str]:
        """The kinds of Ops between trains and these currents."""
        found: dict[str, None] = {}
        stack = [op]
        while stack:
            op = stack.pop()
            if self.env[op].kind == "currents":
                found[op.kind] = None
                stack += op.inputs
        return list(found)[::-1]

    def _constant(self, op: Op) -> fx.Node:
        value = self.env[op]
        if value.node is None:
            if op.kind == "attribute":
                value.node = self._get(op.target, self.source.attributes[op.target])
            else:
                value.node = self._copy(op)
        return value.node

    # --- single layers ------------------------------------------------------------------------------------------------

    def _layer(self, op: Op, layer: nn.Module, x: Value, **_: Any) -> Value:
        return Value(x.kind, self._call(op, layer, self._node(x)), x.worth)

    def _flatten(self, op: Op) -> tnn.Flatten | None:
        if op.kind == "flatten":
            if op.args["start_dim"] == 0:
                raise refuse(op, "it flattens the batch dimension: start at dimension 1")
            return tnn.Flatten(op.args["start_dim"], op.args["end_dim"])
        if op.kind in VIEWS and op.dims == 2 and op.shape is not None:
            return tnn.Flatten()
        return None

    def _max_pool(self, op: Op) -> tnn.MaxPool2d:
        names = ("kernel_size", "stride", "padding", "dilation")
        geometry = {name: _pair(op.args[name]) for name in names}
        return tnn.MaxPool2d(**geometry, ceil_mode=op.args["ceil_mode"])

    def _average(self, op: Op, x: Value) -> Value | None:
        """Average pooling by neurons of its own, where there is a layer for it."""
        if op.kind not in ("avg_pool2d", "adaptive_avg_pool2d", "mean"):
            return None
        if op.kind == "avg_pool2d":
            layer = self._plain_pool(op)
        else:
            window = self._window(op)
            if window is None:
                return None if op.shape is not None else Value("counts", self._node(x))
            if window == (1, 1):
                return x
            layer = tnn.AvgPool2d(window)
        if layer is None or x.worth is None:
            return None
        layer.v_init = self.v_init  # its neurons' threshold is 1
        value = self._layer(op, layer, x)
        return (
            value
            if op.kind != "mean" or op.args["keepdim"]
            else Value("spikes", self._call(op, tnn.Flatten(), value.node), x.worth)
        )

    def _plain_pool(self, op: Op) -> tnn.AvgPool2d | None:
        padded = any(_pair(op.args["padding"]))
        if (
            op.args["ceil_mode"]
            or op.args["divisor_override"] is not None
            or (padded and not op.args["count_include_pad"])
        ):
            return None
        return tnn.AvgPool2d(*(_pair(op.args[name]) for name in ("kernel_size", "stride", "padding")))

    def _window(self, op: Op) -> tuple[int, int] | None:
        """The windows of an adaptive pooling, where an example gave the sizes and they divide."""
        before = op.x.shape
        if before is None or len(before) != 4 or (op.kind == "mean" and not _over_space(op)):
            return None
        sizes = before[2:]
        outputs = _pair(op.args["output_size"]) if op.kind != "mean" else (1, 1)
        outputs = [size if out is None else out for size, out in zip(sizes, outputs, strict=True)]
        if any(size % out for size, out in zip(sizes, outputs, strict=True)):  # type: ignore[operator]
            return None
        height, width = (size // out for size, out in zip(sizes, outputs, strict=True))  # type: ignore[operator]
        return height, width

    def _means(self, op: Op) -> nn.Module | None:
        if op.kind == "adaptive_avg_pool2d":
            return tnn.AdaptiveAvgPool2d(_pair(op.args["output_size"]))
        if op.kind == "mean":
            pool: nn.Module = tnn.AdaptiveAvgPool2d(1)
            if not _over_space(op):
                return None
            return pool if op.args["keepdim"] else nn.Sequential(pool, tnn.Flatten())
        if op.kind == "avg_pool2d":
            layer = self._plain_pool(op)
            if layer is not None:
                layer.spiking = False
            return layer
        return None

    # --- building -----------------------------------------------------------------------------------------------------

    def _node(self, value: Value) -> fx.Node:
        assert value.node is not None
        return value.node

    def _encode(self, x: fx.Node) -> fx.Node:
        if x not in self.encoded:
            self.encoded[x] = self._call_named("encoder", self.encoder, x)
        return self.encoded[x]

    def _counts(self, op: Op) -> fx.Node:
        """What the ANN goes on with, a tensor."""
        value = self.env[op]
        if value.kind in ("image", "counts", "answer"):
            return self._node(value)
        if value.kind in ("constant",):
            return self._constant(op)
        if value.kind == "size":
            return self._size(op)
        signal = self._signal(op)
        if signal not in self.counted:
            self.counted[signal] = self.graph.call_function(general.total, (signal,))
        return self.counted[signal]

    def _size(self, op: Op) -> fx.Node:
        value = self.env[op]
        if value.node is None:
            value.node = self._copy(op)
        return value.node

    def _copy(self, op: Op) -> fx.Node:
        """The ANN's own operation, on tensors: by the live module where it is one."""
        if op.kind == "batch_norm" and not op.alone:
            return self._call(op, self._norm(op), self._counts(op.x))
        if op.kind == "dropout" and not op.alone:
            return self._call(op, nn.Dropout(op.args["p"]), self._counts(op.x))
        if op.alone:
            args, kwargs = op.call if op.kind == "unknown" else ((op.x,), {})
            name = self._name(op.path, op.module)
            return self.graph.call_module(name, *_map((tuple(args), dict(kwargs)), self._counts))
        assert op.source is not None
        args, kwargs = _map(_any_batch(op), self._counts)
        return self.graph.create_node(op.source.op, op.source.target, args, kwargs)

    def _get(self, path: str, value: Any) -> fx.Node:
        return self.graph.get_attr(self._name(path, value))

    def _name(self, name: str, value: Any) -> str:
        """Where ``value`` is in the new network: under its own name, unless something else has that."""
        while name in self.root and self.root[name] is not value:
            name += "_again"
        self.root[name] = value
        return name

    def _path(self, op: Op) -> str:
        """A name for what the ANN has no module for: the Op's, in the module whose forward it is in."""
        if op.alone or (op.module is not None and not any(True for _ in op.module.children())):
            return op.path
        return f"{op.path}.{op.name}" if op.path else op.name

    def _call(self, op: Op, module: nn.Module, x: Any) -> fx.Node:
        return self.graph.call_module(self._name(self._path(op), module.train(self._mode(op))), (x,))

    def _call_named(self, name: str, module: Any, x: Any, **keywords: Any) -> fx.Node:
        module.train(self.modules.get(name, self.ann).training)
        return self.graph.call_module(self._name(name, module), (x,), keywords)

    def _mode(self, op: Op) -> bool:
        """Training or evaluation, as the ANN's module, or the ANN as a whole."""
        return (self.ann if op.module is None else op.module).training


def _sharing(cls: Callable[..., Any], op: Op, weight: Tensor, bias: Tensor | None) -> Any:
    """A layer of class ``cls`` with the operator's geometry and the very Parameters."""
    size: tuple[Any, ...] = (weight.shape[1], weight.shape[0])
    if op.kind != "linear":
        geometry = [op.args[name] for name in ("stride", "padding", "dilation")]
        geometry = [value if isinstance(value, str) else _tuple(value, weight.dim() - 2) for value in geometry]
        groups = op.args["groups"]
        size = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), *geometry, groups)
    layer = cls(*size, bias=bias is not None, device="meta")
    for name, value in (("weight", weight), ("bias", bias)):
        if isinstance(value, nn.Parameter) or value is None:
            setattr(layer, name, value)
        else:
            delattr(layer, name)
            layer.register_buffer(name, value)
    return layer


def _map(tree: Any, f: Callable[[Op], fx.Node]) -> Any:
    if isinstance(tree, Op):
        return f(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(value, f) for value in tree) if type(tree) is tuple else [_map(v, f) for v in tree]
    if isinstance(tree, dict):
        return {name: _map(value, f) for name, value in tree.items()}
    return tree


VIEWS = ("view", "reshape", "_unsafe_view")


def _reshaping(op: Op) -> str:
    """Spikes are not in memory as the ANN's activations are: what was a view may take a copy."""
    return "reshape" if op.kind in VIEWS else op.kind


def _any_batch(op: Op) -> tuple[Any, Any]:
    """An operator's arguments, in which no size depends on the batch's."""
    if op.kind in (*VIEWS, "expand") and op.shape is not None and op.shape[0] is None:
        return (op.x, [-1, *op.shape[1:]]), {}
    return op.call


def _over_space(op: Op) -> bool:
    dims = op.args.get("dim")
    return isinstance(dims, (list, tuple)) and sorted(d % 4 for d in dims) == [2, 3] and (op.x.dims or 4) == 4


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * dims if len(values) == 1 else values


def _pair(value: Any) -> Any:
    """Vertical and horizontal; the stride [] of a pooling is that of its kernel."""
    if isinstance(value, (list, tuple)) and not value:
        return None
    return None if value is None else _tuple(value, 2)
