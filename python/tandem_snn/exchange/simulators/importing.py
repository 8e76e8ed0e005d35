"""From a network whose forward is one time step of another simulator to a network of our layers."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ... import nn as tnn
from ...convert.nodes import SYNAPSES, CannotConvert, Role, refuse
from ...convert.old_lowering import Currents, Lowering, Value
from .neurons import Neuron

SUMMED = ("counts", "answer")  # kinds of values that are sums over the steps
TIMES = (operator.mul, torch.mul, "mul")
DIVIDED = (operator.truediv, torch.div, "div")
NOT_LINEAR = "what it gives at each step does not add up over the steps: leave it out, and apply it to the answer"
NO_COUNTERPART = (
    "it has no counterpart: one time step consists of nn.Linear, Conv1d/2d, BatchNorm, pooling, Flatten, Dropout, "
    "additions of currents, and neurons: give that part of the network"
)
ReadNeuron = Callable[[nn.Module], Neuron | None]


class _Firing(nn.Module):
    """Stands in a network in the place of another simulator's neurons."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def init_leaky(self) -> None:
        raise ValueError("its forward makes new potentials")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _Firing) or super().is_leaf_module(module, name)


def import_network(
    net: nn.Module, T: int, mode: str, read: ReadNeuron, plain: type[nn.Module] | None
) -> fx.GraphModule:
    """The spiking network that T steps of ``net`` are.

    Args:
        net: its forward is one time step; layers of torch, and neurons.
        read: what a module is as a neuron, None where it is none. Raises ValueError for neurons that ours cannot be.
        plain: a base class of the other simulator's own versions of torch's layers.

    Raises:
        CannotConvert: a node or a module that has no counterpart; the message names it.
    """
    encoder = tnn.Encoder(T, mode)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    for name, module in net.named_modules():
        stand_in = _stand_in(name, module, read, plain)
        if stand_in is not None:
            memo[id(module)] = stand_in
    net = copy.deepcopy(net, memo)  # without the state of neurons, which may not be copied
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # whatever a forward raises at a value that is not there yet
        raise CannotConvert(
            f"torch.fx cannot trace one time step of the network ({type(error).__name__}: {error}): give a network "
            "whose forward is one step, without a loop over time; potentials go in and out of it or are hidden"
        ) from error
    traced = fx.GraphModule(net, graph, type(net).__name__)
    _forget_state(traced)
    return _Importing(traced, encoder).run(type(net).__name__)


def _stand_in(name: str, module: Any, read: ReadNeuron, plain: Any) -> Any:
    try:
        neuron = read(module)
    except ValueError as error:
        raise CannotConvert(f"module {name!r}: {error}") from error
    stand_in = _Firing(neuron) if neuron is not None else _torchs_own(module, plain)
    if stand_in is not None and plain is not None:
        stand_in.step_mode = "s"  # which a forward may ask for
    return stand_in


