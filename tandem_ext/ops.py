"""What PyTorch must know of torch.ops.tandem beyond its kernels: shapes for tracing (fakes) and batching rules (vmap).

Everything an op returns with features [C, *space] is channels-last in memory, whatever the layout of its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import register_vmap

from . import _load  # noqa: F401  (registers the ops)

Shape = Sequence[int]

# Positions, from the end, of the arguments that the ops with neurons have in common.
_RESIDUAL, _V_INIT, _TRAIN, _RETURN_V = -9, -7, -2, -1


def _register_fake(name: str, fake: Callable[..., Any]) -> None:
    """As torch's, for tensors of one device: a call that mixes meta tensors with real ones gets here too."""
    op = getattr(torch.ops.tandem, name).default
    names = [argument.name for argument in op._schema.arguments]

    def checked(*args: Any) -> Any:
        tensors = [(n, a) for n, a in zip(names, args, strict=True) if isinstance(a, Tensor)]
        for argument, tensor in tensors:
            if tensor.device != tensors[0][1].device:
                first, device = tensors[0][0], tensors[0][1].device
                raise ValueError(f"{argument} is on {tensor.device}, but {first} is on {device}")
        return fake(*args)

    torch.library.register_fake(f"tandem::{name}", checked)


def _empty(like: Tensor, lead: Shape, shape: Shape, dtype: torch.dtype) -> Tensor:
    """An empty [*lead, B, C, *space], channels-last."""
    if len(shape) < 3:
        return like.new_empty((*lead, *shape), dtype=dtype)
    batch, channels, *space = shape
    return like.new_empty((*lead, batch, *space, channels), dtype=dtype).movedim(-1, len(lead) + 1)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that a layer of this type integrates in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- ops with neurons: (planes, counts, mask, v) of outputs [B, *features] --------------------------------------------


def _scan_shape(currents: Tensor, *_: Any) -> Shape:
    return currents.shape[1:]


def _direct_shape(current: Tensor, *_: Any) -> Shape:
    return current.shape


def _linear_shape(planes: Tensor, T: int, weight: Tensor, *_: Any) -> Shape:
    return [planes.shape[1], weight.shape[0]]


def _conv_shape(
    planes: Tensor, T: int, weight: Tensor, precision: str, stride: Shape, padding: Shape, dilation: Shape, *_: Any
) -> Shape:
    sizes = zip(planes.shape[3:], weight.shape[2:], stride, padding, dilation, strict=True)
    space = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    return [planes.shape[1], weight.shape[0], *space]


