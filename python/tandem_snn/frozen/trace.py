"""Find how the layers of a network are connected, by a call of its copy on values that only layers take.

torch.fx's tracer patches ``nn.Module`` for all threads while it traces. Here only a shallow copy of the network is
changed: its modules share everything with their originals, but the forward of a layer is what the caller gives.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, fx, nn

from tandem_ext import signal
from tandem_ext._torch import DispatchMode, children_of, forward_hooks, pytree, set_children, uncompiled, versions_of

from .. import nn as tnn
from ..nn import currents, general
from ..nn.hooks import READOUTS, call_inputs
from ..nn.maximum import MaxPool, largest
from ..nn.signals import effective_counts
from .instruction import CannotLower

POOLS = (tnn.MaxPool2d, tnn.MaxPool1d, tnn.AvgPool2d, tnn.AvgPool1d, tnn.AdaptiveAvgPool2d)
MOVES = (*POOLS, tnn.AdaptiveMaxPool2d, tnn.AdaptiveMaxPool1d, tnn.Flatten, tnn.Upsample)
LAYERS = (tnn.Linear, tnn.Conv1d, tnn.Conv2d, tnn.ConvTranspose1d, tnn.ConvTranspose2d, tnn.Neurons)
LEAVES = (*MOVES, *LAYERS, *READOUTS, tnn.Encoder, tnn.Dropout, tnn.Permute, tnn.Attention)


@dataclass(eq=False, repr=False)
class Value(signal.Signal):
    """What flows from layer to layer: a train, currents or numbers. What is no layer can only add them.

    Attributes:
        number: the number of the instruction, or INPUT.
        timing: that of a train or of currents; None of numbers.
        gain: what a count of it is worth, a number or one for each channel.
        source: the number of the input that it is, also after moves such as pooling; else None.
        is_currents: whether it is currents.
        channels: their number; None if it is not known.
        own_T: of a train, T if a layer with its own T made it, or a part of it.
        offset: as of a train.
        owner: the lowering that made it, which adds and joins values.
        converted: the train of the other timing, once it is needed.
        origin: of moved features, the value from which they come, and for each its number there.
        pending: whether it has more dimensions than an instruction, so that only ``origin`` says what it is.
    """

    number: int
    timing: str | None = None
    gain: float | Tensor = 1.0
    source: int | None = None
    is_currents: bool = False
    channels: int | None = None
    owner: Any = None
    own_T: int | None = None
    offset: Tensor | None = None
    converted: "Value | None" = None
    origin: "tuple[Value, Tensor] | None" = None
    pending: bool = False

    @property
    def is_numbers(self) -> bool:
        """Whether it is mean counts, or what a readout or a function makes of them."""
        return self.timing is None and self.source is None

    def __add__(self, other: Any) -> Any:
        adds = self.is_numbers or self.is_currents or (isinstance(other, Value) and other.is_currents)
        if adds and isinstance(other, Value) and other.is_numbers == self.is_numbers:
            return self.owner.sum("sum", self, other)
        if (self.is_numbers or self.is_currents) and isinstance(other, Real | Tensor):
            return self.owner.constant("shifted", self, other, scales=False)
        raise TypeError("spikes are 0 and 1, and cannot be added")

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, Value) and not other.is_numbers:
            return self + -other.as_currents()
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __neg__(self) -> Any:
        return self * -1.0

    def __mul__(self, factor: Any) -> Any:
        if not (self.is_currents or self.is_numbers) or not isinstance(factor, Real | Tensor):
            return NotImplemented
        return self.owner.constant("scaled", self, factor, scales=True)

    def __truediv__(self, factor: Any) -> Any:
        if not isinstance(factor, Real | Tensor):
            return NotImplemented
        if self.is_numbers and not bool(torch.frexp(torch.as_tensor(factor).double()).mantissa.abs().eq(0.5).all()):
            raise TypeError("a quotient rounds otherwise than a product: multiply the answer by 1 / the factor")
        if isinstance(factor, Tensor) and not factor.is_floating_point():
            factor = factor.to(self.owner.dtype)  # as torch does
        return self * (1 / factor)

    __radd__, __rmul__ = __add__, __mul__

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = currents.by_operator(cls, func, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs) if result is NotImplemented else result

    def as_currents(self) -> Any:
        """Return what ``currents_of`` makes of it."""
        return self if self.is_currents else self.owner.affine("currents", self, None, None)

    @classmethod
    def check_fit(cls, signals: Any, dim: int) -> int:
        return dim

    @classmethod
    def concatenate(cls, signals: Any, dim: int) -> Any:
        return signals[0].owner.join("cat", list(signals), dim)

    __array_ufunc__ = None  # as of currents

    def __bool__(self) -> bool:
        raise TypeError("a branch that depends on the input")

    def __getattr__(self, name: str) -> Any:
        return _lacking(name, self)

    def __repr__(self) -> str:
        if self.source is not None:
            return "the input"
        return "currents" if self.is_currents else "an answer or means" if self.is_numbers else "a train"


def _lacking(name: str, value: Value) -> Any:
    raise AttributeError(f"it uses {name!r} of {value!r}")


for _name in ("map", "replace", "to", "detach", "shape", "device"):  # what it inherits and has not
    setattr(Value, _name, property(partial(_lacking, _name)))


def refuse_hooks(net: nn.Module) -> None:
    for name, module in net.named_modules():
        for hook in forward_hooks(module):
            kind = getattr(hook, "__qualname__", type(hook).__name__)
            why = f"it has a forward hook, {kind}, which only its own forward calls: remove the hook"
            raise CannotLower(name or "net", why)


def trace(net: nn.Module, inputs: list[Value], call: Callable[..., Value], function: Callable[..., Any]) -> Any:
    """Return what the network makes of inputs, where ``call(name, layer, x, **further)`` is the forward of each layer.

    ``function(name, f, *args)`` stands for the functions of a converted network.
    """
    refuse_hooks(net)
    tracer = _Tracer(call, function)
    with _NothingRandom():  # type: ignore[no-untyped-call]
        answer = tracer.copy(net)(*inputs)
    tracer.refuse_changes()
    return answer


class _NothingRandom(DispatchMode):
    """Within it, drawing random numbers is an error: a program would have drawn them once for all calls."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in op.tags:
            return op(*args, **(kwargs or {}))
        before = torch.get_rng_state()
        y = op(*args, **(kwargs or {}))
        if not torch.equal(before, torch.get_rng_state()):  # some draw only if they drop out
            raise TypeError("it draws random numbers, which each call draws anew")
        return y


