"""Argument checks. Errors name the argument, its value and what is allowed. A check takes well under a microsecond.

Checks that read the values of tensors say so in their docstrings. :func:`threshold` and :func:`v_init` read values in
CPU memory only. No check reads values while torch compiles, exports, captures a CUDA graph or maps (:func:`readable`).
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import torch
from torch import Tensor

from ._torch import FakeTensor, autocast_active, is_transformed
from .signal import Signal

Gate = Literal["relu", "clip"]
Timing = Literal["step", "window"]
GATES, TIMINGS = get_args(Gate), get_args(Timing)
MOST_STEPS: dict[str, int] = {"step": 65535, "window": 255}  # a burst's count is one byte
_CPU = torch.device("cpu")
_FLOAT32 = np.finfo(np.float32)
_LEAST, _MOST = float(_FLOAT32.tiny), float(_FLOAT32.max)  # beyond them the kernels would compute with 0 or infinity
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in which layers compute
_FLOATS_AND_INT8 = (*_FLOATS, torch.int8)


def _refuse(error: type[Exception], name: str, allowed: str, value: object, hint: str = "") -> NoReturn:
    if isinstance(value, Tensor):
        layout = "" if value.layout is torch.strided else f"{value.layout} "
        found = f"a {value.dtype} {layout}tensor of shape {list(value.shape)} on {value.device}"
    elif isinstance(value, np.ndarray):
        found = f"a NumPy array of {value.dtype} and shape {list(value.shape)}"
    else:
        found = f"{' '.join(repr(value).split()):.80}" + f" ({type(value).__name__})" * (error is TypeError)
    raise error(f"{name}: expected {allowed}, got {found}{hint}")


def readable(*tensors: Tensor) -> bool:
    """Return whether Python may read these values: while torch traces or transforms, tensors have no values."""
    if torch.compiler.is_compiling():
        return False
    return not any(
        isinstance(t, FakeTensor)
        or t.is_meta
        or is_transformed(t)
        or (t.is_cuda and torch.cuda.is_current_stream_capturing())
        for t in tensors
    )


def any_wrong(tensor: Tensor, wrong: Callable[[Tensor], Tensor]) -> bool:
    """Return whether any value is wrong. Reads values."""
    return readable(tensor) and bool(wrong(tensor).any())


def _least_of(tensor: Tensor) -> float:
    """Return the least value, NaN if one is NaN. Reads values; infinity if there are none that Python may read."""
    return float(tensor.detach().min()) if readable(tensor) and tensor.numel() else math.inf


def _values(name: str, tensor: Tensor, wrong: Callable[[Tensor], Tensor], allowed: str, hint: str = "") -> None:
    if any_wrong(tensor, wrong):
        raise ValueError(f"{name}: expected {allowed}, got {tensor[wrong(tensor)][0].item()}{hint}")


def whole(name: str, tensor: Tensor, allowed: str, most: float = math.inf) -> None:
    """Whole numbers from 0 to ``most``. Reads values."""
    rounded = torch.round if tensor.is_floating_point() else Tensor.detach
    _values(name, tensor, lambda t: (t < 0) | (t > most) | (t != rounded(t)), allowed)


def binary(name: str, tensor: Tensor) -> None:
    """0 and 1 only. Reads values."""
    instead = ": threshold or binarise first; counts of events become a train by SpikeTrain.from_frames"
    if tensor.dtype != torch.bool:
        _values(name, tensor, lambda t: (t != 0) & (t != 1), "only 0 and 1", instead)


def same_device(name: str, tensor: Tensor | Signal, other: str, expected: torch.device) -> None:
    if tensor.device != expected:
        raise ValueError(f"{name} is on {tensor.device}, but {other} is on {expected}: move one of them")


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        _refuse(ValueError, name, f"one of {', '.join(map(repr, allowed))}", value)


# --- numbers ----------------------------------------------------------------------------------------------------------


def number(name: str, value: Any, what: str, within: str, least: float, most: float = sys.float_info.max) -> None:
    """A number; ``what`` and ``within`` say which, for the two errors."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        _refuse(TypeError, name, what, value)
    if not least <= value <= most:
        _refuse(ValueError, name, within, value)


def share(name: str, value: Any, what: str = "") -> None:
    number(name, value, "a float in (0, 1]", f"a float in (0, 1]{what}", math.ulp(0.0), 1)


