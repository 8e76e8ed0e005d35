"""Lower the graph of an ANN to that of the spiking network: layers, and currents between them."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from tandem_ext._torch import pytree
from tandem_ext.checks import Timing
from tandem_ext.functional.neuron import over_space

from .. import nn as tnn
from ..nn import general
from . import kinds
from .building import ONE, Builder, Counterpart
from .graph import CannotConvert, Op, OpGraph, refuse
from .layers import average_of, flatten_of, is_plain, layer_of, max_pool_of, means_of, parameters, sizes_of

FUSED = {
    "linear": tnn.Linear, "conv1d": tnn.Conv1d, "conv2d": tnn.Conv2d,
    "conv_transpose1d": tnn.ConvTranspose1d, "conv_transpose2d": tnn.ConvTranspose2d,
}  # fmt: skip
Term = tuple[Op, Op | None]  # synapses and perhaps batch norm, which a fused layer can compute


class Conversion(Builder):
    """Builds the spiking network, Op by Op.

    Args:
        threshold, v_init, timing: see :func:`convert`.

    Attributes:
        ways: for each layer of neurons, by name, whether it is one layer with its synapses, and its operations.
    """

    def __init__(self, graph: OpGraph, encoder: tnn.Encoder, threshold: float, v_init: float, timing: Timing) -> None:
        super().__init__(graph, encoder)
        self.threshold, self.v_init, self.timing = threshold, v_init, timing
        self.ways: dict[str, str] = {}
        self.before_neurons = self._before_neurons()
        self.before_heads = self._before_heads() if timing == "window" else set()

    def run(self, name: str) -> fx.GraphModule:
        for op in self.source.ops:
            self.env[op] = self._lower(op)
        if not self.ways:
            raise self._silent()
        if self.source.of_one_size:
            self._check_sizes()
        snn = self.network(f"Spiking{name}")
        snn.training = self.ann.training
        snn.meta["ways"] = self.ways
        return snn

    def _check_sizes(self) -> None:
        """Let the network refuse inputs of another size than the example's."""
        for op in self.source.ops:
            if op.kind == "input":
                node = next(node for node in self.graph.nodes if node.op == "placeholder" and node.target == op.name)
                with self.graph.inserting_after(node):
                    checked = self.function(general.of_size, (node, op.name, op.features))
                node.replace_all_uses_with(checked, delete_user_cb=lambda user, checked=checked: user is not checked)

    def _silent(self) -> CannotConvert:
        """Return the error for a network in which nothing would spike; it says where a ReLU is missing."""
        why = "no nn.Linear or convolution has a ReLU behind it, so nothing would spike"
        passed = (*kinds.SYNAPSES, *kinds.REARRANGE, *kinds.SAME, *kinds.DROPOUT, *kinds.MAX_POOLS, "batch_norm")
        others = [op for op in self.source.ops if op.kind not in (*passed, "input", "attribute", "size", "output")]
        others = [op for op in others if not kinds.is_relu(op)]
        if not others:
            return CannotConvert(f"{why}: put nn.ReLU between the layers")
        op = min(others, key=lambda op: kinds.instead_of(op) is None)  # the first that is known, else the first
        return refuse(op, f"{why}: {kinds.instead_of(op) or 'put nn.ReLU here'}")

    def _before_neurons(self) -> set[Op]:
        """Return the Ops whose values reach some neurons."""
        found: set[Op] = set()
        for op in reversed(self.source.ops):
            if any(user in found or kinds.is_relu(user) for user in op.users):
                found.add(op)
        return found

    def _before_heads(self) -> set[Op]:
        """Return the Ops behind the last neurons, of kinds that currents have, whose values only reach heads.

        A product that heads read at once is a readout itself: of integers, which exports have.
        """
        found: set[Op] = set()
        for op in reversed(self.source.ops):
            users = [user for user in op.users if user.kind != "size"]
            if op.kind in kinds.OF_CURRENTS and op not in self.before_neurons and users:
                between = [user in found for user in users if user in found or not _is_head(user)]
                found |= {op} if all(between) and (between or not _is_head(op)) else set()
        return found

    # --- from Ops to Values -------------------------------------------------------------------------------------------

    def _lower(self, op: Op) -> Counterpart:
        if op.kind == "input":
            x = self.graph.placeholder(op.name)
            return (
                Counterpart("spikes", self.encode(x), ONE) if self.encoder.mode == "events" else Counterpart("image", x)
            )
        if op.kind in ("attribute", "size"):
            return Counterpart("constant" if op.kind == "attribute" else "size")
        if op.kind == "output":
            self.graph.output(pytree.tree_map_only(Op, self.tensor, op.call[0][0]))
            return Counterpart("answer")
        sources = {self.env[value].kind for value in op.inputs}
        found = sources - {"constant", "size"}
        if not found or not self.signals(op):
            return Counterpart("constant")
        begins = op.kind in kinds.SYNAPSES and op in self.before_neurons  # the image is encoded for this Op
        if found == {"image"} and not begins:
            flat = flatten_of(op)  # as a module, because freeze supports it
            return Counterpart("image", self.copy(op) if flat is None else self.call(op, flat, self.tensor(op.x)))
        if kinds.is_relu(op):
            return self._fire(op)
        return self._towards_neurons(op) if op in self.before_neurons else self._behind(op)

    def _towards_neurons(self, op: Op) -> Counterpart:
        """Lower an Op before neurons: its result is a train if possible, else currents."""
        x = self.env[op.x]
        self._check(op)
        if op.kind in kinds.SAME:
            return x
        if all(self.env[value].kind == "spikes" for value in self.signals(op)):
            spikes = self._average(op, x) if op.kind in kinds.AVERAGES else self._moved(op, x)
            if spikes is not None:
                return spikes
        kinds.check_linear(op, self.signals(op))
        if op.kind not in kinds.OF_CURRENTS:
            raise refuse(op, f"it has no spiking counterpart: {kinds.instead_of(op) or kinds.EVERYTHING}")
        return self.passed(op)

    def _moved(self, op: Op, x: Counterpart) -> Counterpart | None:
        """Lower a layer without neurons or a move, of trains or mean counts; return None for other Ops."""
        if op.kind == "getitem":
            index = op.call[0][1]
            labels = x.labels[index] if isinstance(x.labels, tuple) else x.labels
            return Counterpart("spikes", self.graph.call_function(operator.getitem, (x.node, index)), labels)
        if op.kind == "dropout":
            return self._layer(op, tnn.Dropout(op.args["p"]), x)
        if kinds.is_max_pool(op) and x.by_channel:
            return self._max_pool(op, x)
        flat = flatten_of(op)  # of a part of the features, gains may differ within a channel
        if flat is not None and (x.kind == "counts" or (flat.start_dim, flat.end_dim) == (1, -1)):
            return self._layer(op, flat, x)
        only_spikes = all(self.env[value].kind in ("spikes", "size") for value in op.inputs)
        moves = self._moves(op) and only_spikes and not kinds.mixes_samples(op, self.signals(op))
        return self.rearrange(op) if moves else None

    def _average(self, op: Op, x: Counterpart) -> Counterpart | None:
        """Lower average pooling to a layer with its own neurons, if there is one."""
        size_known = self.source.sized or op.kind in ("avg_pool1d", "avg_pool2d")
        layer = average_of(op, self.source.sized) if x.by_channel and size_known else None
        if layer is None:
            return None
        if op.kind not in ("avg_pool1d", "avg_pool2d") and layer.kernel_size == (1, 1):
            self.source.of_one_size = True
            return x
        layer.v_init, layer.timing = self.v_init, self.timing  # in units of the threshold
        pooled = self._layer(op, layer, x)
        flat = op.kind == "mean" and not op.args["keepdim"]
        return self._layer(op, tnn.Flatten(), pooled) if flat else pooled

    def _check(self, op: Op) -> None:
        if op.kind.endswith("_with_indices"):
            raise refuse(op, "maximum pooling that returns indices: spikes have none")
        signals = self.signals(op)
        for value in signals:
            if value.batch is None:
                raise refuse(value, kinds.MIXES)
        if kinds.mixes_samples(op, signals):
            raise refuse(op, kinds.instead_of(op) or kinds.MIXES)

    def _behind(self, op: Op) -> Counterpart:
        """Lower an Op after the last neurons: to currents before a head, else to a tensor, where spikes are counted."""
        x = self.env[op.x]
        if op.kind.endswith("_with_indices"):
            self._check(op)
        alone, counted = len(self.signals(op)) == 1, x.kind in ("spikes", "counts")
        if alone and counted and op.kind in kinds.SAME:
            return x
        if counted and (moved := self._moved(op, x)) is not None:
            return moved
        if x.kind == "answer" and (flat := flatten_of(op)) is not None:
            return Counterpart("answer", self.call(op, flat, x.node))
        stays = self._stays_currents(op)
        last = -1 if op.kind == "linear" else 1
        fits = (op.kind == "linear" and op.dims == 2) or x.kind != "spikes" or x.by_features(last)
        if _is_head(op) and alone and not stays and fits:
            path, weight, bias = parameters(op, self.attributes)
            cls = tnn.Readout if op.kind == "linear" else tnn.ReadoutConv2d
            readout = layer_of(cls, weight, bias, sizes_of(op))
            return Counterpart("answer", self.call_as(path, readout, self.signal(op.x)))
        if alone and counted:
            pool = means_of(op, self.source.sized)
            one_gain = x.kind == "counts" or (x.by_channel and x.by_features(-1))
            if pool is not None and (op.x.dims != 3 or one_gain):
                return Counterpart("counts", self.call(op, pool, x.node))
        if stays:
            return x if op.kind in kinds.SAME else self.passed(op)
        if counted and op.kind in kinds.DROPOUT:
            node = self.copy(op) if x.kind == "counts" else self.dropped(op, general.silenced)
            return Counterpart(x.kind, node, x.labels)
        known = self.of_answers(op) if x.kind == "answer" else None
        return Counterpart("answer", self.copy(op) if known is None else known)

    def _stays_currents(self, op: Op) -> bool:
        """Return whether an Op after the last neurons is one of spikes and currents before a head."""
        signals = self.signals(op)
        if op not in self.before_heads or any(self.env[value].kind not in ("spikes", "currents") for value in signals):
            return False
        try:
            self._check(op)
            kinds.check_linear(op, signals)
        except CannotConvert:
            return False
        return True

    def _max_pool(self, op: Op, x: Counterpart) -> Counterpart:
        return self._layer(op, max_pool_of(op, self.timing, self.source.sized), x)

    def _layer(self, op: Op, layer: nn.Module, x: Counterpart) -> Counterpart:
        """Call a layer whose output spikes have the values of its input spikes, per channel or, if flattened, each."""
        labels, shape = x.labels, (1, *op.features)
        if isinstance(labels, Tensor) and labels.dim() > 1:
            if labels.numel() != math.prod(shape):  # pooling
                labels = over_space(labels.flatten(2).amax((0, 2)), shape).expand(shape)
            labels = labels.reshape(shape)
        return Counterpart(x.kind, self.call(op, layer, x.node), labels)

    # --- neurons ------------------------------------------------------------------------------------------------------

    def _fire(self, op: Op) -> Counterpart:
        if self.env[op.x].kind == "spikes" and kinds.ceiling_of(op) is None:
            return self.env[op.x]  # a ReLU does not change spikes
        source, passed = op.x, list[Op]()
        while self._commutes(source) and len(source.users) == 1 and self.env[source].kind == "currents":
            passed.append(source)  # this comes before the ReLU, but commutes with it
            source = source.x
        fused = self._fused(source)
        if fused is None and not any(kinds.is_max_pool(member) for member in passed):
            source, passed = op.x, []
        node = self._alone(op, source) if fused is None else self._fuse(op, *fused)
        value = self.fired(source, node, _has_tokens(op))
        for member in reversed(passed):
            if kinds.is_max_pool(member):
                value = self._max_pool(member, value)
            elif member.kind not in kinds.SAME:
                value = self._layer(member, flatten_of(member) or tnn.Dropout(member.args["p"]), value)
        return value

    def _commutes(self, op: Op) -> bool:
        """Return whether it may also come after the neurons instead of before them."""
        return kinds.is_max_pool(op) or op.kind in ("dropout", "flatten", *kinds.SAME)

    def _alone(self, op: Op, source: Op) -> fx.Node:
        """Add neurons that read currents, with the batch norm before them."""
        device = next(self.ann.parameters(), torch.empty(0)).device
        neurons, norm, before = tnn.Neurons(next(iter(source.features), None)), None, source
        if source.kind == "batch_norm" and len(source.users) == 1 and source.args["weight"] is not None:
            norm, before = self.norm(source), source.x
        self._set(neurons, self._neurons(op, source, device))
        node = self.call(op, neurons, self.signal(before))
        neurons.norm = norm  # after the call, which sets the mode of the layer but not of the norm
        self.ways[str(node.target)] = f"currents: {self.sums(source) or 'spikes'}"
        return node

    def _set(self, layer: Any, settings: dict[str, Any]) -> None:
        layer.gate = "clip" if settings.get("ceiling") else "relu"
        for name, value in settings.items():
            setattr(layer, name, value)

    def _neurons(self, op: Op, source: Op, device: torch.device) -> dict[str, Any]:
        """Return settings of the neurons that stand for the ReLU ``op``, on the currents ``source``."""
        ceiling = kinds.ceiling_of(op) or None
        shape = () if _has_tokens(op) else source.features[:1]
        threshold = torch.full(shape, ceiling / self.encoder.T if ceiling else self.threshold)
        tensors = {"threshold": threshold.to(device), "v_init": (self.v_init * threshold).to(device)}
        return tensors | {"timing": self.timing, "ceiling": ceiling}

    def _fused(self, op: Op) -> tuple[Term, Op | None] | None:
        """Return the body of a fused layer and its residual, spikes or currents, or None."""
        if op.kind != "add" or len(op.users) > 1 or op.args["alpha"] != 1:
            term = self.term(op)
            return None if term is None else (term, None)
        pair = [op.args["self"], op.args["other"]]
        if not all(isinstance(value, Op) and value.shape == op.shape for value in pair):
            return None
        for body, other in (pair, pair[::-1]):
            term = self.term(body)
            if term is not None and (self.env[other].by_channel or self.env[other].kind == "currents"):
                return None if self.env[term[0].x].kind == "currents" else (term, other)
        return None

    def term(self, op: Op, alone: bool = False) -> Term | None:
        norm, shared = None, alone
        if op.kind == "batch_norm" and (alone or len(op.users) == 1):
            norm, op, shared = op, op.x, False
        if op.kind not in FUSED or self.env[op].kind != "currents" or not is_plain(op):
            return None
        if len(op.users) != 1 and not shared:
            return None
        x, tokens = self.env[op.x], op.kind == "linear" and op.dims != 2
        if not (x.kind in ("image", "currents") or x.by_features(-1 if tokens else 1)):
            return None
        if tokens and (not alone or norm is not None or op.dims > 4):  # channels of neurons are those of dimension 1
            return None
        return None if norm is not None and norm.args["weight"] is None else (op, norm)

    def _fuse(self, op: Op, body: Term, residual: Op | None) -> fx.Node:
        parts, keywords = [body[0].kind, *["batch norm"] * (body[1] is not None)], {}
        if residual is not None:
            spikes = self.env[residual].by_channel
            parts.append("shortcut" if spikes else "currents" if self.term(residual) is None else "projection")
            keywords["residual"] = self.env[residual].node if spikes else self.signal(residual)
        settings = self._neurons(op, body[0], self.attributes[body[0].args["weight"].target].device)
        node = self.call_term(op, body, keywords, **settings)
        self.ways[str(node.target)] = f"fused: {', '.join(parts)}"
        return node

    def call_term(self, op: Op, term: Term, keywords: Any = None, **settings: Any) -> fx.Node:
        synapses, batch_norm = term
        path, weight, bias = parameters(synapses, self.attributes)
        layer = layer_of(FUSED[synapses.kind], weight, bias, sizes_of(synapses))
        norm = None if batch_norm is None else self.norm(batch_norm)
        self._set(layer, {"timing": self.timing} | settings)
        node = self.call_as(path, layer, self.signal(synapses.x), **(keywords or {}))
        layer.norm = norm  # after the call, which sets the mode of the layer but not of the norm
        return node


def _is_head(op: Op) -> bool:
    """Return whether an Op is a product that a readout computes."""
    return (op.kind == "conv2d" or (op.kind == "linear" and op.dims <= 4)) and is_plain(op)


def _has_tokens(op: Op) -> bool:
    """Return whether neurons are those of tokens [B, N, D], of which products of the last dimension take one gain."""
    near, stack = set[Op](), [op, *op.users]
    while stack:
        each = stack.pop()
        if each not in near:
            near.add(each)
            stack += each.inputs if each.kind in ("add", "cat", *kinds.SAME, *kinds.DROPOUT) or each is op else []
    return any(each.kind == "linear" and each.dims > 2 for each in near)
