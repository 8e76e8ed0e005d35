"""Import a network whose forward is one time step of another simulator."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ... import nn as tnn
from ...convert import kinds
from ...convert.building import ONE, Value
from ...convert.exported import exported
from ...convert.graph import CannotConvert, Graph, Op, refuse
from ...convert.layers import average_of
from ...convert.lowering import Lowering
from ...nn import general, maximum
from .neurons import Firing, Neuron

NOT_LINEAR = "it is not linear, so its results do not add up over the steps: apply it to the answer instead"
NO_COUNTERPART = (
    "it is not supported: one time step may have linear layers, batch norm, pooling, additions of currents, and "
    "neurons: import only that part of the network"
)
ONE_STEP = "the forward of the network must compute one time step, without a loop over time"
PRODUCTS = (*kinds.SYNAPSES, "batch_norm")  # their constants, the biases, are multiplied by T
ReadNeuron = Callable[[nn.Module], Neuron | None]


def import_network(
    net: nn.Module,
    T: int,
    mode: str,
    example: Any,
    read: ReadNeuron,
    plain: type[nn.Module] | None = None,
    tells: Callable[[nn.Module], bool] = lambda module: False,
) -> fx.GraphModule:
    """Return the spiking network that computes T steps of ``net``, whose forward is one time step.

    Args:
        read: a function that returns the Neuron of a module, or None for other modules. It raises ValueError if the
            neuron is not supported.
        plain: the base class of the other simulator's versions of torch's layers.
        tells: whether the forward of a neuron also returns its membrane potential.
    """
    encoder = tnn.Encoder(T, mode)
    memo: dict[int, Any] = {}
    for name, module in net.named_modules():
        try:
            neuron = read(module)
        except ValueError as error:
            raise CannotConvert(f"module {name!r}: {error}") from error
        stand_in = _torchs_own(module, plain) if neuron is None else Firing(neuron, tells(module))
        if stand_in is not None:
            stand_in.step_mode = "s"  # the forward of net may read it
            memo[id(module)] = stand_in
    net = copy.deepcopy(net, memo)  # memo leaves out the state of neurons, which may not support it
    for module in net.modules():
        if "s" in getattr(module, "supported_step_mode", tuple)():
            module.step_mode = "s"  # type: ignore[assignment]
    _sum_over(net, T)
    try:
        graph = exported(net, example, stateful=True)
    except CannotConvert as error:
        raise CannotConvert(f"{error}; {ONE_STEP}, and potentials must be hidden, or its inputs and outputs") from error
    _forget_state(graph)
    return _Importing(graph, encoder).run(type(net).__name__)


def _torchs_own(module: Any, plain: Any) -> Any:
    """Return torch's layer for a module of the other simulator; None if there is none."""
    if type(module).__name__ == "SeqToANNContainer":  # SpikingJelly's, for several steps at once
        return copy.deepcopy(nn.Sequential(*module))
    if plain is None or not isinstance(module, plain):
        return None
    if type(module).__name__ == "Dropout":
        return nn.Dropout(module.p).train(module.training)
    cls: Any = next((c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules")), nn.Module)
    if cls.__name__ != type(module).__name__:
        return None  # it only inherits from torch's layer, so its operation is unknown
    twin = cls.__new__(cls)
    twin.__dict__.update(copy.deepcopy(module.__dict__))
    return twin


def _sum_over(net: nn.Module, T: int) -> None:
    """Multiply biases and batch norms by T, because they act at every step there and once per window here."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, _ConvNd, _BatchNorm)) and module.bias is not None:
            module.bias = _scaled(module.bias, T)
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean *= T


def _forget_state(graph: Graph) -> None:
    """Remove the state of neurons from the graph of one step; spiking layers keep their state themselves."""
    uses = Counter(op.module for op in graph.ops if _is_firing(op))
    twice = next((op for op in graph.ops if uses[op.module] > 1), None)
    if twice is not None:
        raise CannotConvert(
            f"module {twice.path!r}: its neurons are used twice: use a module of their own for each; {ONE_STEP}"
        )
    potentials = [op for op in graph.ops if isinstance(op.module, Firing) and not _is_firing(op)]
    potentials += [op for op in graph.ops if op.kind == "input"][1:]
    (output,) = [op for op in graph.ops if op.kind == "output"]
    answers = [value for value in output.inputs if value not in potentials]
    if len(answers) != 1:
        raise CannotConvert(f"the network returns {len(answers)} values besides potentials: return one")
    output.call = ((answers[0],), {})
    graph.ops = [op for op in graph.ops if op not in potentials]
    graph.link()
    for op in graph.ops:
        for potential in potentials:
            if potential in op.inputs:
                why = "a membrane potential that is more than state: the answer must be spikes or from a nn.Linear"
                raise refuse(potential, why)


def _neuron_of(op: Op) -> Neuron:
    assert isinstance(op.module, Firing)
    return op.module.neuron


def _is_firing(op: Op) -> bool:
    return isinstance(op.module, Firing) and op.kind == "relu"


class _Importing(Lowering):
    """Like the conversion of an ANN, but with neurons instead of ReLUs.

    Averages and outputs are summed over the steps, so operations on them must be linear.
    """

    largest = staticmethod(maximum.largest_now)
    counts_answer = False

    def __init__(self, graph: Graph, encoder: tnn.Encoder) -> None:
        super().__init__(graph, encoder, 1.0, 0.0)
        self.attributes = dict(self.attributes)
        products = [op for op in graph.ops if op.kind in kinds.SYNAPSES and isinstance(op.args["bias"], Op)]
        for path in {op.args["bias"].target for op in products}:  # biases of functions; _sum_over has those of layers
            if not isinstance(self.ann.get_submodule(path.rpartition(".")[0]), (nn.Linear, _ConvNd)):
                self.attributes[path] = _scaled(self.attributes[path], self.encoder.T)
        for op in graph.ops:
            if kinds.is_relu(op) and not self.fires(op):
                raise refuse(op, "a ReLU: only networks of spiking neurons can be imported")
            if op.kind == "batch_norm" and not op.alone:
                raise refuse(op, "batch norm as a function: use a module")

    def fires(self, op: Op) -> bool:
        return _is_firing(op)

    def _begins(self, op: Op) -> bool:
        each_step_differs = self.encoder.mode != "direct"
        return each_step_differs or self.fires(op) or super()._begins(op)

    def _towards_neurons(self, op: Op) -> Value:
        value = super()._towards_neurons(op)
        if value.kind == "currents" and self._adds_constant(op):
            raise refuse(op, "it adds a constant at every step: make it the bias of a layer")
        return value

    def _no_counterpart(self, op: Op) -> str:
        return NO_COUNTERPART

    def _of_spikes(self, op: Op, x: Value, signals: list[Value]) -> Value | None:
        if op.kind in kinds.MAX_POOLS and op.kind != "max_pool2d":
            return None
        return super()._of_spikes(op, x, signals)

    def _average(self, op: Op, x: Value) -> Value | None:
        return None  # averages of spikes are currents: only the other simulator's neurons become neurons

    def _behind(self, op: Op) -> Value:
        linear = (*PRODUCTS, *kinds.SAME, *kinds.REARRANGE, *kinds.LINEAR, *kinds.DROPOUT, "getitem")
        spikes = op.kind == "max_pool2d" and self.env[op.x].kind == "spikes"
        if not (op.kind in linear or spikes) or self._adds_constant(op):
            raise refuse(op, NOT_LINEAR)
        return super()._behind(op)

    def _adds_constant(self, op: Op) -> bool:
        terms = {"cat": "tensors", "stack": "tensors"}.get(op.kind)
        if op.kind in ("add", "sub", "rsub") or terms:
            each = op.args[terms] if terms else (op.args["self"], op.args["other"])
            return not all(value in self.signals(op) for value in each)
        return op.kind in ("addmm", "baddbmm") or bool(op.kind in ("pad", "constant_pad_nd") and op.args.get("value"))

    def _fire(self, op: Op) -> Value:
        pooled = self._averaging_neurons(op)
        if pooled is not None:
            return pooled
        source = op.x
        while source.kind in kinds.SAME and self.env[source].kind == "currents":
            source = source.x
        fused = self._fused(source)
        node = self._general(op, source) if fused is None else self._fuse(op, *fused)
        return Value("spikes", node, ONE)

    def _averaging_neurons(self, op: Op) -> Value | None:
        """Make one layer of average pooling and IF neurons with threshold 1; None if impossible."""
        neuron = _neuron_of(op)
        if op.x.kind != "avg_pool2d" or len(op.x.users) > 1 or isinstance(neuron.v_init, Tensor):
            return None
        x, layer = self.env[op.x.x], average_of(op.x)
        if layer is None or not replace(neuron, v_init=0.0).is_plain or not x.by_channel:
            return None
        layer.v_init = neuron.v_init
        return self._layer(op.x, layer, x)

    def _neurons(self, op: Op, sums: str) -> general.Neurons:
        n = _neuron_of(op).in_unit()
        return general.Neurons(**n.settings(), offset=n.offset, gain=1.0, sums=sums)

    def _set_neurons(self, op: Op, layer: Any, norm: Any, keywords: dict[str, Any]) -> None:
        if keywords.get("fire", True):
            n = _neuron_of(op).in_unit()
            for name, value in n.settings().items():
                setattr(layer, name, value)
            if torch.as_tensor(n.offset).any():
                owner = layer if norm is None else norm
                bias = torch.zeros(len(layer.weight)) if owner.bias is None else owner.bias
                owner.bias = nn.Parameter(bias.detach() + n.offset * self.encoder.T, bias.requires_grad)


def _scaled(values: Tensor, factor: float) -> nn.Parameter:
    return nn.Parameter(values.detach() * factor, requires_grad=values.requires_grad)
