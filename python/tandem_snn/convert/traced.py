"""Without an example: the same graph by torch.fx, as far as modules and functions tell without shapes."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.parameter import is_lazy

from .. import ann as twins
from .graph import ONE_OPERATION, CannotConvert, Graph, Op, attribute, bind, does_only, refuse

GIVE = "give `example`, a batch of what the ANN takes: convert(ann, T, example=images)"
aten = torch.ops.aten

# Modules of torch that are one operator: its overload, and their attributes in the order of its arguments.
_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_POOL = ("kernel_size", "stride", "padding")
_MODULES: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    nn.Linear: (aten.linear.default, ("weight", "bias")),
    nn.Conv1d: (aten.conv1d.default, _CONV),
    nn.Conv2d: (aten.conv2d.default, _CONV),
    nn.Conv3d: (aten.conv3d.default, _CONV),
    nn.ConvTranspose1d: (aten.conv_transpose1d.default, _TRANSPOSED),
    nn.ConvTranspose2d: (aten.conv_transpose2d.input, _TRANSPOSED),
    nn.ConvTranspose3d: (aten.conv_transpose3d.input, _TRANSPOSED),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        (aten.batch_norm.default, ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")),
    ),
    nn.ReLU: (aten.relu.default, ()),
    nn.ReLU6: (aten.hardtanh.default, ("min_val", "max_val")),
    nn.Hardtanh: (aten.hardtanh.default, ("min_val", "max_val")),
    nn.Dropout: (aten.dropout.default, ("p", "training")),
    nn.Flatten: (aten.flatten.using_ints, ("start_dim", "end_dim")),
    nn.MaxPool1d: (aten.max_pool1d.default, (*_POOL, "dilation", "ceil_mode")),
    nn.MaxPool2d: (aten.max_pool2d.default, (*_POOL, "dilation", "ceil_mode")),
    nn.AvgPool1d: (aten.avg_pool1d.default, (*_POOL, "ceil_mode", "count_include_pad")),
    nn.AvgPool2d: (aten.avg_pool2d.default, (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")),
    nn.AdaptiveAvgPool1d: (aten.adaptive_avg_pool1d.default, ("output_size",)),
    nn.AdaptiveAvgPool2d: (aten.adaptive_avg_pool2d.default, ("output_size",)),
}
_FUNCTIONS: dict[Any, Any] = {
    F.linear: aten.linear.default,
    F.conv1d: aten.conv1d.default,
    F.conv2d: aten.conv2d.default,
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, "relu", "relu_"), aten.relu.default),
    F.relu6: aten.relu6.default,
    F.hardtanh: aten.hardtanh.default,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), aten.add.Tensor),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub"), aten.sub.Tensor),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul"), aten.mul.Tensor),
    **dict.fromkeys((operator.truediv, torch.div, "div"), aten.div.Tensor),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), aten.max_pool2d.default),
    F.avg_pool2d: aten.avg_pool2d.default,
    F.adaptive_avg_pool2d: aten.adaptive_avg_pool2d.default,
    **dict.fromkeys((torch.mean, "mean"), aten.mean.dim),
    **dict.fromkeys((torch.flatten, "flatten"), aten.flatten.using_ints),
    **dict.fromkeys((torch.dropout, F.dropout), aten.dropout.default),
    **dict.fromkeys((torch.cat, torch.concat), aten.cat.default),
    **dict.fromkeys(("contiguous", "clone", "detach"), aten.alias.default),
}
_NAMES = {"input": ("self", "input"), "x": ("self",), "training": ("train",)}  # torch's own -> the operators'


class _Tracer(fx.Tracer):
    """Looks into all modules but torch's and the marker of where an ANN of this package begins."""

    own: tuple[type[nn.Module], ...] = (twins.Encoder,)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, self.own) or super().is_leaf_module(module, name)


def traced(ann: nn.Module, own: tuple[type[nn.Module], ...] = ()) -> Graph:
    """The graph of ``ann``, in which the shapes of values are not known.

    Args:
        own: classes of modules that stay one node, "unknown" but for its module.

    Raises:
        CannotConvert: torch.fx cannot follow the forward, which with an example may do.
    """
    tracer = _Tracer()
    tracer.own += own
    try:
        graph = tracer.trace(ann)
    except Exception as error:  # whatever the user's forward raises at a value that is not there yet
        why = f"torch.fx cannot trace the ANN ({type(error).__name__}: {error})"
        raise CannotConvert(f"{why}: {GIVE}") from error
    reader = _Reader(ann)
    for node in graph.nodes:
        reader.read(node)
    return Graph([op for op in reader.ops.values() if op is not None], ann, reader.attributes, shapeless=True).link()


