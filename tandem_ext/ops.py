"""Fake implementations (shapes for tracing) and vmap rules of the ops, and what cannot trace them.

Outputs with features [C, *space] are channels-last in memory, whatever the memory layout of the inputs. Arguments are
found by their names in the schemas of the ops.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.library import Library, register_vmap

from . import checks
from ._torch import arguments_of

Arguments = dict[str, Any]
_library = Library("tandem", "IMPL")
_EXACT = {torch.bfloat16: 256, torch.float16: 2048}  # up to these counts the dtypes represent all integers


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a layer with tensors of ``dtype`` integrates."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def counts_dtype(dtype: torch.dtype, T: int) -> torch.dtype:
    """Return the dtype of counts from 0 to T: ``dtype``, or float32 if ``dtype`` cannot represent all of them."""
    return torch.float32 if _EXACT.get(dtype, T) < T else dtype


def grad_dtype(grad: Tensor, product: Tensor) -> torch.dtype:
    """Return the dtype of the gradient that batch norm gives its product: of ``grad`` if that is a half type."""
    compute = compute_dtype(product.dtype)
    return grad.dtype if grad.dtype in _EXACT and compute == torch.float32 else compute


def output_sizes(*axes: Sequence[int]) -> list[int]:
    """Return the spatial sizes of a convolution's output, from those of input, kernel, stride, padding and dilation."""
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(*axes, strict=True)]


# --- fakes ------------------------------------------------------------------------------------------------------------


