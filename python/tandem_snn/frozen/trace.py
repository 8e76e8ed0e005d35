"""Find how the layers of a network are connected, by a call of its copy on torch.fx's proxies.

torch.fx's own tracer patches ``nn.Module`` for all threads while it traces. Here only a shallow copy of the network
records: its modules share everything with their originals, but the forward of a layer adds a node to the graph.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

from tandem_ext._torch import children_of, has_forward_hooks, set_children, uncompiled

from .. import nn as tnn
from ..nn.general import Neurons
from ..nn.maximum import MaxPool
from .stages import CannotLower

MOVES = (tnn.MaxPool2d, tnn.AvgPool2d, tnn.AdaptiveAvgPool2d, tnn.Flatten)
LAYERS = (tnn.Linear, tnn.Conv1d, tnn.Conv2d)
LEAVES = (*MOVES, *LAYERS, tnn.Encoder, tnn.Dropout, tnn.Readout)


def trace(net: nn.Module) -> fx.Graph:
    """Return the graph of calls of the layers in ``net``; raise CannotLower if it has none."""
    for name, module in net.named_modules():
        if has_forward_hooks(module):
            raise CannotLower(name or "net", "it has a forward hook, which only its own forward calls: remove the hook")
    tracer = _Tracer(fx.Graph())
    answer = tracer.copy(net)(tracer.create_proxy("placeholder", "x", (), {}))
    tracer.create_node("output", "output", (tracer.create_arg(answer),), {})
    return tracer.graph


class _Tracer(GraphAppendingTracer):
    """Copies modules so that they add nodes to ``graph``; each node has its ``module``, (name, module), in ``meta``."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(graph)
        self.copies: dict[nn.Module, nn.Module] = {}
        self.inside: list[tuple[str, nn.Module]] = []  # the modules whose forward runs, the innermost last

    def create_node(self, *arguments: Any, **keywords: Any) -> fx.Node:
        node = super().create_node(*arguments, **keywords)
        node.meta["module"] = self.inside[-1] if self.inside else None
        return node

    def create_arg(self, a: Any) -> Any:
        try:
            return super().create_arg(a)
        except NotImplementedError:  # not an argument of a layer
            return None

    def copy(self, module: nn.Module, name: str = "") -> nn.Module:
        if module in self.copies:
            return self.copies[module]
        if uncompiled(module) is not module:
            raise CannotLower(name, "it is compiled: freeze the module that was given to torch.compile")
        copy: nn.Module = object.__new__(type(module))
        self.copies[module] = copy
        copy.__dict__.update(module.__dict__)
        prefix = f"{name}." if name else ""
        children = {key: child and self.copy(child, prefix + key) for key, child in children_of(module).items()}
        torchs = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
        if isinstance(module, (*LEAVES, tnn.SpikingLayer, Neurons, MaxPool)) or torchs:
            forward = partial(self._layer, name)
        elif isinstance(module, fx.GraphModule):
            forward = partial(self._inside, name, module, partial(self._graph, module.graph, copy))
        else:
            forward = partial(self._inside, name, module, copy.forward)
        set_children(copy, children)
        copy.__dict__["forward"] = forward
        return copy

    def _layer(self, name: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        return self.create_proxy("call_module", name, args, kwargs)

    def _inside(self, name: str, module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.inside.append((name, module))
        try:
            return forward(*args, **kwargs)
        except CannotLower:
            raise
        except Exception as error:  # a user's forward may raise anything when it is traced
            what = f"{type(module).__name__} is not" if name else "it contains something that is not"
            raise CannotLower(
                name or "net", f"{what} a layer of tandem_snn.nn, and its forward cannot be traced ({error})"
            ) from error
        finally:
            self.inside.pop()

    def _graph(self, graph: fx.Graph, copy: nn.Module, *args: Any) -> Any:
        """Run the graph of a GraphModule; functions are recorded, not called."""
        values: dict[fx.Node, Any] = {}
        inputs = iter(args)
        for node in graph.nodes:
            given, named = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                values[node] = next(inputs)
            elif node.op == "call_module":
                values[node] = copy.get_submodule(str(node.target))(*given, **named)
            elif node.op == "output":
                return given[0]
            else:
                values[node] = self.create_proxy(node.op, node.target, given, named, node.name)
        return None
