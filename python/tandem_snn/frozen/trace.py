"""Find how the layers of a network are connected, by a call of its copy on values that only layers take.

torch.fx's tracer patches ``nn.Module`` for all threads while it traces. Here only a shallow copy of the network is
changed: its modules share everything with their originals, but the forward of a layer is what the caller gives.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from tandem_ext._torch import children_of, has_forward_hooks, set_children, uncompiled

from .. import nn as tnn
from ..nn.general import Neurons, rearranged, total
from ..nn.hooks import call_inputs
from ..nn.maximum import MaxPool, largest
from .instruction import CannotLower

MOVES = (tnn.MaxPool2d, tnn.AvgPool2d, tnn.AdaptiveAvgPool2d, tnn.Flatten)
LAYERS = (tnn.Linear, tnn.Conv1d, tnn.Conv2d)
LEAVES = (*MOVES, *LAYERS, tnn.Encoder, tnn.Dropout, tnn.Readout)


class Value:
    """What flows from layer to layer, a train or numbers. It has nothing of them: what is no layer cannot use it.

    Attributes:
        number: the number of the instruction, or INPUT.
        timing: that of a train; None if it is no train.
        gain: what a count of it is worth, a number or one for each channel.
        is_image: whether it is the input, also after moves such as pooling.
        converted: the train of the other timing, once it is needed.
    """

    def __init__(self, number: int, timing: str | None, gain: float | Tensor, is_image: bool = False) -> None:
        self.number, self.timing, self.gain, self.is_image = number, timing, gain, is_image
        self.converted: Value | None = None

    def __bool__(self) -> bool:
        raise TypeError("a branch that depends on the input")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"it uses {name!r} of a train")

    __repr__ = lambda _: "a train"  # noqa: E731


def refuse_hooks(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if has_forward_hooks(module):
            raise CannotLower(name or "net", "it has a forward hook, which only its own forward calls: remove the hook")


def trace(net: nn.Module, x: Value, call: Callable[..., Value]) -> Any:
    """Return what the network makes of x, where ``call(name, layer, x, **further)`` is the forward of each layer."""
    refuse_hooks(net)
    return _Tracer(call).copy(net)(x)


class _Tracer:
    def __init__(self, call: Callable[..., Value]) -> None:
        self.call = call
        self.failed: Exception | None = None  # the error of a call
        self.copies: dict[nn.Module, nn.Module] = {}

    def copy(self, module: nn.Module, name: str = "") -> nn.Module:
        if module in self.copies:
            return self.copies[module]
        if uncompiled(module) is not module:
            raise CannotLower(name, "it is compiled: freeze the module that was given to torch.compile")
        copy: Any = object.__new__(type(module))
        self.copies[module] = copy
        copy.__dict__.update(module.__dict__)
        prefix = f"{name}." if name else ""
        set_children(
            copy, {key: child and self.copy(child, prefix + key) for key, child in children_of(module).items()}
        )
        torchs = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
        if isinstance(module, (*LEAVES, tnn.SpikingLayer, Neurons, MaxPool)) or torchs:
            forward = partial(self._layer, name, module)
        else:
            run = partial(_run_graph, name, copy) if isinstance(module, fx.GraphModule) else copy.forward
            forward = partial(self._run, name, module, run)
        copy.__dict__["forward"] = forward
        return copy

    def _layer(self, name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Value:
        x, further = call_inputs(args, kwargs)
        known = isinstance(x, Value) and isinstance(further.get("residual"), Value | None)
        if not known or further.keys() - {"residual", "fire"}:
            raise CannotLower(name, "its input does not come from a layer of tandem_snn.nn")
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
            what = f"{type(module).__name__} is not" if name else "it contains something that is not"
            only = "or a combination of such, which alone run step by step and can be saved and exported"
            why = f"{what} a layer of tandem_snn.nn {only} ({str(error).replace('Value', 'SpikeTrain')})"
            raise CannotLower(name or "net", why) from error


def _run_graph(name: str, copy: fx.GraphModule, *args: Any) -> Any:
    """Run the graph of a GraphModule, whose functions are refused instead of called."""
    values, inputs = dict[fx.Node, Any](), iter(args)
    for node in copy.graph.nodes:
        arguments, named = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "call_module":
            values[node] = copy.get_submodule(str(node.target))(*arguments, **named)
        elif node.op == "output":
            return arguments[0]
        else:
            raise CannotLower(name or "net", f"{_operator_of(node)} is not a layer of tandem_snn.nn")
    return None


def _operator_of(node: fx.Node) -> str:
    """Name the operator of the user's network, for which :func:`tandem_snn.convert` may have put other functions."""
    if node.target is total and node.users:
        return _operator_of(next(iter(node.users)))
    target: Any = node.args[0] if node.target in (rearranged, largest) else node.target
    target = getattr(target, "overloadpacket", target)
    return f"{node.name!r} ({node.op} {target if isinstance(target, str) else getattr(target, '__name__', target)})"
