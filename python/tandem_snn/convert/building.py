"""Build the graph of the spiking network: layers, currents between them, and operations of the ANN."""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tandem_ext._torch import pytree
from tandem_ext.functional.neuron import over_space

from .. import nn as tnn
from ..nn import currents, general, maximum, signals
from . import kinds
from .graph import NewGraph, Op, OpGraph, refuse
from .layers import VIEWS, flatten_of, is_of_one_size, max_pool_geometry, max_pool_of, means_of, norm_of, upsample_of


@dataclass
class Counterpart:
    """The counterpart of an Op in the spiking network.

    Attributes:
        kind: "image" (before the encoder), "spikes" (a train), "currents" (input currents of neurons, added to the
            graph on first use), "counts" (a tensor pooled from spikes), "answer" (a tensor after the spiking part),
            "constant" (depends on Parameters only), or "size".
        node: the node in the new graph, once it exists.
        labels: for spikes, also those that dropout passes on as currents, [1, *features], equal where the values of a
            spike are; 0 where there are no spikes. A tuple for several trains; ONE if all have the same value.
    """

    kind: str
    node: Any = None
    labels: Any = None

    @property
    def by_channel(self) -> bool:
        """Whether these are spikes with one value per channel, which layers of ``tandem_snn.nn`` require."""
        return self.by_features(1)

    def by_features(self, dim: int) -> bool:
        """Whether these are spikes with one value for each index of a dimension."""
        if self.kind != "spikes" or not isinstance(self.labels, Tensor):
            return False
        several = self.labels.dim() > 2
        labels = self.labels.movedim(dim, 1).flatten(2) if several else self.labels.unsqueeze(-1)
        return bool(((labels == 0) | (labels == labels.amax(-1, keepdim=True))).all())


ONE = torch.ones(())


def is_by_channel(labels: Any) -> bool:
    """Return whether spikes with these labels, or each of several trains, have one value per channel."""
    each = labels if isinstance(labels, tuple) else (labels,)
    return all(Counterpart("spikes", labels=part).by_channel for part in each)


