"""What the nodes of a traced ANN are, whether they came from a module, a function or a method."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .. import ann
from .. import nn as tnn
from .graph import CannotConvert

SYNAPSES: dict[type[nn.Module], type[tnn.SpikingLayer]] = {
    nn.Linear: tnn.Linear,
    nn.Conv1d: tnn.Conv1d,
    nn.Conv2d: tnn.Conv2d,
}


@dataclass
class Role:
    """The part a node plays.

    Attributes:
        kind: "synapses", "norm", "relu", "add", "average" (pooling by a mean), "layer" (works on activations and on
            pre-activations alike, since it commutes with ReLU), "same" (returns its input), "size", or "other".
        inputs: the values it works on.
        module: the module of "synapses" and "norm", or what stands in a spiking network in the place of a "layer" or an
            "average".
        name: of the module of "synapses".
        hint: what to use instead of "other".
    """

    kind: str
    inputs: tuple[Any, ...]
    module: Any = None
    name: str = ""
    hint: str = ""


def role_of(node: fx.Node, modules: dict[str, nn.Module]) -> Role:
    """The part that ``node`` plays.

    Raises:
        CannotConvert: a known operation with an option that spikes do not have.
    """
    if node.op == "call_module":
        return _of_module(node, modules[str(node.target)])
    if node.op not in ("call_function", "call_method") or node.target not in _CALLS:
        return Role("other", tuple(node.all_input_nodes))
    names, read = _CALLS[node.target]
    values = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return read(node, node.args if names[-1] == "*" else (), values)


def refuse(node: fx.Node, why: str) -> CannotConvert:
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.op == "call_module" and node.graph.owning_module is not None:
        what = f"{what}, {type(node.graph.owning_module.get_submodule(str(what))).__name__}"
    return CannotConvert(f"node {node.name!r} ({node.op} {what}): {why}")


def _of_module(node: fx.Node, module: Any) -> Role:
    x = node.args[:1]
    kind = type(module)
    if kind in SYNAPSES:
        if getattr(module, "padding_mode", "zeros") != "zeros":
            raise refuse(node, f"padding_mode {module.padding_mode!r}: use 'zeros'")
        return Role("synapses", x, module, str(node.target))
    if isinstance(module, tuple(SYNAPSES)):
        torchs = next(cls.__name__ for cls in SYNAPSES if isinstance(module, cls))
        use = (
            f"use nn.{torchs} itself: a lazy layer is one after a batch, a parametrised one by remove_parametrizations"
        )
        return Role("other", x, hint=use)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        if module.weight is None:
            raise refuse(node, "batch norm without γ and β: use affine=True")
        return Role("norm", x, module)
    if kind is nn.ReLU:
        return Role("relu", x)
    if kind in (nn.Identity, ann.Encoder):
        return Role("same", x)
    if kind is nn.Dropout:
        return Role("layer", x, tnn.Dropout(module.p))
    if kind is nn.Flatten:
        return Role("layer", x, _flatten(node, module.start_dim, module.end_dim))
    if kind is nn.MaxPool2d:
        values = {name: getattr(module, name) for name in _MAX_POOL[1:]}
        return _max_pool(node, (), {"input": x[0], **values})
    if kind is nn.AvgPool2d:
        values = {name: getattr(module, name) for name in _AVG_POOL[1:]}
        return _avg_pool(node, (), {"input": x[0], **values})
    if kind is nn.AdaptiveAvgPool2d:
        return Role("average", x, tnn.AdaptiveAvgPool2d(module.output_size))
    return Role("other", tuple(node.all_input_nodes))


def _synapses(node: fx.Node, _: Any, values: dict[str, Any]) -> Role:
    """A product as a function: the module with the same Parameters, under the name of the one that has the weight."""
    given = {name: values.get(name) for name in ("weight", "bias")}
    root: Any = node.graph.owning_module
    found = {n: v for n, v in given.items() if isinstance(v, fx.Node) and v.op == "get_attr"}
    if "weight" not in found or (given["bias"] is not None and "bias" not in found):
        hint = "the weight and bias of a product are Parameters here, neither computed nor inputs"
        return Role("other", tuple(node.all_input_nodes), hint=hint)
    parameters = {name: attribute(root, str(value.target)) for name, value in found.items()}
    weight, groups = parameters["weight"], values.get("groups", 1)
    cls: Any = next(cls for cls, dims in ((nn.Linear, 2), (nn.Conv1d, 3), (nn.Conv2d, 4)) if weight.dim() == dims)
    geometry = {name: values[name] for name in ("stride", "padding", "dilation", "groups") if name in values}
    size = (weight.shape[1] * groups, weight.shape[0], *[tuple(weight.shape[2:])] * (cls is not nn.Linear))
    module = cls(*size, bias="bias" in found, device="meta", **geometry)
    module.weight, module.bias = weight, parameters.get("bias")
    return Role("synapses", (values["input"],), module, str(found["weight"].target).rpartition(".")[0] or node.name)


def attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _flatten(node: fx.Node, start: int, end: int) -> tnn.Flatten:
    if start == 0:
        raise refuse(node, "it flattens the batch dimension: start at dimension 1")
    return tnn.Flatten(start, end)


def _max_pool(node: fx.Node, _: Any, values: dict[str, Any]) -> Role:
    if values.pop("return_indices", False):
        raise refuse(node, "maximum pooling that returns indices: spikes have none")
    x = values.pop("input")
    return Role("layer", (x,), tnn.MaxPool2d(**{k: v for k, v in values.items() if k in _MAX_POOL}))


def _avg_pool(node: fx.Node, _: Any, values: dict[str, Any]) -> Role:
    ceil, divisor = values.get("ceil_mode", False), values.get("divisor_override")
    padded = values.get("padding", 0) not in (0, (0, 0), [0, 0])
    if ceil or divisor is not None or (padded and not values.get("count_include_pad", True)):
        raise refuse(node, "average pooling with ceil_mode, divisor_override or a border that does not count")
    kept = {name: values[name] for name in ("kernel_size", "stride", "padding") if name in values}
    return Role("average", (values["input"],), tnn.AvgPool2d(**kept))


def _mean(node: fx.Node, _: Any, values: dict[str, Any]) -> Role:
    dims = values.get("dim")
    if not isinstance(dims, (list, tuple)) or sorted(d % 4 for d in dims) != [2, 3]:
        return Role("other", (values["input"],))
    pool: nn.Module = tnn.AdaptiveAvgPool2d(1)
    return Role("average", (values["input"],), pool if values.get("keepdim") else nn.Sequential(pool, tnn.Flatten()))


def _add(node: fx.Node, _: Any, values: dict[str, Any]) -> Role:
    if values.get("alpha", 1) != 1:
        raise refuse(node, "an addition with alpha: scale the weights instead")
    return Role("add", (values["input"], values["other"]))


def _reshape(node: fx.Node, args: Any, values: dict[str, Any]) -> Role:
    shape = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if len(shape) == 2 and (isinstance(shape[0], fx.Node) != (shape[0] == -1)):  # (batch, anything) or (-1, anything)
        return Role("layer", args[:1], tnn.Flatten())
    return Role("other", tuple(node.all_input_nodes))


def _kind(kind: str) -> Callable[..., Role]:
    return lambda node, args, values: Role(kind, (values["input"],))


_PRODUCT = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

# target -> (names of its arguments, what reads them); "*" stands for any further ones
_CALLS: dict[Any, tuple[tuple[str, ...], Callable[..., Role]]] = {
    F.linear: (_PRODUCT[:3], _synapses),
    **dict.fromkeys((F.conv1d, F.conv2d), (_PRODUCT, _synapses)),
    **dict.fromkeys((torch.relu, torch.relu_, F.relu, "relu", "relu_"), (("input",), _kind("relu"))),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), (("input", "other"), _add)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), (_MAX_POOL, _max_pool)),
    F.avg_pool2d: (_AVG_POOL, _avg_pool),
    F.adaptive_avg_pool2d: (
        ("input", "output_size"),
        lambda node, _, values: Role("average", (values["input"],), tnn.AdaptiveAvgPool2d(values["output_size"])),
    ),
    **dict.fromkeys((torch.mean, "mean"), (("input", "dim", "keepdim"), _mean)),
    **dict.fromkeys(
        (torch.flatten, "flatten"),
        (
            ("input", "start_dim", "end_dim"),
            lambda node, _, values: Role(
                "layer", (values["input"],), _flatten(node, values.get("start_dim", 0), values.get("end_dim", -1))
            ),
        ),
    ),
    **dict.fromkeys(
        (torch.dropout, F.dropout),
        (
            ("input", "p"),
            lambda node, _, values: Role("layer", (values["input"],), tnn.Dropout(values.get("p", 0.5))),
        ),
    ),
    **dict.fromkeys(("view", "reshape", torch.reshape), (("*",), _reshape)),
    **dict.fromkeys(("contiguous", "clone", "detach"), (("input",), _kind("same"))),
    "size": (("input",), _kind("size")),
    getattr: (("input",), _kind("size")),
}