class _Reader:
    def __init__(self, ann: nn.Module) -> None:
        self.ann = ann
        self.modules = dict(ann.named_modules())
        self.attributes: dict[str, Any] = {}
        self.ops: dict[fx.Node, Op] = {}

    def read(self, node: fx.Node) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.ops.__getitem__)  # type: ignore[arg-type]
        op = Op(node.name, "unknown", call=(args, kwargs), source=node)
        self.ops[node] = op
        if node.op == "placeholder":
            op.kind, op.call = "input", ((), {})
        elif node.op == "output":
            op.kind = "output"
        elif node.op == "get_attr":
            op.kind, op.target = "attribute", str(node.target)
            self.attributes[op.target] = attribute(self.ann, op.target)
        elif node.op == "call_module":
            self._module(op, str(node.target), args)
        else:
            self._function(op, node.target, args, kwargs)

    def _module(self, op: Op, path: str, args: Any) -> None:
        module = self.modules[path]
        op.path, op.module, op.alone = path, module, True
        if isinstance(module, (nn.Identity, twins.Encoder, nn.Dropout)) and getattr(module, "p", 0) == 0:
            op.kind, op.args = "alias", {"self": args[0]}
            op.call = (args[:1], {})
            return
        if any(is_lazy(parameter) for parameter in module.parameters()):
            use = f"use nn.{type(module).__name__.removeprefix('Lazy')} itself: a lazy layer is one after a batch"
            raise refuse(op, use)
        if getattr(module, "return_indices", False):
            op.kind = "max_pool_with_indices"
            return
        found = next((c for c in _MODULES if type(module) is c or (isinstance(module, c) and _is_own(module, c))), None)
        if found is None:
            return
        overload, names = _MODULES[found]
        values = [getattr(module, name) for name in names]
        if isinstance(module, nn.modules.conv._ConvNd) and isinstance(module.padding, str):
            overload = overload.overloadpacket.padding
        if overload is aten.batch_norm.default:
            values.append(False)
        self._set(op, overload, [args[0], *values], {})

    def _function(self, op: Op, target: Any, args: Any, kwargs: Any) -> None:
        op.target = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        what = "call_method" if isinstance(target, str) else "call_function"
        op.target = f"{what} {op.target}"
        if target == "size" or target is getattr:
            op.kind = "size"
        elif target is operator.getitem:
            sized = isinstance(args[0], Op) and args[0].kind == "size"
            op.kind = "size" if sized else "unknown"
        elif target in ("view", "reshape") or target is torch.reshape:
            self._reshape(op, args)
        elif target in _FUNCTIONS and not kwargs.get("return_indices", False):
            overload = _FUNCTIONS[target]
            if overload in (aten.conv1d.default, aten.conv2d.default) and isinstance(kwargs.get("padding", 0), str):
                overload = overload.overloadpacket.padding
            known = {a.name for a in overload._schema.arguments}
            named = {next((n for n in _NAMES.get(k, ()) if n in known), k): v for k, v in kwargs.items()}
            self._set(op, overload, args, {k: v for k, v in named.items() if k in known})
        inputs = op.inputs
        if op.kind != "attribute" and inputs and all(i.kind == "size" for i in inputs):
            op.kind = "size"

    def _reshape(self, op: Op, args: Any) -> None:
        shape = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        if len(shape) == 2 and (isinstance(shape[0], Op) != (shape[0] == -1)):  # (batch, anything) or (-1, anything)
            self._set(op, aten.flatten.using_ints, [args[0], 1], {})

    def _set(self, op: Op, overload: Any, args: Any, kwargs: Any) -> None:
        schema = overload._schema.arguments
        op.kind = overload.overloadpacket.__name__
        op.args = bind(overload, list(args)[: len(schema)], kwargs)
        for argument in schema:
            if op.args[argument.name] is None:  # torch.nn.functional's own word for the default
                op.args[argument.name] = argument.default_value
        op.call = (
            tuple(op.args[argument.name] for argument in schema if not argument.kwarg_only),
            {argument.name: op.args[argument.name] for argument in schema if argument.kwarg_only},
        )


def _is_own(module: nn.Module, cls: type[nn.Module]) -> bool:
    """A subclass that computes as torch's class does, such as one with a parametrised weight."""
    return any(cls in classes and does_only(module, kind) for kind, classes in ONE_OPERATION.items())