class Builder(NewGraph):
    """The graph of the spiking network, and the Counterpart of each Op."""

    def __init__(self, graph: OpGraph, encoder: tnn.Encoder) -> None:
        super().__init__()
        self.source, self.ann, self.attributes = graph, graph.ann, graph.attributes
        self.modules = dict(self.ann.named_modules())
        self.encoder = encoder
        self.env: dict[Op, Counterpart] = {}
        self.encoded: dict[fx.Node, fx.Node] = {}
        self.counted: dict[fx.Node, fx.Node] = {}
        self.labels = 1  # the number of labels so far; ONE is the first

    # --- an Op's node in the new graph --------------------------------------------------------------------------------

    def signal(self, op: Op) -> fx.Node:
        """Return the node of an Op's train, encoded image or currents; currents are added to the graph on first use."""
        value = self.env[op]
        if value.kind == "image":
            return self.encode(value.node)
        if value.kind == "size":
            raise refuse(op, "neurons cannot compute with the size of the batch: use a number")
        if value.kind == "constant" and op.batch is not None:
            return self.function(general.PerSample, (self.tensor(op),))
        if value.node is None:
            value.node = self._constant(op) if value.kind == "constant" else self._currents(op)
        return value.node

    def tensor(self, op: Op) -> fx.Node:
        """Return the node of an Op's value as a tensor for the ANN part; of spikes the effective counts."""
        value = self.env[op]
        if value.kind in ("spikes", "currents"):
            signal = self.signal(op)
            if signal not in self.counted:
                self.counted[signal] = self.function(signals.effective_counts, (signal,))
            return self.counted[signal]
        if value.node is None:
            value.node = self._constant(op)
        return value.node

    def encode(self, x: fx.Node) -> fx.Node:
        if x not in self.encoded:
            self.encoded[x] = self.call_as("encoder", self.encoder, x)
        return self.encoded[x]

    def signals(self, op: Op) -> list[Op]:
        """Return the inputs of an Op on whose values its own depends, and which depend on the input of the network."""
        shape = op.args.get(kinds.SHAPE_OF.get(op.kind, ""))
        return [value for value in op.inputs if self.env[value].kind not in ("constant", "size") and value is not shape]

    def _constant(self, op: Op) -> fx.Node:
        return self.get(op.target, self.attributes[op.target]) if op.kind == "attribute" else self.copy(op)

    # --- currents -----------------------------------------------------------------------------------------------------

    def _currents(self, op: Op) -> fx.Node:
        term = self.term(op, alone=True)
        if term is not None:
            return self.call_term(op, term, neurons=False)
        if op.kind == "getitem":
            return self.graph.call_function(operator.getitem, (self.signal(op.x), op.call[0][1]))
        if op.kind == "batch_norm":
            return self.function(currents.normalise, (self.signal(op.x), self.get(self.path(op), self.norm(op))))
        if op.kind in kinds.DROPOUT:
            return self.dropped(op, general.dropped)
        if op.kind in ("max_pool3d", "amax"):
            return self.function(maximum.largest, (op.kind, self.signal(op.x), *max_pool_geometry(op)))
        affine = self._affine(op)
        affine = self._with_constants(op) if affine is None else affine
        if affine is not None:
            return affine
        sized = self.source.sized
        pooled = max_pool_of(op, "window", sized) if op.kind in kinds.MAX_POOLS else means_of(op, sized)
        moved = pooled or flatten_of(op) or upsample_of(op)
        if moved is not None:
            return self.call(op, moved, self.function(currents.currents_of, (self.signal(op.x),)))
        if op.alone and op.kind in kinds.SYNAPSES:
            return self.function(general.linear_map, (self.get(op.path, op.module), self.signal(op.x)))
        if not self._moves(op):
            args, kwargs = pytree.tree_map_only(Op, self.signal, _any_batch(op))
            return self.function(general.linear_map, (_reshaping(op), *args), kwargs)
        labels = self.env[op].labels  # of trains that dropout passes on, which a move may leave without one gain
        source = self.signal if labels is None or is_by_channel(labels) else self._of_currents
        args, kwargs = pytree.tree_map_only(Op, source, _any_batch(op))
        return self.function(general.rearranged, (_reshaping(op), True, *args), kwargs)

    def _of_currents(self, op: Op) -> fx.Node:
        x = self.signal(op)
        return x if self.env[op].kind == "size" else self.function(currents.currents_of, (x,))

    def _moves(self, op: Op) -> bool:
        """Return whether an Op only moves features, without constants among them."""
        moves = op.kind in kinds.REARRANGE and not op.args.get("value")  # a pad of other values
        return moves and all(self.env[value].kind != "constant" for value in op.inputs)

    def passed(self, op: Op) -> Counterpart:
        """Return the Counterpart of an Op of currents; in evaluation dropout passes trains on, whose labels it has."""
        x = self.env[op.x]
        if op.kind in kinds.DROPOUT:
            return Counterpart("currents", labels=x.labels)
        if op.kind == "getitem" and isinstance(x.labels, tuple):
            return Counterpart("currents", labels=x.labels[op.call[0][1]])
        known = all(self.env[value].labels is not None for value in self.signals(op))
        return Counterpart("currents", labels=self._moved_labels(op) if known and self._moves(op) else None)

    def of_answers(self, op: Op) -> fx.Node | None:
        """Add a sum, a move or an upsampling of answers; return None for other Ops, which no program has."""
        values = [self.env[value].kind for value in op.inputs]
        if not set(values) <= {"answer", "constant", "size"} or op.args.get("alpha", 1) not in (1, -1):
            return None  # torch rounds a + alpha * b once
        if (affine := self._affine(op)) is not None:
            return affine
        pools = kinds.is_max_pool(op) and op.kind != "amax"
        layer = max_pool_of(op, "window", self.source.sized) if pools else upsample_of(op)
        if layer is not None:
            return self.call(op, layer, self.tensor(op.x))
        if op.kind not in kinds.REARRANGE or "constant" in values or op.batch is None or op.args.get("value"):
            return None
        if values.count("answer") > 1 and op.args.get("dim") != 1:
            return None
        args, kwargs = pytree.tree_map_only(Op, self.tensor, _any_batch(op))
        return self.function(general.rearranged, (_reshaping(op), True, *args), kwargs)

    def _affine(self, op: Op) -> fx.Node | None:
        """Add a sum of two values, or a product or a sum with a constant; return None for other Ops."""
        if op.kind in ("add", "sub") and all(self._is_signal(op, op.args[name]) for name in ("self", "other")):
            alpha = op.args["alpha"] * (1 if op.kind == "add" else -1)
            return self.function(general.add, (self.signal(op.args["self"]), self.signal(op.args["other"]), alpha))
        if op.kind not in ("mul", "div", "neg", "add", "sub", "rsub") or (found := self._with_constant(op)) is None:
            return None
        x, constant = self.signal(found[0]), found[1]
        if op.kind in ("mul", "div", "neg"):
            return self.function(general.scaled, (x, constant))
        x = self.function(general.scaled, (x, -1.0)) if op.kind == "rsub" else x
        return self.function(general.shifted, (x, constant))

    def _is_signal(self, op: Op, value: Any) -> bool:
        return isinstance(value, Op) and value.shape == op.shape and self.env[value].kind not in ("constant", "size")

    def _with_constant(self, op: Op) -> tuple[Op, Any] | None:
        """Return the signal of an Op and the number or Parameter that it multiplies by or adds; None for other Ops."""
        if op.kind == "neg":
            return op.x, -1.0
        x, constant = op.args["self"], op.args["other"]
        if op.kind in ("mul", "add") and not self._is_signal(op, x):
            x, constant = constant, x
        if not self._is_signal(op, x) or op.args.get("alpha", 1) != 1:
            return None
        if op.kind == "div":  # by a power of two, which is the same as a product
            exact = isinstance(constant, (int, float)) and abs(math.frexp(constant)[0]) == 0.5
            return (x, 1 / constant) if exact and not op.args.get("rounding_mode") else None
        if isinstance(constant, Op):
            known = self.env[constant].kind == "constant" and constant.batch is None
            return (x, self.tensor(constant)) if known and op.kind != "sub" else None
        return x, -constant if op.kind == "sub" else constant

    def _with_constants(self, op: Op) -> fx.Node | None:
        """Add a concatenation with constants, such as a class token, as a sum: each part with zeros around it."""
        if op.kind not in ("cat", "concat", "concatenate") or (dim := op.args["dim"] % op.dims) == 0:
            return None
        parts = op.args["tensors"]
        values: list[Any] = [self._sample(part) if self.env[part].kind == "constant" else part for part in parts]
        if values == parts or None in values or any(part.dims != op.dims for part in parts):
            return None
        self.source.of_one_size = True
        x: Any = None
        constants = []
        for i, (part, value) in enumerate(zip(parts, values, strict=True)):
            before, after = (sum(each.features[dim - 1] for each in some) for some in (parts[:i], parts[i + 1 :]))
            around = [*[0, 0] * (op.dims - 1 - dim), before, after]
            if value is not part:
                constants.append(self.graph.call_function(torch.ops.aten.constant_pad_nd, (value, around)))
                continue
            labels = self.env[part].labels  # of tokens the values of spikes may differ along the last dimension
            by_channel = labels is None or is_by_channel(labels)
            padded = self.function(general.rearranged, ("constant_pad_nd", by_channel, self.signal(part), around))
            x = padded if x is None else self.function(general.add, (x, padded))
        for constant in constants:
            x = self.function(general.shifted, (x, constant))
        return x

    def _sample(self, op: Op) -> fx.Node | None:
        """Return the node of a constant of one sample, if it is the same for each; else None."""
        if op.batch is None:
            return self.tensor(op)
        source, sizes = op.x, [1, *op.features]
        if self.env[source].kind != "constant" or source.batch is not None:
            return None
        if op.kind == "repeat":
            sizes = [1, *op.args["repeats"][1:]]
        elif op.kind not in ("expand", "expand_as"):
            return None
        return self.graph.call_function(
            getattr(torch.ops.aten, op.kind.removesuffix("_as")), (self.tensor(source), sizes)
        )

    def term(self, op: Op, alone: bool = False) -> Any:
        """Return the synapses and perhaps the batch norm of an Op that one layer computes, or None."""
        raise NotImplementedError

    def call_term(self, op: Op, term: Any, **settings: Any) -> fx.Node:
        """Call a layer that computes a term."""
        raise NotImplementedError

    def rearrange(self, op: Op) -> Counterpart:
        """Add an Op that rearranges spikes, and return its spikes."""
        labels = self._moved_labels(op)
        args, kwargs = pytree.tree_map_only(Op, self.signal, _any_batch(op))
        node = self.function(general.rearranged, (_reshaping(op), is_by_channel(labels), *args), kwargs)
        return Counterpart("spikes", node, labels)

    def _moved_labels(self, op: Op) -> Any:
        labelled = {value: self.env[value].labels for value in op.inputs if self.env[value].labels is not None}
        if all(part is ONE for part in labelled.values()):
            return ONE
        before = {value: part.expand(1, *value.features) for value, part in labelled.items()}
        # sizes are those of a batch of one
        args, kwargs = pytree.tree_map_only(Op, lambda value: before.get(value, 1), _any_batch(op))
        labels = getattr(torch.ops.aten, _reshaping(op))(*args, **kwargs)
        return labels if isinstance(labels, Tensor) else tuple(labels)

    def fired(self, op: Op, node: fx.Node, alike: bool = False) -> Counterpart:
        """Return the Counterpart of the spikes of neurons that have one threshold per channel, or one for all."""
        shape = (1, *op.features)
        if len(shape) == 1:
            return Counterpart("spikes", node, ONE)
        if alike:
            self.labels += 1
            return Counterpart("spikes", node, torch.full(shape, self.labels, dtype=torch.float64))
        labels = torch.arange(self.labels + 1, self.labels + 1 + shape[1], dtype=torch.float64)
        self.labels += shape[1]
        return Counterpart("spikes", node, over_space(labels, shape).expand(shape))

    def sums(self, op: Op) -> str:
        """Return the kinds of the Ops between trains and these currents, as text."""
        found: dict[str, None] = {}
        seen, stack = {op}, [op]
        while stack:
            op = stack.pop()
            if self.env[op].kind == "currents":
                found[op.kind] = None
                stack += [source for source in op.inputs if source not in seen]
                seen.update(op.inputs)
        return ", ".join(list(found)[::-1])

    def norm(self, op: Op) -> Any:
        return norm_of(op, self.attributes, self.mode(op))

    def dropped(self, op: Op, function: Any) -> fx.Node:
        return self.function(function, (self.signal(op.x), self.get(self.path(op), self.dropout(op))))

    def dropout(self, op: Op) -> Any:
        """Return the live module of a dropout, or a new one that drops the same features if there is none."""
        if op.alone:
            return op.module
        kind = kinds.DROPOUT[op.kind]
        if kind is nn.Dropout2d:  # each takes samples of its own dimensions only
            kind = {2: nn.Dropout, 3: nn.Dropout1d, 5: nn.Dropout3d}.get(op.dims, kind)
        return kind(op.args["p"]).train(self.mode(op))

    # --- calls --------------------------------------------------------------------------------------------------------

    def copy(self, op: Op) -> fx.Node:
        """Copy an operation of the ANN, on tensors; if a module performs it, call the live module."""
        if op.kind == "batch_norm" and not op.alone:
            return self.call(op, self.norm(op), self.tensor(op.x))
        if op.kind in kinds.DROPOUT and not op.alone:
            return self.call(op, self.dropout(op), self.tensor(op.x))
        if op.alone:
            return self.module(op.path, op.module, self.tensor(op.x))
        return self.graph.call_function(op.function, *pytree.tree_map_only(Op, self.tensor, _any_batch(op)))

    def call(self, op: Op, module: nn.Module, x: fx.Node) -> fx.Node:
        """Call a module that replaces an Op, in the Op's training or evaluation mode."""
        self.source.of_one_size |= is_of_one_size(op, module)
        return self.module(self.path(op), module.train(self.mode(op)), x)

    def call_as(self, name: str, module: nn.Module, x: fx.Node, **keywords: Any) -> fx.Node:
        """Call a module that replaces the ANN's module of that name, in its training or evaluation mode."""
        module.train(self.modules.get(name, self.ann).training)
        return self.module(name, module, x, **keywords)

    def path(self, op: Op) -> str:
        """Return the path of an Op: the path of its module, or the Op's name inside its module."""
        if op.alone or (op.module is not None and not any(True for _ in op.module.children())):
            return op.path
        return f"{op.path}.{op.name}" if op.path else op.name

    def mode(self, op: Op) -> bool:
        """Return whether the Op's module, or else the ANN, is in training mode."""
        return (self.ann if op.module is None else op.module).training


def _reshaping(op: Op) -> str:
    """Return the operator to use for spikes: their memory layout differs, so a view of the ANN may need a copy."""
    return "reshape" if op.kind in VIEWS else op.kind.replace("view_as", "reshape_as")


def _any_batch(op: Op) -> tuple[Any, Any]:
    """Return the arguments of an operator; if it keeps the batch, without sizes that depend on the batch."""
    if op.kind in (*VIEWS, "expand") and op.shape and op.batch is not None and op.batch == op.x.batch:
        return (op.x, [-1, *op.shape[1:]]), {}
    return op.call