def integer(name: str, value: object, allowed: str, least: int, most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(TypeError, name, allowed, value)
    if not least <= value <= most:
        _refuse(ValueError, name, allowed, value)


def positive(name: str, value: object, what: str = "") -> None:
    integer(name, value, f"a positive int{what}", 1)


def ints(name: str, value: object, dims: int, least: int) -> tuple[int, ...]:
    """An int for all spatial dimensions, or one for each; returned as a tuple."""
    sizes = (value,) * dims if isinstance(value, int) else value
    right = isinstance(sizes, (tuple, list)) and len(sizes) == dims
    if not right or any(not isinstance(n, int) or isinstance(n, bool) for n in sizes):  # type: ignore[attr-defined]
        _refuse(TypeError, name, f"an int or {dims} ints", value)
    if any(n < least for n in sizes):  # type: ignore[attr-defined]
        _refuse(ValueError, name, f"at least {least}", value)
    return tuple(sizes)  # type: ignore[arg-type]


def T(name: str, value: object, timing_: str = "step") -> None:
    most = MOST_STEPS[timing_]
    if type(value) is not int or not 1 <= value <= most:
        longer = f" with timing='window' (up to {MOST_STEPS['step']} with timing='step')" * (timing_ == "window")
        integer(name, value, f"an int from 1 to {most}{longer}", 1, most)


def eps(value: Any) -> None:
    number("eps", value, "a number of at least 0", "a number of at least 0", 0)


# --- tensors ----------------------------------------------------------------------------------------------------------


def tensor(
    name: str, value: Any, what: str, is_one: Callable[[Tensor], bool], layout: str, dims: int, hint: str = ""
) -> None:
    """A dense tensor that satisfies ``is_one``, with at least ``dims`` dimensions, on a device that has kernels."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or not is_one(value):
        _refuse(TypeError, name, f"{what} {layout}", value, hint * isinstance(value, Tensor))
    if value.dim() < dims:
        least = "a batch dimension" if dims == 1 else "at least two dimensions"
        _refuse(ValueError, name, f"{least} {layout}", value)


def is_real(value: Tensor) -> bool:
    return not value.is_complex()


def planes(name: str, value: Any, steps: Any) -> None:
    """uint8 [ceil(steps / 8), B, *features]."""
    tensor(name, value, "uint8 planes", lambda t: t.dtype == torch.uint8, "[ceil(T/8), B, *features]", 2)
    T("T", steps)
    if value.shape[0] != (steps + 7) // 8:
        raise ValueError(f"{name}: T={steps} needs ceil(T/8)={(steps + 7) // 8} planes, got {value.shape[0]}")


def over_time(name: str, value: Any, what: str, is_one: Callable[[Tensor], bool], or_else: str = "") -> None:
    """Spikes or currents [T, B, *features]."""
    tensor(name, value, what, is_one, f"[T, B, *features]{or_else}", 2)
    if not 1 <= value.shape[0] <= MOST_STEPS["step"]:
        _refuse(ValueError, name, f"T from 1 to {MOST_STEPS['step']} steps in dimension 0", value)


def dtype(name: str, value: object) -> None:
    if not isinstance(value, torch.dtype):
        _refuse(TypeError, name, "a torch.dtype, such as torch.float32", value)


def is_float(value: Tensor) -> bool:
    return value.dtype in _FLOATS


def shaped(name: str, value: Any, shape: Sequence[int], other: str, expected: torch.device, note: str = "") -> None:
    """A floating-point tensor of this shape, on the device of another."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        _refuse(TypeError, name, f"a floating-point tensor of shape {list(shape)}", value)
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}{note}, got {list(value.shape)}")
    same_device(name, value, other, expected)


def per_channel(name: str, value: Any, channels: int, expected: torch.device) -> None:
    shaped(name, value, (channels,), "the layer", expected, ", one value per channel")


def gain(name: str, value: Any, channels: int | None = None) -> None:
    """A number or a 0-dim tensor; with ``channels`` also [channels]."""
    if not isinstance(value, Tensor):
        finite = "a finite number or a 0-dim tensor"
        number(name, value, "a float or a 0-dim floating-point tensor", finite, -sys.float_info.max)
    elif value.dim() and channels is not None:
        per_channel(name, value, channels, value.device)
    elif not value.is_floating_point():
        _refuse(TypeError, name, "a float or a 0-dim floating-point tensor", value)
    elif value.dim():
        _refuse(ValueError, name, "a finite number or a 0-dim tensor", value)


# --- layers -----------------------------------------------------------------------------------------------------------


def signal(name: str, value: object) -> None:
    """A train or a direct input."""
    if isinstance(value, Signal):
        return
    hint = ": spikes [T, B, ...] become a train by SpikeTrain.from_dense, an image by ConstantInput or ImpulseInput"
    _refuse(TypeError, name, "a SpikeTrain, ConstantInput or ImpulseInput", value, hint * isinstance(value, Tensor))


def train(name: str, value: object) -> None:
    if not hasattr(value, "stored"):
        _refuse(TypeError, name, "a SpikeTrain", value)


def weight(name: str, value: object, dims: Sequence[int], or_int8: bool = False) -> None:
    """Weights with one of these numbers of dimensions."""
    allowed_types = _FLOATS_AND_INT8 if or_int8 else _FLOATS
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.dtype not in allowed_types:
        allowed = "float32, bfloat16, float16, float64 or int8" if or_int8 else "float32, bfloat16, float16 or float64"
        _refuse(TypeError, name, f"a {allowed} tensor", value)
    if value.dim() not in dims:
        layouts = {2: "[N, K]", 3: "[N, K/groups, k]", 4: "[N, K/groups, kh, kw]"}
        _refuse(ValueError, name, " or ".join(layouts[n] for n in dims), value)


