"""Translate Ops to layers of tandem_snn.nn."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext._torch import BatchNorm, forward_hooks

from .. import nn as tnn
from ..nn import maximum
from .graph import Op, refuse

VIEWS = ("view", "reshape", "_unsafe_view")


def is_plain(op: Op) -> bool:
    """Return whether the weight and bias of a product are Parameters or buffers, not computed, and without hooks."""
    if op.alone and op.module is not None and forward_hooks(op.module):
        return False
    tensors = [op.args["weight"], op.args["bias"]]
    return all(value is None or (isinstance(value, Op) and value.kind == "attribute") for value in tensors)


def parameters(op: Op, attributes: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """Return the module path, the weight and the bias of a plain product."""
    weight, bias = op.args["weight"].target, op.args["bias"]
    path = op.path if op.alone else weight.rpartition(".")[0] or op.name
    return path, attributes[weight], None if bias is None else attributes[bias.target]


def sizes_of(op: Op) -> dict[str, Any]:
    """Return stride, padding, dilation, groups and output_padding of a convolution; {} for a linear operator."""
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    sizes = {name: op.args[name] for name in names if name in op.args}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}


def layer_of(cls: Any, weight: Tensor, bias: Tensor | None, sizes: Mapping[str, Any] | None = None) -> Any:
    """Make a layer of this class that shares weight and bias."""
    outputs, inputs, *kernel = weight.shape
    sizes = sizes or {}
    size = (inputs * sizes.get("groups", 1), outputs)
    if "output_padding" in sizes:  # the weight of a transposed convolution is [in, out / groups, *kernel]
        size = size[::-1]
    layer = cls(*size, *[tuple(kernel)] * bool(kernel), **sizes, bias=bias is not None, device="meta")
    for name, value in (("weight", weight), ("bias", bias)):
        if isinstance(value, nn.Parameter) or value is None:
            setattr(layer, name, value)
        else:
            delattr(layer, name)
            layer.register_buffer(name, value)
    return layer


def norm_of(op: Op, attributes: Mapping[str, Any], training: bool) -> BatchNorm:
    """Return the live batch norm module, or a new one with its tensors if there is none or its forward does more."""
    if op.alone and isinstance(op.module, BatchNorm):
        return op.module
    tensors = {name: op.args[name] for name in ("weight", "bias", "running_mean", "running_var")}
    tensors = {name: attributes[value.target] if isinstance(value, Op) else value for name, value in tensors.items()}
    like = next((value for value in tensors.values() if value is not None), None)
    channels = len(like) if like is not None else op.features[0]
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[op.dims]
    affine, tracks = tensors["weight"] is not None, tensors["running_mean"] is not None
    norm: Any = cls(channels, op.args["eps"], op.args["momentum"], affine, tracks, device="meta")
    norm.weight, norm.bias = tensors["weight"], tensors["bias"]
    if tracks:
        norm.running_mean, norm.running_var = tensors["running_mean"], tensors["running_var"]
        tracked = getattr(op.module, "num_batches_tracked", None)
        norm.num_batches_tracked = torch.tensor(0) if tracked is None else tracked
    return norm.train(training)


def flatten_of(op: Op) -> tnn.Flatten | None:
    if op.kind == "flatten":
        if op.args["start_dim"] == 0:
            raise refuse(op, "it flattens the batch dimension: start at dimension 1")
        return tnn.Flatten(op.args["start_dim"], op.args["end_dim"])
    flat = op.kind in (*VIEWS, "squeeze") and op.features == (math.prod(op.x.features),)
    return tnn.Flatten() if flat else None


def max_pool_geometry(op: Op) -> list[Any]:
    """Return the arguments after the first of an operator of ``kinds.MAX_POOLS``."""
    pooling = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    names = {"amax": ("dim", "keepdim")}.get(op.kind, ("output_size",) if op.kind.startswith("adaptive") else pooling)
    return [op.args[name] for name in names]


def max_pool_of(op: Op, timing: str, sized: bool) -> nn.Module:
    """Return maximum pooling of spikes. ``sized``: the shapes in the graph are those of all inputs."""
    geometry = max_pool_geometry(op)
    if timing == "window" and op.kind in ("max_pool1d", "max_pool2d"):
        size, stride, padding, dilation, ceil_mode = geometry
        pool = tnn.MaxPool1d if op.kind == "max_pool1d" else tnn.MaxPool2d
        return pool(size, stride or None, padding, dilation, ceil_mode=ceil_mode)
    if timing == "window" and op.kind.startswith("adaptive"):
        return (tnn.AdaptiveMaxPool1d if op.kind == "adaptive_max_pool1d" else tnn.AdaptiveMaxPool2d)(*geometry)
    if timing == "window" and sized and is_over_space(op):
        over = tnn.MaxPool2d(op.x.features[1:])
        return over if op.args["keepdim"] else nn.Sequential(over, tnn.Flatten())
    return maximum.MaxPool(op.kind, *geometry)


def average_of(op: Op, sized: bool) -> tnn.AvgPool2d | None:
    """Return spiking average pooling if its kernel has one size everywhere (adaptive pooling needs known shapes)."""
    if op.kind in ("avg_pool1d", "avg_pool2d"):
        args = op.args
        pool = (tnn.AvgPool1d if op.kind == "avg_pool1d" else tnn.AvgPool2d)(
            args["kernel_size"], args["stride"] or None, args["padding"]
        )
        border = (any(pool.padding) and not args["count_include_pad"]) or args.get("divisor_override") is not None
        return None if border or (args["ceil_mode"] and not (sized and _fits(op, pool))) else pool
    if op.x.dims != 4 or not (op.kind == "adaptive_avg_pool2d" or (op.kind == "mean" and is_over_space(op))):
        return None
    sizes = op.x.features[1:]
    outputs = (1, 1) if op.kind == "mean" else op.args["output_size"]
    if any(size % out for size, out in zip(sizes, outputs, strict=True)):
        return None
    height, width = (size // out for size, out in zip(sizes, outputs, strict=True))
    return tnn.AvgPool2d((height, width))


def _fits(op: Op, pool: tnn.AvgPool2d) -> bool:
    """Return whether the last kernel ends where the image does, so that ceil_mode changes nothing."""
    axes = zip(op.x.features[1:], pool.padding, pool.kernel_size, pool.stride, strict=True)
    return all((size + 2 * padding - kernel) % stride == 0 for size, padding, kernel, stride in axes)


def means_of(op: Op, sized: bool) -> nn.Module | None:
    """Return average pooling whose result is a tensor of mean counts."""
    if op.kind == "adaptive_avg_pool2d":
        return tnn.AdaptiveAvgPool2d(tuple(op.args["output_size"]))
    if op.kind == "mean" and is_over_space(op):
        pool = tnn.AdaptiveAvgPool2d(1)
        return pool if op.args["keepdim"] else nn.Sequential(pool, tnn.Flatten())
    line = _mean_of_line(op) if sized and op.x.dims == 3 else None
    if line is not None:
        return line
    layer = average_of(op, sized) if op.kind in ("avg_pool1d", "avg_pool2d") else None
    if layer is not None:
        layer.spiking = False
    return layer


def _mean_of_line(op: Op) -> nn.Module | None:
    """Return pooling for the mean of tokens [B, N, D], or of a line [B, C, L], if its kernel has one size."""
    sizes = op.x.features
    if op.kind == "adaptive_avg_pool1d":
        (outputs,) = op.args["output_size"]
        return None if sizes[1] % outputs else tnn.AvgPool1d(sizes[1] // outputs, spiking=False)
    dims = [d % 3 for d in op.args["dim"] or ()] if op.kind == "mean" else []
    if dims not in ([1], [2]):
        return None
    turn = [tnn.Permute([0, 2, 1])] if dims == [1] else []
    end = turn if op.args["keepdim"] else [tnn.Flatten()]
    return nn.Sequential(*turn, tnn.AvgPool1d(sizes[dims[0] - 1], spiking=False), *end)


def is_of_one_size(op: Op, module: nn.Module) -> bool:
    """Return whether a layer does what an Op does only on images of the size in the graph."""
    if op.kind.startswith("max_pool") or (op.kind in ("avg_pool1d", "avg_pool2d") and not op.args["ceil_mode"]):
        return False
    return any(isinstance(layer, (tnn.AvgPool2d, tnn.MaxPool2d)) for layer in module.modules())


def upsample_of(op: Op) -> tnn.Upsample | None:
    """Return bilinear upsampling."""
    if op.kind != "upsample_bilinear2d":
        return None
    given = op.args.get("scale_factors") or [op.args.get(name) for name in ("scales_h", "scales_w")]
    if None in given:  # only the size is
        return tnn.Upsample(tuple(op.args["output_size"]), None, "bilinear", op.args["align_corners"])
    return tnn.Upsample(None, tuple(given), "bilinear", op.args["align_corners"])


def is_over_space(op: Op) -> bool:
    """Return whether it reduces both spatial dimensions of an image."""
    dims = op.args.get("dim")
    return op.x.dims == 4 and isinstance(dims, (list, tuple)) and sorted(d % 4 for d in dims) == [2, 3]