class _Tracer:
    def __init__(self, call: Callable[..., Value], function: Callable[..., Any]) -> None:
        self.call, self.function = call, function
        self.failed: Exception | None = None  # the error of a call
        self.copies: dict[nn.Module, nn.Module] = {}
        self.names: dict[nn.Module, str] = {}
        self.tensors: dict[nn.Module, Any] = {}  # of each module before the trace

    def copy(self, module: nn.Module, name: str = "") -> nn.Module:
        if module in self.copies:
            return self.copies[module]
        if uncompiled(module) is not module:
            raise CannotLower(name, "it is compiled: freeze the module that was given to torch.compile")
        copy: Any = object.__new__(type(module))
        self.copies[module], self.names[module], self.tensors[module] = copy, name, versions_of(module)
        copy.__dict__.update(module.__dict__)
        prefix = f"{name}." if name else ""
        set_children(
            copy, {key: child and self.copy(child, prefix + key) for key, child in children_of(module).items()}
        )
        if _is_leaf(module):
            forward = partial(self._layer, name, module)
        else:
            own = isinstance(module, fx.GraphModule) and not _has_own_forward(module)
            run = _Interpreter(name, self.function, copy).run if own else copy.forward
            forward = partial(self._run, name, module, run)
        copy.__dict__["forward"] = forward
        return copy

    def refuse_changes(self) -> None:
        """Raise CannotLower if a forward changed what another call may read: a program has one value of it."""
        for module in self.copies:
            self._refuse_changes(module, settings=_is_leaf(module))

    def _refuse_changes(self, module: nn.Module, settings: bool) -> None:
        now = vars(self.copies[module])
        changed = [
            key for key, value in vars(module).items()
            if key not in ("_modules", "_parameters", "_buffers", "forward") and now.get(key, self) is not value
            and (settings or (isinstance(value, int | float | str) and now.get(key) != value))
        ]  # fmt: skip
        tensors = versions_of(self.copies[module])
        changed += [
            key for key, (tensor, version) in self.tensors[module].items()
            if key not in tensors or tensors[key][0] is not tensor or tensors[key][1] != version
        ]  # fmt: skip
        if changed:
            raise CannotLower(self.names[module] or "net", f"a forward changes its {changed[0]!r}, which calls read")

    def _layer(self, name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Value:
        self._refuse_changes(layer, settings=True)
        if _has_own_forward(layer):
            raise CannotLower(name, "its forward is another one than that of its class")
        of_torch = type(layer).__module__.startswith("torch.nn")
        if of_torch and not any(isinstance(value, Value) for value in pytree.tree_leaves((args, kwargs))):
            return layer(*args, **kwargs)  # a constant, such as an embedding of positions
        x, further = call_inputs(args, kwargs)
        known = isinstance(x, Value) and isinstance(further.get("residual"), Value | None)
        if not known or further.keys() - {"residual"}:
            raise CannotLower(name, "its input does not come from a layer of tandem_snn.nn")
        values: Any = (x, *further.values())
        pending = any(value is not None and value.pending for value in values)
        if pending and not isinstance(layer, tnn.Flatten | tnn.Permute):
            raise CannotLower(name, "its input has more dimensions than channels, height and width")
        try:
            return self.call(name, layer, x, **further)
        except Exception as error:
            self.failed = error
            raise

    def _run(self, name: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the forward of a module that is no layer; raise CannotLower, with its name, for what it does itself."""
        try:
            return forward(*args, **kwargs)
        except Exception as error:  # a user's forward may raise anything when it is traced
            if error is self.failed or isinstance(error, CannotLower):
                raise
            what = f"{type(module).__name__} is not a layer" if name else "its forward is more than layers"
            only = "or a combination of such, which alone run step by step and can be saved and exported"
            why = f"{what} of tandem_snn.nn {only} ({str(error).replace('Value', 'SpikeTrain')})"
            raise CannotLower(name or "net", why) from error


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module is lowered as a whole, without a call of its forward."""
    of_torch = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return of_torch or isinstance(module, (*LEAVES, tnn.SpikingLayer, MaxPool))


def _has_own_forward(module: nn.Module) -> bool:
    return "forward" in vars(module) and getattr(module.forward, "__func__", None) is not type(module).forward


class _Interpreter(fx.Interpreter):
    """Runs the graph of a GraphModule, whose functions are lowered or refused instead of called."""

    def __init__(self, name: str, function: Callable[..., Any], copy: fx.GraphModule) -> None:
        super().__init__(copy)
        self.name, self.function = name, function
        self.extra_traceback = False  # it would change the messages of errors

    def run_node(self, node: fx.Node) -> Any:
        if node.op not in ("call_function", "call_method"):
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        constant = not any(isinstance(value, Value) for value in pytree.tree_leaves((args, kwargs)))
        if node.op == "call_function" and (node.target in FUNCTIONS or constant):
            return self.function(node.name, node.target, *args, **kwargs)
        what = _operator_of(node)
        why = f"{what} is not a layer of tandem_snn.nn"
        if "avg_pool" in what or "AvgPool" in what:
            why += ", whose averages have no ceil_mode, divisor_override or count_include_pad=False at the border"
        raise CannotLower(self.name or "net", why)


FUNCTIONS = (
    operator.getitem, currents.currents_of, currents.normalise, general.add, general.scaled, general.shifted,
    general.dropped, general.silenced, general.of_size, general.rearranged, largest,
)  # fmt: skip


def _operator_of(node: fx.Node) -> str:
    """Name the operator of the user's network, for which :func:`tandem_snn.convert` may have put other functions."""
    if node.target is effective_counts and node.users:
        return _operator_of(next(iter(node.users)))
    named = general.linear_map, general.rearranged, largest
    target: Any = node.args[0] if node.target in named and isinstance(node.args[0], str) else node.target
    target = getattr(target, "overloadpacket", target)
    if node.op == "call_module":
        target = type(node.graph.owning_module.get_submodule(target))  # type: ignore[union-attr]
    return f"{node.name!r} ({node.op} {target if isinstance(target, str) else getattr(target, '__name__', target)})"