def threshold(value: Any, channels: Any, expected: torch.device = _CPU) -> None:
    """A number, or a tensor that is 0-dim or [channels]."""
    if not isinstance(value, Tensor):
        what = "a positive float, or a tensor that is 0-dim or one per channel"
        return number("threshold", value, what, "a positive number within float32's range", _LEAST, _MOST)
    shape = (channels,) if value.dim() else ()
    shaped("threshold", value, shape, "the layer", expected, ", one value per channel")
    if value.device.type == "cpu" and not (least := _least_of(value)) > 0:
        raise ValueError(f"threshold: expected positive values, got {least:g}")


def v_init(value: Any, shape: tuple[int, ...] = (), expected: torch.device = _CPU) -> None:
    """None, a number, or a tensor: 0-dim, [C], [*features] or [B, *features]; ``shape`` is [B, *features]."""
    if value is None:
        return
    what = "a float or a floating-point tensor"
    if not isinstance(value, Tensor):
        return number("v_init", value, what, "a finite number within float32's range", -_MOST, _MOST)
    if not value.is_floating_point():
        _refuse(TypeError, "v_init", what, value)
    if value.dim() != 0 and not any(value.shape == fits for fits in (shape, shape[1:], shape[1:2])):
        allowed = f"a float, a 0-dim tensor, one per channel, or shape {list(shape[1:])} or {list(shape)}"
        raise ValueError(f"v_init: expected {allowed}, got {list(value.shape)}")
    same_device("v_init", value, "the layer", expected)
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError("v_init: it is not learned and has no gradient, got a tensor that requires one: detach it")
    if value.device.type == "cpu" and math.isnan(_least_of(value)):
        raise ValueError("v_init: expected numbers, got NaN")


def residual(value: Any, steps: int, shape: tuple[int, ...], expected: torch.device, timing: str) -> None:
    """A train with the output shape, with "step" and T; or currents [T, B, *features], with "window" also [1, ...]."""
    if isinstance(value, Tensor):
        if value.dtype not in _FLOATS:
            _refuse(TypeError, "residual", "a SpikeTrain or floating-point currents", value)
        if value.shape != (steps, *shape) and not (timing == "window" and value.shape == (1, *shape)):
            hint = ": their sum over the window is for layers with timing='window'" * (value.shape == (1, *shape))
            raise ValueError(f"residual: expected currents of shape {[steps, *shape]}, got {list(value.shape)}{hint}")
    else:
        train("residual", value)
        if timing == "step" and steps != value.T:
            raise ValueError(f"residual: expected a train of T={steps} steps as x has, got T={value.T}")
        if value.shape != shape:
            raise ValueError(f"residual: expected a train of shape {list(shape)}, got {list(value.shape)}")
    same_device("residual", value, "the layer", expected)


def features(x_shape: Sequence[int], w_shape: Sequence[int], groups: int = 1) -> None:
    """x is [B, K, *space]; the weight takes K features and has as many spatial dimensions."""
    if len(x_shape) != len(w_shape):
        layout = ", ".join(["B", "C" if len(w_shape) > 2 else "K", "H", "W"][: len(w_shape)])
        images = ": flatten its features, by tandem_snn.nn.Flatten" * (len(x_shape) > 3)
        tokens = f": for tokens use Conv1d({w_shape[1]}, {w_shape[0]}, 1) on [B, K, tokens]" * (len(x_shape) == 3)
        hint = (images or tokens) if len(w_shape) == 2 else ""
        raise ValueError(f"x: expected shape [{layout}], got {list(x_shape)}{hint}")
    if x_shape[1] != w_shape[1] * groups:
        taken = f"weight {list(w_shape)} takes {w_shape[1] * groups}"
        raise ValueError(f"x has {x_shape[1]} features (shape {list(x_shape)}), but {taken}")
    if w_shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of the {w_shape[0]} output channels, got {groups}")


def kernel(sizes: Sequence[int], kernel_sizes: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> None:
    for n, k, p, d in zip(sizes, kernel_sizes, padding, dilation, strict=True):
        if n + 2 * p < d * (k - 1) + 1:
            if n == 0:
                raise ValueError(f"x: expected at least one pixel or token, got a space of {list(sizes)}")
            spans = f"a kernel of {k} with dilation {d} spans {d * (k - 1) + 1}"
            raise ValueError(f"weight: {spans}, more than the padded input's {n + 2 * p}")


def direct_dtype(x: Tensor, weight: Tensor) -> None:
    """torch computes the product of the first layer, and takes only one floating-point type for both factors."""
    if weight.dtype == torch.int8:
        raise TypeError(
            "weight: int8 weights multiply spikes; a ConstantInput or ImpulseInput needs floating-point ones"
        )
    if x.dtype != weight.dtype and not autocast_active():
        raise TypeError(f"x is {x.dtype}, but weight is {weight.dtype}: cast one of them, or use torch.autocast")


class TooFewSamples(ValueError):
    """The batch is too small to have a variance. Catch it to distinguish a batch's size from its values."""
