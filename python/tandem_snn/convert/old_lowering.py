"""convert: from an ANN to the spiking network that is its tandem twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import nn as tnn
from .nodes import SYNAPSES, CannotConvert, Role, attribute, refuse, role_of


@dataclass
class Value:
    """What a node of the ANN's graph has become.

    kind: "image": a tensor before the first synapses, "spikes", "counts": a tensor pooled from spikes, "answer": a
    tensor after the readout, "size", "unused", or "currents", which wait for their neurons.
    """

    kind: str
    node: fx.Node | None = None


@dataclass
class Currents(Value):
    """Synapses, with what has been added to them since, in the ANN's order."""

    kind: str = "currents"
    synapses: Any = None
    name: str = ""
    x: fx.Node | None = None
    norm: Any = None
    residual: fx.Node | None = None
    after: list[tuple[str, nn.Module]] = field(default_factory=list)  # what comes before the ReLU but commutes with it


class Lowering:
    """Builds the spiking network's graph, node by node of the ANN's.

    Attributes:
        analog: the kinds of values that are worked on as they were.
    """

    analog: tuple[str, ...] = ("image", "answer")

    def __init__(self, ann: fx.GraphModule, encoder: tnn.Encoder, threshold: float, v_init: float) -> None:
        self.ann = ann
        self.modules = dict(ann.named_modules())
        self.encoder = encoder
        self.threshold, self.v_init = threshold, v_init
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.env: dict[fx.Node, Value] = {}
        self.encoded: dict[fx.Node, fx.Node] = {}
        self.roles = {node: role_of(node, self.modules) for node in ann.graph.nodes}
        self.before_neurons = self._before_neurons()

    def run(self, name: str) -> fx.GraphModule:
        for node in self.ann.graph.nodes:
            self.env[node] = self._lower(node)
        if not any(isinstance(layer, tnn.SpikingLayer) for layer in self.root.values()):
            raise self._silent()
        for node in self.graph.find_nodes(op="get_attr"):
            if not node.users:  # a Parameter that a layer has now
                self.graph.erase_node(node)
        self.graph.lint()
        snn = fx.GraphModule(self.root, self.graph, f"Spiking{name}")
        snn.training = self.ann.training
        return snn

    def _silent(self) -> CannotConvert:
        """Nothing would spike: names what stands behind the first synapses in the place of a ReLU."""
        why = "no nn.Linear or convolution has a ReLU behind it, so nothing would spike: put nn.ReLU"
        for node in self.ann.graph.nodes:
            if self.roles[node].hint:
                return refuse(node, self.roles[node].hint)
            if self.roles[node].kind == "synapses" and node.users:
                while self.roles[node].kind in ("synapses", "norm", "layer", "same") and node.users:
                    node = next(iter(node.users))
                if node.op != "output":
                    return refuse(node, f"{why} here")
                break
        return CannotConvert(f"{why} between the layers")

    def _before_neurons(self) -> set[fx.Node]:
        """The nodes from which some ReLU can be reached."""
        found: set[fx.Node] = set()
        for node in reversed(self.ann.graph.nodes):
            if any(user in found or self.roles[user].kind == "relu" for user in node.users):
                found.add(node)
        return found

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _lower(self, node: fx.Node) -> Value:
        role = self.roles[node]
        if node.op == "placeholder":
            if not node.users:
                return Value("unused")
            if any(value.kind != "unused" for value in self.env.values()):
                raise refuse(node, "a second input: a spiking network has one")
            x = self._copy(node)
            return Value("image", x) if self.encoder.mode != "events" else Value("spikes", self._encode(x))
        if node.op == "output":
            return self._output(node)
        given = [self.env[value] for value in role.inputs if isinstance(value, fx.Node)]
        if all(value.kind in self.analog for value in given) and not self._wants_neurons(node, role):
            return Value(given[0].kind if given else "image", self._copy(node))
        return getattr(self, f"_{role.kind}")(node, role, given)

    def _wants_neurons(self, node: fx.Node, role: Role) -> bool:
        return role.kind == "synapses" and node in self.before_neurons

    def _output(self, node: fx.Node) -> Value:
        for value in node.all_input_nodes:
            if self.env[value].kind == "currents":
                raise refuse(value, "the network ends in it: end in nn.Linear on flat features, or in a ReLU")
        return Value("answer", self._copy(node))

    def _synapses(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        (x,) = given
        if isinstance(x, Currents):
            raise refuse(node, f"it follows {x.name!r} without a ReLU between them: put nn.ReLU there, or merge them")
        if node in self.before_neurons:
            if x.kind == "counts":
                raise refuse(node, "it follows an adaptive pooling whose windows are not known: give `example`")
            if len(node.users) > 1:
                users = ", ".join(repr(user.name) for user in node.users)
                raise refuse(node, f"its pre-activation is read by {users}: one ReLU may read it")
            return Currents(synapses=role.module, name=role.name, x=self._signal(x))
        if not isinstance(role.module, nn.Linear):
            raise refuse(node, "no ReLU follows it, and the network's last map is nn.Linear on flat features")
        readout = _sharing(tnn.Readout, role.module)
        return Value("answer", self._call(role.name, readout, x.node))

    def _norm(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        (x,) = given
        if not isinstance(x, Currents) or x.norm or x.residual or x.after:
            raise refuse(node, "batch norm that does not directly follow nn.Linear or a convolution: move it there")
        expected = SYNAPSES[type(x.synapses)]._norm_class
        if not isinstance(role.module, expected):
            raise refuse(
                node, f"{type(role.module).__name__} after {type(x.synapses).__name__}: use {expected.__name__}"
            )
        x.norm = role.module
        return self._passed_on(node, x)

    def _relu(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        (x,) = given
        if x.kind == "spikes":
            return x
        if not isinstance(x, Currents):
            raise refuse(node, "a ReLU of mean counts: they are not negative, so leave it out")
        y = self._emit(x)
        for name, layer in x.after:
            y = self._call(name, layer, y)
        return Value("spikes", y)

    def _layer(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        (x,) = given
        if isinstance(x, Currents):
            x.after.append((self._name(node), role.module))
            return self._passed_on(node, x)
        return Value(x.kind, self._call(self._name(node), role.module, x.node))

    def _average(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        (x,) = given
        if isinstance(x, Currents):
            raise refuse(node, "average pooling before the ReLU: put the ReLU before it")
        layer = role.module
        if node not in self.before_neurons:
            if isinstance(layer, tnn.AvgPool2d):
                layer.spiking = False
            return Value("counts", self._call(self._name(node), layer, x.node))
        if not isinstance(layer, tnn.AvgPool2d):
            window = self._window(node, layer)
            if window is None:
                return Value("counts", x.node)
            if window == (1, 1):
                return x
            layer = tnn.AvgPool2d(window)
        layer.v_init = self.v_init  # its neurons' threshold is 1
        return Value("spikes", self._call(self._name(node), layer, x.node))

    def _window(self, node: fx.Node, layer: nn.Module) -> tuple[int, int] | None:
        """The windows of an adaptive pooling, where an example gave the sizes."""
        before, after = (n.meta.get("shape") for n in (node.all_input_nodes[0], node))
        if before is None or after is None:
            return None
        sizes, outputs = before[2:], after[2:] or (1, 1)
        if any(size % out for size, out in zip(sizes, outputs, strict=True)):
            raise refuse(node, f"adaptive pooling of {tuple(sizes)} to {tuple(outputs)}: its windows differ in size")
        height, width = (size // out for size, out in zip(sizes, outputs, strict=True))
        return height, width

    def _add(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        if len(given) != 2 or any(value.kind not in ("currents", "spikes") for value in given):
            raise refuse(node, "an addition of something other than two layers' results")
        body, shortcut = given if isinstance(given[0], Currents) else given[::-1]
        if not isinstance(body, Currents):
            raise refuse(node, "an addition of two activations: add before the ReLU of one of them")
        if body.residual is not None or body.after:
            raise refuse(node, f"more than two summands, or pooling, before the ReLU of {body.name!r}")
        if isinstance(shortcut, Currents):
            if shortcut.residual is not None or shortcut.after:
                raise refuse(node, f"more than two summands, or pooling, before the ReLU of {body.name!r}")
            body.residual = self._emit(shortcut, fire=False)
        else:
            body.residual = shortcut.node
        return self._passed_on(node, body)

    def _same(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        return given[0]

    def _size(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        return Value("size")

    def _other(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        if all(value.kind == "size" for value in given):
            return Value("size")
        if all(value.kind in ("image", "counts", "answer") for value in given):
            return Value("answer", self._copy(node))
        if role.hint:
            raise refuse(node, role.hint)
        known = "nn.Linear, Conv1d/2d, BatchNorm, ReLU, Max/Avg/AdaptiveAvgPool2d, Flatten, Dropout and additions"
        raise refuse(node, f"it has no spiking counterpart: between the layers use {known}")

    # --- building -----------------------------------------------------------------------------------------------------

    def _passed_on(self, node: fx.Node, x: Currents) -> Currents:
        if len(node.users) > 1:
            users = ", ".join(repr(user.name) for user in node.users)
            raise refuse(node, f"its pre-activation is read by {users}: one ReLU may read it")
        return x

    def _signal(self, x: Value) -> fx.Node:
        assert x.node is not None
        return self._encode(x.node) if x.kind == "image" else x.node

    def _encode(self, x: fx.Node) -> fx.Node:
        if x not in self.encoded:
            self.encoded[x] = self._call("encoder", self.encoder, x)
        return self.encoded[x]

    def _emit(self, x: Currents, fire: bool = True) -> fx.Node:
        layer = _sharing(SYNAPSES[type(x.synapses)], x.synapses)
        layer.gain = "threshold"
        like = layer.weight.detach()
        for name, value in (("threshold", self.threshold), ("v_init", self.v_init * self.threshold)):
            delattr(layer, name)
            layer.register_buffer(name, like.new_full((), value, dtype=torch.float32))
        keywords: dict[str, Any] = {} if fire else {"fire": False}
        if x.residual is not None:
            keywords["residual"] = x.residual
        call = self._call(x.name, layer, x.x, **keywords)
        layer.norm = x.norm  # now, so that it keeps its mode
        return call

    def _name(self, node: fx.Node) -> str:
        return str(node.target) if node.op == "call_module" else node.name

    def _call(self, name: str, module: Any, x: Any, **keywords: Any) -> fx.Node:
        while name in self.root:
            name += "_again"
        self.root[name] = module.train(self._mode(name))
        return self.graph.call_module(name, (x,), keywords)

    def _mode(self, name: str) -> bool:
        """Training or evaluation, as the ANN's module of that name, or the ANN as a whole."""
        return self.modules.get(name, self.ann).training

    def _copy(self, node: fx.Node) -> fx.Node:
        if node.op == "call_module":
            self.root[str(node.target)] = self.modules[str(node.target)]
        elif node.op == "get_attr":
            self.root[str(node.target)] = attribute(self.ann, str(node.target))

        def new(value: fx.Node) -> fx.Node:
            found = self.env[value].node
            if found is None:
                raise refuse(node, f"it needs the shape of {value.name!r}, which spikes do not have")
            return found

        return self.graph.node_copy(node, new)


def _sharing(cls: Callable[..., Any], module: Any) -> Any:
    """A layer of class ``cls`` with the geometry and the very Parameters of torch's ``module``."""
    if isinstance(module, nn.Linear):
        size: tuple[Any, ...] = (module.in_features, module.out_features)
    else:
        size = (module.in_channels, module.out_channels, module.kernel_size)
        size += (module.stride, module.padding, module.dilation, module.groups)
    layer = cls(*size, bias=module.bias is not None, device="meta")
    layer.weight, layer.bias = module.weight, module.bias
    return layer
