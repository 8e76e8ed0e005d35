"""The small form of an ANN's graph that conversion works on: operators of torch.ops.aten, however they came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree


class CannotConvert(ValueError):
    """An ANN of which some node has no spiking counterpart; the message names the node and what to use instead."""


@dataclass(eq=False)
class Op:
    """One node of an ANN's graph.

    Attributes:
        name: unique.
        kind: "input", "attribute" (a Parameter, buffer or constant), "output", "size" (arithmetic on sizes), "getitem",
            "unknown" (somebody else's operator), or the operator's name in ``torch.ops.aten`` without the underscore of
            its in-place version.
        source: the node of the exported graph, which is copied where the ANN stays an ANN.
        args: by the names of the operator's schema, defaults included; inputs among them are Ops.
        call: (args, kwargs) as the operator takes them.
        path, module: the innermost module in whose forward it is, and its path in the ANN.
        alone: is it all that the module does? Then the module itself can be called in its place.
        shape: of its value, the batch as None; None of what is no tensor.
        line: the line of Python that made it.
        target: the attribute's path, or what a kind "unknown" is called.
        users: the Ops that read it.
    """

    name: str
    kind: str
    source: fx.Node
    args: dict[str, Any] = field(default_factory=dict)
    call: tuple[Any, Any] = ((), {})
    path: str = ""
    module: nn.Module | None = None
    alone: bool = False
    shape: tuple[int | None, ...] | None = None
    line: str = ""
    target: str = ""
    users: list[Op] = field(default_factory=list)

    @property
    def inputs(self) -> list[Op]:
        return [value for value in pytree.tree_leaves(self.call) if isinstance(value, Op)]

    @property
    def x(self) -> Op:
        """Its first input."""
        return self.inputs[0]

    @property
    def features(self) -> tuple[int, ...]:
        """The sizes of its value, without the batch."""
        return tuple(int(size or 0) for size in (self.shape or ())[1:])

    @property
    def dims(self) -> int:
        return len(self.shape or ())


@dataclass
class Graph:
    """An ANN's graph.

    Attributes:
        ops: in the order of execution.
        ann: the live ANN.
        attributes: Parameters, buffers and constants by path.
        sized: images have the example's size; else any, and what depends on it is left to the operators themselves.
    """

    ops: list[Op]
    ann: nn.Module
    attributes: dict[str, Any]
    sized: bool = True

    def link(self) -> Graph:
        for op in self.ops:
            op.users = []
        for op in self.ops:
            for given in dict.fromkeys(op.inputs):
                given.users.append(op)
        return self


def refuse(op: Op, why: str) -> CannotConvert:
    what = op.target or op.kind
    if op.module is not None:
        inside = f"module {op.path!r}, " if op.path else ""
        what = f"{what} in {inside}{type(op.module).__name__}"
    where = f"; {op.line}" if op.line else ""
    return CannotConvert(f"node {op.name!r} ({what}{where}): {why}")


def bind(overload: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The operator's arguments by the names in its schema."""
    bound = {}
    for i, argument in enumerate(overload._schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def attribute(module: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        module = getattr(module, name)
    return module


# Modules that do one operation on their input, by forwards that are torch's own: kind -> classes.
_CONVOLUTIONS = {
    f"conv{transposed}{d}d": getattr(nn, f"Conv{'Transpose' * bool(transposed)}{d}d")
    for d in (1, 2, 3)
    for transposed in ("", "_transpose")
}
ONE_OPERATION: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    **{kind: (cls,) for kind, cls in _CONVOLUTIONS.items()},
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "dropout": (nn.Dropout,),
    "feature_dropout": (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    "alpha_dropout": (nn.AlphaDropout,),
}


def does_only(module: nn.Module | None, kind: str) -> bool:
    """Is a call of ``module`` nothing but that operator? Not of a class that changed torch's forward."""
    if module is None or getattr(module, "padding_mode", "zeros") != "zeros":
        return False
    for cls in ONE_OPERATION.get(kind, ()):
        if isinstance(module, cls) and type(module).forward is cls.forward:
            return all(
                getattr(type(module), name, None) is getattr(cls, name, None) for name in ("_conv_forward", "__call__")
            )
    return False


def batch_of(value: Any) -> tuple[int | None, ...] | None:
    """The shape of a value in an exported graph, sizes that depend on the batch as None."""
    if not isinstance(value, Tensor):
        return None
    return tuple(None if isinstance(size, torch.SymInt) else int(size) for size in value.shape)