def _empty(like: Tensor, lead: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty [*lead, B, C, *space], channels-last."""
    if len(shape) < 3:
        return like.new_empty((*lead, *shape), dtype=dtype)
    batch, channels, *space = shape
    return like.new_empty((*lead, batch, *space, channels), dtype=dtype).movedim(-1, len(lead) + 1)


def _shape(a: Arguments) -> Sequence[int]:
    """Return the shape of the neurons, [B, N, *space]."""
    if "current" in a:
        return a["current"].shape
    if "currents" in a:
        return a["currents"].shape[1:]
    stored, weight = a["stored"], a["weight"]
    geometry = (a.get(name, ()) for name in ("stride", "padding", "dilation"))
    return [stored.shape[1], weight.shape[0], *output_sizes(stored.shape[3:], weight.shape[2:], *geometry)]


def _dtype(a: Arguments) -> torch.dtype:
    """Return the dtype of the counts."""
    dtype: torch.dtype = next(a[name] for name in ("weight", "current", "currents") if name in a).dtype
    return torch.float32 if dtype == torch.int8 else dtype


def _fake_neurons(a: Arguments) -> tuple[Tensor | None, ...]:
    """Return (stored, counts, mask, v, bad), with batch norm (stored, counts, mask, v, product, mean, var, bad)."""
    shape, dtype = _shape(a), _dtype(a)
    like, compute = next(iter(a.values())), compute_dtype(dtype)
    T = a["T"] if "T" in a else like.shape[0]
    stored = _empty(like, [1 if a["timing"] == "window" else (T + 7) // 8], shape, torch.uint8)
    counts = mask = v = None
    if a.get("train", True):
        counts = _empty(like, [], shape, counts_dtype(dtype, T))
        mask = like.new_empty((math.prod(shape) + 7) // 8, dtype=torch.uint8)
    if a["return_v"]:
        v = _empty(like, [], shape, compute)
    outputs, bad = (stored, counts, mask, v), like.new_empty(shape[0], dtype=torch.float32)
    if "eps" not in a:
        return *outputs, bad
    mean, var = (like.new_empty(shape[1], dtype=compute) for _ in range(2))
    return *outputs, _empty(like, [], shape, compute), mean, var, bad


def _fake_quantise(a: Arguments) -> tuple[Tensor, Tensor]:
    weight = a["weight"]
    last = weight.dim() > 2 and not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()
    q = _empty(weight, [], weight.shape, torch.int8) if last else weight.new_empty(weight.shape, dtype=torch.int8)
    return q, weight.new_empty(weight.shape[0])


def _planes(like: Tensor, T: int) -> Tensor:
    """Return empty planes of T steps for the neurons of ``like`` [_, B, *features]."""
    return _empty(like, [(T + 7) // 8], like.shape[1:], torch.uint8)


def _fake_bn_statistics(a: Arguments) -> tuple[Tensor, ...]:
    product = a["product"]
    return tuple(product.new_empty(product.shape[1], dtype=compute_dtype(product.dtype)) for _ in range(4))


def _fake_bn_grad(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    grad, product, mean = a["grad"], a["product"], a["mean"]
    return _empty(grad, [], product.shape, grad_dtype(grad, product)), torch.empty_like(mean), torch.empty_like(mean)


# --- what cannot trace them -------------------------------------------------------------------------------------------


def refuse_graph(*_: Any) -> NoReturn:
    """Raise the error of tools that record a graph of torch's operators: TorchScript, and exports to ONNX."""
    if torch.onnx.is_in_onnx_export():
        raise NotImplementedError("torch.onnx.export knows no spiking layers: use tandem_snn.to_onnx(net, path, x)")
    raise NotImplementedError(
        "torch.jit (and add_graph, log_graph and fvcore, which use it) knows no spiking layers: trace the ANN, "
        "tandem_snn.to_ann(net), or use torch.export, or for ONNX tandem_snn.to_onnx"
    )


# --- registration -----------------------------------------------------------------------------------------------------


def _register(name: str, fake: Callable[[Arguments], Any]) -> None:
    """Register the fake of an op, and a vmap rule: one call per element."""
    op = getattr(torch.ops.tandem, name).default
    names = [argument.name for argument in arguments_of(op)]

    def checked(*args: Any) -> Any:
        if torch.onnx.is_in_onnx_export():
            refuse_graph()
        a = dict.fromkeys(names) | dict(zip(names, args, strict=False))  # None for those that have their default
        (first, like), *others = ((n, t) for n, t in a.items() if isinstance(t, Tensor))
        for argument, tensor in others:  # a mix of meta and real tensors also gets here
            checks.same_device(argument, tensor, first, like.device)
        return fake(a)

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        pairs = list(zip(args, in_dims, strict=True))  # the dimension of a list of ints is a list of None
        outputs = [op(*(a.select(d, i) if isinstance(d, int) else a for a, d in pairs)) for i in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        stacked = [None if parts[0] is None else torch.stack(parts) for parts in zip(*outputs, strict=True)]
        return tuple(stacked), tuple(None if part is None else 0 for part in stacked)

    torch.library.register_fake(f"tandem::{name}", checked)
    register_vmap(f"tandem::{name}", rule)
    _library.impl(name, refuse_graph, "Tracer")  # the key of torch.jit.trace, which other calls never meet


for _name in ("if_scan", "constant_if", "impulse_if", "linear_if", "conv_if", "bn_if"):
    _register(_name, _fake_neurons)
_register("bn_statistics", _fake_bn_statistics)
_register("bn_grad", _fake_bn_grad)
_register("window_product", lambda a: _empty(a["stored"], [], _shape(a), compute_dtype(_dtype(a))))
_register("quantise", _fake_quantise)
_register("pack", lambda a: _planes(a["spikes"], len(a["spikes"])))
_register("unpack", lambda a: _empty(a["planes"], [a["T"]], a["planes"].shape[1:], a["dtype"]))
_register("counts", lambda a: _empty(a["planes"], [], a["planes"].shape[1:], a["dtype"]))
_register("count_bytes", lambda a: _planes(a["planes"], 1))
_register("burst_planes", lambda a: _planes(a["counts"], a["T"]))
_register("gate_grad", lambda a: _empty(a["grad"], [], a["grad"].shape, a["grad"].dtype))
for _name in ("frozen_check", "frozen_read", "frozen_run", "frozen_state", "frozen_step"):
    _library.impl(_name, refuse_graph, "Tracer")
