"""The intermediate form of an ANN's graph for conversion: operators of torch.ops.aten, from any frontend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tandem_ext._torch import OpOverload, arguments_of, pytree


class CannotConvert(ValueError):
    """The ANN cannot be converted. The message names the node and what to use instead."""


@dataclass(eq=False)
class Op:
    """One node of an ANN's graph.

    Attributes:
        name: a unique name.
        kind: "input", "attribute" (a Parameter, buffer or constant), "output", "size" (arithmetic on sizes), "getitem",
            "unknown" (an operator from outside of aten), or the operator's name in ``torch.ops.aten`` without the
            underscore of its in-place version.
        function: the function of torch that it calls, for parts that stay an ANN; None for other nodes.
        args: the arguments by their names in the operator's schema, with defaults; inputs are Ops.
        call: the arguments as (args, kwargs).
        path, module: the innermost module whose forward calls it, and the path of that module in the ANN.
        alone: whether it is the only operation of the module, so that the module can be called instead.
        shape: the shape of its value, with None for the batch; None if the value is not a tensor.
        batch: the first size of its value, or of the first of several, as a function of the size of the batch; None if
            it is a number.
        line: the line of Python that made it.
        target: the path of an attribute, or the name of an "unknown" operator.
        users: the Ops that read its value.
    """

    name: str
    kind: str
    function: Any = None
    args: dict[str, Any] = field(default_factory=dict)
    call: tuple[Any, Any] = ((), {})
    path: str = ""
    module: nn.Module | None = None
    alone: bool = False
    shape: tuple[int | None, ...] | None = None
    batch: Any = None
    line: str = ""
    target: str = ""
    users: list[Op] = field(default_factory=list)

    @property
    def inputs(self) -> list[Op]:
        return [value for value in pytree.tree_leaves(self.call) if isinstance(value, Op)]

    @property
    def x(self) -> Op:
        """The first input."""
        return self.inputs[0]

    @property
    def features(self) -> tuple[int, ...]:
        """The shape of its value without the batch."""
        return tuple(int(size or 0) for size in (self.shape or ())[1:])

    @property
    def dims(self) -> int:
        return len(self.shape or ())


@dataclass
class OpGraph:
    """The graph of an ANN: its Ops in the order of execution, and the live ANN.

    Attributes:
        attributes: Parameters, buffers and constants by path.
        sized: whether inputs have the size of the example. If not, shapes in the graph must not be relied on.
        of_one_size: whether numbers in the graph, or layers made of it, do not suit images of another size.
    """

    ops: list[Op]
    ann: nn.Module
    attributes: dict[str, Any]
    sized: bool = True
    of_one_size: bool = False

    def link(self) -> None:
        for op in self.ops:
            op.users = []
        for op in self.ops:
            for source in dict.fromkeys(op.inputs):
                source.users.append(op)

    def replace(self, old: dict[Op, Op]) -> None:
        """Use the value of another Op where the keys of ``old`` are used, and remove them."""
        self.ops = [op for op in self.ops if op not in old]
        for op in self.ops:
            op.call, op.args = pytree.tree_map_only(Op, lambda value: old.get(value, value), (op.call, op.args))
        self.link()


class NewGraph:
    """A graph of torch.fx in the making, and its modules and tensors by name."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}

    def network(self, name: str) -> fx.GraphModule:
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("output", "placeholder"):
                self.graph.erase_node(node)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, name)

    def module(self, name: str, module: Any, x: fx.Node, **keywords: Any) -> fx.Node:
        return self.graph.call_module(self.named(name, module), (x,), keywords)

    def function(self, f: Callable[..., Any], args: Any, kwargs: Any = None) -> fx.Node:
        node = self.graph.call_function(f, args, kwargs)
        node.meta["is_wrapped"] = True  # so that torch.fx does not trace into it, for example when unpickling
        return node

    def get(self, name: str, value: Any) -> fx.Node:
        return self.graph.get_attr(self.named(name, value))

    def named(self, name: str, value: Any) -> str:
        """Store ``value`` under this name, or one like it if that is taken, and return the name."""
        while name in self.root and self.root[name] is not value:
            name += "_again"
        self.root[name] = value
        return name


def refuse(op: Op, why: str) -> CannotConvert:
    what = op.target or op.kind
    if op.module is not None:
        inside = f"module {op.path!r}, " if op.path else ""
        what = f"{what} in {inside}{type(op.module).__name__}"
    where = f"; {op.line}" if op.line else ""
    return CannotConvert(f"node {op.name!r} ({what}{where}): {why}")


def bind(overload: OpOverload, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of an operator by their names in its schema."""
    arguments = arguments_of(overload)
    values = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    return {argument.name: values.get(argument.name, argument.default_value) for argument in arguments}


def shape_of(value: Any) -> tuple[int | None, ...] | None:
    """Return the shape of a value in an exported graph, with None for sizes that depend on the batch."""
    if not isinstance(value, Tensor):
        return None
    return tuple(None if _symbol(size) is not None else int(size) for size in value.shape)


def batch_of(value: Any) -> Any:
    """Return the ``batch`` of an Op with this value."""
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return _symbol(first.shape[0]) if isinstance(first, Tensor) and first.dim() else None


def _symbol(size: Any) -> Any:
    """Return a size as an expression; None if it is a number."""
    return size.node.expr if isinstance(size, torch.SymInt) and not size.node.expr.is_number else None