def _torchs_own(module: Any, plain: Any) -> Any:
    """The layer of torch that a module of the other simulator is, if it is one."""
    if type(module).__name__ == "SeqToANNContainer":  # SpikingJelly's, for several steps at once
        return nn.Sequential(*module)
    if plain is None or not isinstance(module, plain):
        return None
    if type(module).__name__ == "Dropout":
        return nn.Dropout(module.p).train(module.training)
    cls: Any = next((c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules")), nn.Module)
    if cls.__name__ != type(module).__name__:
        return None  # not a version of torch's layer: what it does is not known
    twin = cls.__new__(cls)
    twin.__dict__.update(module.__dict__)
    return twin


def _forget_state(traced: fx.GraphModule) -> None:
    """Takes the neurons' state, which a spiking network keeps by itself, out of the graph of one step."""
    modules = dict(traced.named_modules())
    potentials = set()
    firing = [node for node in traced.graph.nodes if _is_firing(node, modules)]
    twice = [name for name, uses in Counter(str(node.target) for node in firing).items() if uses > 1]
    if twice:
        raise CannotConvert(f"module {twice[0]!r}: its neurons are used twice in a step: give each use its own")
    for node in firing:
        node.args, node.kwargs = node.args[:1], {}
        for user in [user for user in node.users if user.target is operator.getitem]:
            if user.args[1] == 0:
                user.replace_all_uses_with(node)
                traced.graph.erase_node(user)
            else:
                potentials.add(user)
    (output,) = [node for node in traced.graph.nodes if node.op == "output"]
    answer = output.args[0]
    if isinstance(answer, (tuple, list)):
        answers = [value for value in answer if value not in potentials]
        if len(answers) != 1:
            raise CannotConvert(f"the network returns {len(answers)} values beside potentials: return one")
        output.args = (answers[0],)
    for node in potentials:
        if node.users:
            raise refuse(node, "a membrane potential that is more than state: the answer is spikes or a nn.Linear's")
        traced.graph.erase_node(node)
    traced.recompile()


def _is_firing(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], _Firing)


class _Importing(Lowering):
    """As the conversion of an ANN, with neurons in the place of ReLU and per-step biases; it copies its parameters.

    Averages and answers are summed over the steps here, so what is done to them there at every step must be linear.
    """

    def __init__(self, traced: fx.GraphModule, encoder: tnn.Encoder) -> None:
        self.T = encoder.T
        self.analog = ("image",) if encoder.mode == "direct" else ()  # else the image is not the same at every step
        self.shortcuts: set[fx.Node] = set()  # currents that leave a layer
        self.current = Neuron()  # which the layer at work feeds
        super().__init__(traced, encoder, 1.0, 0.0)
        for node in traced.graph.nodes:
            if _is_firing(node, self.modules):
                self.roles[node] = Role("relu", node.args[:1])
            elif self.roles[node].kind == "relu":
                raise refuse(node, "a ReLU, where spikes are: only a network of spiking neurons is imported")
        self.before_neurons = self._before_neurons()

    def _neuron(self, node: fx.Node) -> Neuron:
        """That which the currents of ``node`` reach."""
        while not _is_firing(node, self.modules):
            if len(node.users) != 1:
                raise refuse(node, "it is read more than once, where currents go into one layer of neurons")
            (node,) = node.users
        return self.modules[str(node.target)].neuron

    def _relu(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        (x,) = given
        neuron = self._neuron(node)
        if x.kind == "averages":
            if not replace(neuron, v_init=0.0).is_plain or isinstance(neuron.v_init, Tensor):
                raise refuse(node, "neurons after average pooling must be IF with threshold 1")
            self.root[str(x.node.target)].v_init = neuron.v_init  # type: ignore[union-attr]
            return Value("spikes", x.node)
        if not isinstance(x, Currents):
            raise refuse(node, "neurons without synapses before them: put nn.Linear or a convolution there")
        self.current = neuron
        return super()._relu(node, role, given)

    def _average(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        if given[0].kind == "image":
            return Value("image", self._copy(node))
        if node in self.before_neurons and given[0].kind == "spikes":
            (user, *others) = node.users
            if others or not _is_firing(user, self.modules) or not isinstance(role.module, tnn.AvgPool2d):
                raise refuse(node, "averages of spikes are not spikes: put neurons after it, or use MaxPool2d")
            return Value("averages", super()._average(node, role, given).node)
        return super()._average(node, role, given)

    def _add(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        if node in self.before_neurons and any(isinstance(value, Currents) for value in given):
            self.current = self._neuron(node)
        if len(given) == 2 and all(value.kind in SUMMED for value in given):
            return Value("answer", self._copy(node))
        return super()._add(node, role, given)

    def _layer(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        if isinstance(role.module, tnn.MaxPool2d) and given[0].kind in SUMMED:
            raise refuse(node, NOT_LINEAR)
        if isinstance(role.module, tnn.MaxPool2d) and isinstance(given[0], Currents):  # commutes with ReLU, not with v
            raise refuse(node, "maximum pooling of currents, which is not that of spikes: put it behind the neurons")
        return super()._layer(node, role, given)

    def _other(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        summed = [value for value in given if value.kind in SUMMED]
        if not summed:
            if all(value.kind == "size" for value in given):
                return super()._other(node, role, given)
            raise refuse(node, role.hint or NO_COUNTERPART)
        first = node.args[0]
        divided = node.target in DIVIDED and isinstance(first, fx.Node) and self.env[first] is summed[0]
        if not (node.target in TIMES or divided) or len(summed) > 1 or any(value.kind == "size" for value in given):
            raise refuse(node, NOT_LINEAR)
        return Value("answer", self._copy(node))

    def _synapses(self, node: fx.Node, role: Role, given: list[Value]) -> Value:
        if node in self.before_neurons or not isinstance(role.module, nn.Linear):
            return super()._synapses(node, role, given)
        linear = role.module
        readout = tnn.Readout(linear.in_features, linear.out_features, linear.bias is not None)
        readout.weight = copy.deepcopy(linear.weight)
        if linear.bias is not None:
            readout.bias = _scaled(linear.bias, self.T)
        (x,) = given
        return Value("answer", self._call(role.name, readout, x.node))

    def _emit(self, x: Currents, fire: bool = True) -> fx.Node:
        neuron = self.current
        # A shortcut of bare spikes counts one each: then the currents are in units of what it is worth here.
        bare = fire and x.residual is not None and x.residual not in self.shortcuts
        unit = neuron.factor if bare else 1.0
        layer = self._spiking(x, neuron, neuron.factor / unit, unit, fire)
        keywords: dict[str, Any] = {} if fire else {"fire": False}
        if x.residual is not None:
            keywords["residual"] = x.residual
        call = self._call(x.name, layer, x.x, **keywords)
        if not fire:
            self.shortcuts.add(call)
        return call

    def _spiking(self, x: Currents, neuron: Neuron, factor: float, unit: float, fire: bool) -> Any:
        module = x.synapses
        offset = neuron.offset / unit * self.T if fire else 0.0
        shifted = module.bias is not None or (x.norm is None and _any(offset))
        options = {"threshold": neuron.threshold / unit, "leak": neuron.leak, "v_init": neuron.v_init / unit}
        cls: Any = SYNAPSES[type(module)]
        if isinstance(module, nn.Linear):
            size: tuple[Any, ...] = (module.in_features, module.out_features)
        else:
            size = (module.in_channels, module.out_channels, module.kernel_size)
            size += (module.stride, module.padding, module.dilation, module.groups)
        layer = cls(*size, bias=shifted, **(options if fire else {}))
        scale = factor if x.norm is None else 1.0
        layer.weight = _scaled(module.weight, scale)
        if shifted:
            bias = torch.zeros(len(module.weight)) if module.bias is None else module.bias
            layer.bias = _scaled(bias, scale * self.T, 0.0 if x.norm is not None else offset)
        if x.norm is not None:
            layer.norm = copy.deepcopy(x.norm)  # of one step's product; now of the window's
            layer.norm.weight = _scaled(x.norm.weight, factor)
            layer.norm.bias = _scaled(x.norm.bias, factor * self.T, offset)
            layer.norm.running_mean *= self.T
        return layer


def _scaled(values: Tensor, factor: float, offset: float | Tensor = 0.0) -> nn.Parameter:
    return nn.Parameter(values.detach() * factor + offset, requires_grad=values.requires_grad)


def _any(values: float | Tensor) -> bool:
    return bool(values.any()) if isinstance(values, Tensor) else values != 0