def _neurons(
    like: Tensor, T: int, shape: Shape, dtype: torch.dtype, train: bool, return_v: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    planes = _empty(like, [(T + 7) // 8], shape, torch.uint8)
    counts = _empty(like, [], shape if train else [0], dtype)
    mask = like.new_empty((math.prod(shape) + 7) // 8 if train else 0, dtype=torch.uint8)
    return planes, counts, mask, _empty(like, [], shape if return_v else [0], compute_dtype(dtype))


def _register_neurons(name: str, shape_of: Callable[..., Shape], batch: int, product: bool) -> None:
    """The fake and the batching rule of one op; ``batch`` is the batch dimension of its first argument.

    Samples are independent: a dimension mapped over the first argument and the residual joins the batch of one call.
    """
    op = getattr(torch.ops.tandem, name).default

    def fake(data: Tensor, *args: Any) -> tuple[Tensor, ...]:
        T = data.shape[0] if name == "if_scan" else args[0]
        dtype = data.dtype if not product else torch.float32 if args[1].dtype == torch.int8 else args[1].dtype
        return _neurons(data, T, shape_of(data, *args), dtype, args[_TRAIN], args[_RETURN_V])

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        size, train, return_v = info.batch_size, args[_TRAIN], args[_RETURN_V]
        samples = {0, len(args) + _RESIDUAL}
        if any(_is_mapped(d) for i, d in enumerate(in_dims) if i not in samples):
            return _once_per_element(op, info, in_dims, args)
        shape = shape_of(*_element(args, in_dims, 0))
        v_init_per_sample = args[_V_INIT] is not None and args[_V_INIT].dim() == len(shape)
        if v_init_per_sample or (train and math.prod(shape) % 8):  # a mask of whole bytes can be split
            return _once_per_element(op, info, in_dims, args)

        joined = list(args)
        joined[0] = _join(args[0], in_dims[0], size, batch)
        if args[_RESIDUAL] is not None:
            joined[_RESIDUAL] = _join(args[_RESIDUAL], in_dims[_RESIDUAL], size, 1)
        planes, counts, mask, v = op(*joined)
        outputs = (
            _split(planes, size, 1),
            _split(counts, size, 0) if train else counts,
            _split(mask, size, 0) if train else mask,
            _split(v, size, 0) if return_v else v,
        )
        return outputs, (1, 0 if train else None, 0 if train else None, 0 if return_v else None)

    _register_fake(name, fake)
    register_vmap(f"tandem::{name}", rule)


def _is_mapped(dim: Any) -> bool:
    return isinstance(dim, int)  # else None, or a list of None for an argument that is a list


def _element(args: Sequence[Any], in_dims: Sequence[Any], i: int) -> list[Any]:
    return [a.select(d, i) if _is_mapped(d) else a for a, d in zip(args, in_dims, strict=True)]


def _once_per_element(op: Any, info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> tuple[Any, Any]:
    outputs = [op(*_element(args, in_dims, i)) for i in range(info.batch_size)]
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs), 0
    return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True)), (0,) * len(outputs[0])


def _register_vmap_per_element(name: str) -> None:
    op = getattr(torch.ops.tandem, name).default
    register_vmap(f"tandem::{name}", lambda info, in_dims, *args: _once_per_element(op, info, in_dims, args))


def _join(value: Tensor, mapped: int | None, size: int, batch: int) -> Tensor:
    """Fold the mapped dimension (a new one, where there is none) into the batch."""
    value = value.unsqueeze(0).expand(size, *value.shape) if mapped is None else value.movedim(mapped, 0)
    return value.movedim(0, batch).flatten(batch, batch + 1)


def _split(value: Tensor, size: int, batch: int) -> Tensor:
    return torch.unflatten(value, batch, (size, value.shape[batch] // size))


_register_neurons("if_scan", _scan_shape, batch=1, product=False)
_register_neurons("constant_if", _direct_shape, batch=0, product=False)
_register_neurons("impulse_if", _direct_shape, batch=0, product=False)
_register_neurons("linear_if", _linear_shape, batch=1, product=True)
_register_neurons("conv_if", _conv_shape, batch=1, product=True)


# --- ops with batch norm: statistics tie the samples of a batch together ----------------------------------------------


def _register_bn_neurons(name: str, shape_of: Callable[..., Shape]) -> None:

    def fake(planes: Tensor, T: int, weight: Tensor, *args: Any) -> tuple[Tensor, ...]:
        shape, dtype = shape_of(planes, T, weight, *args), compute_dtype(weight.dtype)
        outputs = _neurons(planes, T, shape, weight.dtype, True, args[_RETURN_V])
        mean, var = (planes.new_empty(shape[1], dtype=dtype) for _ in range(2))
        return *outputs, _empty(planes, [], shape, dtype), mean, var

    _register_fake(name, fake)
    _register_vmap_per_element(name)


_register_bn_neurons("linear_bn_if", _linear_shape)
_register_bn_neurons("conv_bn_if", _conv_shape)


# --- ops on planes and gradients --------------------------------------------------------------------------------------


def _fake_pack(spikes: Tensor) -> Tensor:
    T, *shape = spikes.shape
    return _empty(spikes, [(T + 7) // 8], shape, torch.uint8)


_register_fake("pack", _fake_pack)


def _fake_unpack(planes: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    return _empty(planes, [T], planes.shape[1:], dtype)


_register_fake("unpack", _fake_unpack)


def _fake_counts(planes: Tensor, dtype: torch.dtype) -> Tensor:
    return _empty(planes, [], planes.shape[1:], dtype)


_register_fake("counts", _fake_counts)


def _register_plane_vmap(name: str, batch: int) -> None:
    """The rule of an op on spikes or planes with the batch in dimension 1; ``batch`` is that of what it returns."""
    op = getattr(torch.ops.tandem, name).default

    def rule(info: Any, in_dims: Sequence[Any], data: Tensor, *args: Any) -> tuple[Tensor, int]:
        return _split(op(_join(data, in_dims[0], info.batch_size, 1), *args), info.batch_size, batch), batch

    register_vmap(f"tandem::{name}", rule)


_register_plane_vmap("pack", batch=1)
_register_plane_vmap("unpack", batch=1)
_register_plane_vmap("counts", batch=0)


def _fake_gate_grad(grad: Tensor, mask: Tensor, threshold: float) -> Tensor:
    return _empty(grad, [], grad.shape, grad.dtype)


_register_fake("gate_grad", _fake_gate_grad)


@register_vmap("tandem::gate_grad")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: Sequence[Any], grad: Tensor, mask: Tensor, threshold: float) -> tuple[Tensor, int]:
    op, size = torch.ops.tandem.gate_grad.default, info.batch_size
    joined = _join(grad, in_dims[0], size, 0)
    if joined.numel() // size % 8:
        return _once_per_element(op, info, in_dims, (grad, mask, threshold))
    return _split(op(joined, _join(mask, in_dims[1], size, 0), threshold), size, 0), 0


def _fake_bn_statistics(product: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(product.new_empty(product.shape[1]) for _ in range(4))


_register_fake("bn_statistics", _fake_bn_statistics)


def _fake_bn_grad(grad: Tensor, mask: Tensor, product: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(grad, [], product.shape, product.dtype), torch.empty_like(mean), torch.empty_like(mean)


_register_fake("bn_grad", _fake_bn_grad)


_register_vmap_per_element("bn_statistics")
_register_vmap_per_element("bn_grad")
