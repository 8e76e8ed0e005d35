"""Argument checks. Errors name the argument, its value and what is allowed. A check takes well under a microsecond.

Checks that read the values of tensors say so in their docstrings. :func:`threshold` and :func:`v_init` read values in
CPU memory only. No check reads values while torch compiles, exports, captures a CUDA graph or maps (:func:`_readable`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ._load import CUDA_ARCHS
from .signal import Signal

GATES = ("relu", "clip")
MOST_STEPS = {"step": 65535, "window": 255}  # a burst's count is one byte
TIMINGS = tuple(MOST_STEPS)
_CPU = torch.device("cpu")
_FLOAT32 = np.finfo(np.float32)
_LEAST, _MOST = float(_FLOAT32.tiny), float(_FLOAT32.max)  # beyond them the kernels would compute with 0 or infinity
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of {value.dtype} and shape {list(value.shape)}"
    return f"{value!r:.80} ({type(value).__name__})"


def _readable(*tensors: Tensor) -> bool:
    """Return whether Python may read these values: while torch traces or transforms, tensors have no values."""
    if torch.compiler.is_compiling():
        return False
    return not any(
        isinstance(t, FakeTensor)
        or t.is_meta
        or torch._C._functorch.is_functorch_wrapped_tensor(t)
        or (t.is_cuda and torch.cuda.is_current_stream_capturing())
        for t in tensors
    )


def device(name: str, tensor: Tensor) -> None:
    """CUDA tensors need a build with CUDA kernels."""
    if tensor.is_cuda and CUDA_ARCHS is None:
        raise RuntimeError(
            f"{name} is on {tensor.device}, but this tandem_ext was built without CUDA kernels. Rebuild it where nvcc "
            "is installed: TANDEM_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
        )


def same_device(name: str, tensor: Tensor | Signal, other: str, expected: torch.device) -> None:
    if tensor.device != expected:
        raise ValueError(f"{name} is on {tensor.device}, but {other} is on {expected}: move one of them")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_real(tensor: Tensor) -> bool:
    return not tensor.is_complex()


def _tensor(name: str, value: object, what: str, layout: str, is_one: Callable[[Tensor], bool], dims: int = 0) -> None:
    """A tensor that satisfies ``is_one`` and has at least ``dims`` dimensions."""
    if not isinstance(value, Tensor) or not is_one(value):
        raise TypeError(f"{name}: expected {what} {layout}, got {_describe(value)}")
    _dims(name, value, layout, dims)


def _dims(name: str, value: Tensor, layout: str, dims: int) -> None:
    if value.dim() < dims:
        least = "a batch dimension" if dims == 1 else "at least two dimensions"
        raise ValueError(f"{name}: expected {least} {layout}, got {_describe(value)}")


def _int(name: str, value: object, allowed: str, least: int, most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {allowed}, got {_describe(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {allowed}, got {value}")


def _floats(name: str, value: object, what: str = "a floating-point tensor", hint: str = "") -> None:
    """A tensor of a type in which layers compute."""
    if not isinstance(value, Tensor) or value.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected {what}, got {_describe(value)}{hint}")


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r:.80}")


def gate(name: str, value: object) -> None:
    if value == "resu":
        raise ValueError(
            f"{name}: expected one of 'relu', 'clip'; timing='window' replaces 'resu': no neuron fires early"
        )
    one_of(name, value, GATES)


# --- trains and inputs ------------------------------------------------------------------------------------------------


def T(name: str, value: object, timing_: str = "step") -> None:
    most = MOST_STEPS[timing_]
    if type(value) is not int or not 1 <= value <= most:
        longer = f" with timing='window' (up to {MOST_STEPS['step']} with timing='step')" * (timing_ == "window")
        _int(name, value, f"an int from 1 to {most}{longer}", 1, most)


def gain(name: str, value: Any, channels: int | None = None) -> None:
    """A number or a 0-dim tensor; with ``channels`` also [channels]."""
    if isinstance(value, Tensor) and value.dim() and channels is not None:
        return per_channel(name, value, channels, value.device)
    if not (value.is_floating_point() if isinstance(value, Tensor) else _is_number(value)):
        raise TypeError(f"{name}: expected a float or a 0-dim floating-point tensor, got {_describe(value)}")
    if value.dim() if isinstance(value, Tensor) else not -math.inf < value < math.inf:  # isfinite: unknown to Dynamo
        raise ValueError(f"{name}: expected a finite number or a 0-dim tensor, got {_describe(value)}")


def planes(name: str, value: Any, steps: Any = None) -> None:
    """uint8 [P, B, *features]; with ``steps``, P must be ceil(steps / 8)."""
    _tensor(name, value, "uint8 planes", "[ceil(T/8), B, *features]", lambda t: t.dtype == torch.uint8, 2)
    if steps is not None:
        T("T", steps)
        if value.shape[0] != (steps + 7) // 8:
            raise ValueError(f"{name}: T={steps} needs ceil(T/8)={(steps + 7) // 8} planes, got {value.shape[0]}")
    device(name, value)


def high_bits(name: str, value: Tensor, steps: int) -> None:
    """The bits of the last plane beyond T are 0. Reads values."""
    if steps % 8 and _readable(value) and bool((value[-1] >> steps % 8).any()):
        raise ValueError(
            f"{name}: a bit is set beyond T={steps}: the planes belong to a longer train, or are not packed"
        )


def dtype(name: str, value: object) -> None:
    if not isinstance(value, torch.dtype):
        raise TypeError(f"{name}: expected a torch.dtype, such as torch.float32, got {_describe(value)}")


def bursts(name: str, value: Tensor, made: Tensor) -> None:
    """``value``, the given planes, equals ``made``, the planes of bursts with the same counts. Reads values."""
    if _readable(value) and not torch.equal(value, made):
        raise ValueError(
            f"{name}: with timing='window' a neuron spikes in the first steps without gaps, got other spikes"
        )


def whole_counts(name: str, value: Any, steps: Any) -> None:
    """The counts of bursts, [B, *features]: whole numbers from 0 to T. Reads values."""
    T("T", steps, "window")
    whole = "a tensor of whole numbers"
    _tensor(name, value, whole, "[B, *features]", lambda t: _is_real(t) and t.dtype != torch.bool, 1)
    device(name, value)
    if _readable(value) and not _whole(value, steps):
        raise ValueError(f"{name}: expected whole numbers from 0 to T={steps}, got others")


def _whole(value: Tensor, most: float) -> bool:
    whole = value == value.round() if value.is_floating_point() else True
    return bool(((value >= 0) & (value <= most) & whole).all())


def beside(name: str, value: Any, layout: str, planes_: Tensor, shape: torch.Size) -> None:
    """A floating-point tensor that belongs to planes."""
    _tensor(name, value, "floating-point", layout, Tensor.is_floating_point)
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    same_device(name, value, "planes", planes_.device)


def dense_spikes(name: str, value: Any) -> None:
    _tensor(name, value, "a real tensor", "[T, B, *features]", _is_real, 2)
    most = MOST_STEPS["step"]
    if not 1 <= value.shape[0] <= most:
        raise ValueError(f"{name}: expected T from 1 to {most} steps in dimension 0, got {_describe(value)}")


def frames(name: str, value: Any) -> None:
    """Event counts [F, B, *features]: whole numbers from 0. Reads values."""
    _tensor(name, value, "a real tensor or array", "[F, B, *features]", _is_real, 2)
    if not _whole(value, math.inf):
        raise ValueError(f"{name}: expected counts of events, whole numbers from 0, got others")


def binary(name: str, value: Tensor) -> None:
    """0 and 1 only. Reads values."""
    if value.dtype != torch.bool and _readable(value) and not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(
            f"{name}: expected only 0 and 1, got other values (NaN included): threshold or binarise "
            "first; counts of events become a train by SpikeTrain.from_frames"
        )


def direct(name: str, value: Any) -> None:
    whole = isinstance(value, Tensor) and not value.is_floating_point()
    hint = f": {name}.float() is an image, SpikeTrain.from_frames takes counts of events" * whole
    _floats(name, value, "a floating-point tensor [B, *features]", hint)
    _dims(name, value, "[B, *features]", 1)


# --- layers -----------------------------------------------------------------------------------------------------------


def signal(name: str, value: object) -> None:
    """A train or a direct input."""
    if isinstance(value, Signal):
        return
    hint = ""
    if isinstance(value, Tensor):
        hint = ": spikes [T, B, ...] become a train by SpikeTrain.from_dense, an image by ConstantInput or ImpulseInput"
    raise TypeError(f"{name}: expected a SpikeTrain, ConstantInput or ImpulseInput, got {_describe(value)}{hint}")


def train(name: str, value: object) -> None:
    if not hasattr(value, "stored"):
        raise TypeError(f"{name}: expected a SpikeTrain, got {_describe(value)}")


def currents(name: str, value: Any) -> None:
    _floats(name, value, "a floating-point tensor [T, B, *features], a ConstantInput or an ImpulseInput")
    dense_spikes(name, value)
    device(name, value)


def weight(name: str, value: object, dim: int, layout: str, or_int8: bool = False) -> None:
    if not isinstance(value, Tensor) or not (value.dtype in _FLOATS or (or_int8 and value.dtype == torch.int8)):
        allowed = "float32, bfloat16, float16, float64 or int8" if or_int8 else "float32, bfloat16, float16 or float64"
        raise TypeError(f"{name}: expected a {allowed} tensor, got {_describe(value)}")
    if value.dim() != dim:
        raise ValueError(f"{name}: expected {layout}, got {_describe(value)}")
    device(name, value)


def per_channel(name: str, value: Any, channels: int, expected: torch.device) -> None:
    """One value per output channel."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor of shape [{channels}], got {_describe(value)}")
    if value.shape != (channels,):
        raise ValueError(f"{name}: expected shape [{channels}], one value per channel, got {list(value.shape)}")
    same_device(name, value, "the layer", expected)


def threshold(value: Any, channels: Any, expected: torch.device = _CPU) -> None:
    """A number, or a tensor that is 0-dim or [channels]."""
    if _is_number(value):
        if not _LEAST <= value <= _MOST:
            raise ValueError(f"threshold: expected a positive number within float32's range, got {value}")
    elif isinstance(value, Tensor):
        if value.dim() != 0:
            per_channel("threshold", value, channels, expected)
        elif not value.is_floating_point():
            raise TypeError(f"threshold: expected a floating-point tensor, got {_describe(value)}")
        same_device("threshold", value, "the layer", expected)
        if value.device.type == "cpu" and _readable(value) and not bool((value > 0).all()):
            raise ValueError(f"threshold: expected positive values, got {value.detach()}")
    else:
        allowed = f"a positive float or a tensor of shape [{channels}]"
        raise TypeError(f"threshold: expected {allowed}, got {_describe(value)}")


def share(name: str, value: Any, what: str = "") -> None:
    if not _is_number(value):
        raise TypeError(f"{name}: expected a float in (0, 1], got {_describe(value)}")
    if not 0 < value <= 1:
        raise ValueError(f"{name}: expected a float in (0, 1]{what}, got {value}")


def steps(value: object, name: str = "steps", what: str = ", the length of the window") -> None:
    _int(name, value, f"a positive int{what}", 1)


def v_init(value: Any, shape: tuple[int, ...] = (), expected: torch.device = _CPU) -> None:
    """None, a number, or a tensor: 0-dim, [C], [*features] or [B, *features]; ``shape`` is [B, *features]."""
    if value is None:
        return
    if _is_number(value):
        if not -_MOST <= value <= _MOST:
            raise ValueError(f"v_init: expected a finite number within float32's range, got {value}")
    elif isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"v_init: expected a float or a floating-point tensor, got {_describe(value)}")
        if value.dim() != 0 and value.shape not in (shape, shape[1:], shape[1:2]):
            raise ValueError(
                f"v_init: expected a float, a 0-dim tensor, one per channel, or shape {list(shape[1:])} or "
                f"{list(shape)}, got {list(value.shape)}"
            )
        same_device("v_init", value, "the layer", expected)
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError("v_init: it is not learned and has no gradient, got a tensor that requires one: detach it")
        if value.device.type == "cpu" and _readable(value) and bool(value.isnan().any()):
            raise ValueError("v_init: expected numbers, got NaN")
    else:
        raise TypeError(f"v_init: expected a float or a floating-point tensor, got {_describe(value)}")


def residual(value: Any, steps_: int, shape: tuple[int, ...], expected: torch.device, summed: bool) -> None:
    """A train with the T and output shape of the layer, or currents [T, B, *features]; if ``summed``, also [1, ...]."""
    if isinstance(value, Tensor):
        _floats("residual", value, "a SpikeTrain or floating-point currents")
        if value.shape != (steps_, *shape) and not (summed and value.shape == (1, *shape)):
            hint = ": their sum over the window is for layers with timing='window'" * (value.shape == (1, *shape))
            raise ValueError(f"residual: expected currents of shape {[steps_, *shape]}, got {list(value.shape)}{hint}")
    else:
        train("residual", value)
        if steps_ != value.T:
            raise ValueError(f"residual: expected a train of T={steps_} steps as x has, got T={value.T}")
        if value.shape != shape:
            raise ValueError(f"residual: expected a train of shape {list(shape)}, got {list(value.shape)}")
    same_device("residual", value, "the layer", expected)


def features(x_shape: Sequence[int], w_shape: Sequence[int], groups: int = 1) -> None:
    """x is [B, K, *space]; the weight takes K features and has as many spatial dimensions."""
    if len(x_shape) != len(w_shape):
        layout = ", ".join(["B", "C" if len(w_shape) > 2 else "K", "H", "W"][: len(w_shape)])
        raise ValueError(f"x: expected shape [{layout}], got {list(x_shape)}")
    if x_shape[1] != w_shape[1] * groups:
        raise ValueError(
            f"x has {x_shape[1]} features (shape {list(x_shape)}), but weight {list(w_shape)} takes "
            f"{w_shape[1] * groups}"
        )


def groups(value: int, channels: int) -> None:
    if channels % value:
        raise ValueError(f"groups: expected a divisor of the {channels} output channels, got {value}")


def ints(name: str, value: object, dims: int, least: int) -> tuple[int, ...]:
    """An int for all spatial dimensions, or one for each; returned as a tuple."""
    values = (value,) * dims if isinstance(value, int) else value
    if (
        not isinstance(values, (tuple, list))
        or len(values) != dims
        or any(not isinstance(n, int) or isinstance(n, bool) for n in values)
    ):
        raise TypeError(f"{name}: expected an int or {dims} ints, got {_describe(value)}")
    if any(n < least for n in values):
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return tuple(values)


def kernel(size: int, kernel_size: int, padding: int, dilation: int) -> None:
    if size + 2 * padding < dilation * (kernel_size - 1) + 1:
        raise ValueError(
            f"weight: a kernel of {kernel_size} with dilation {dilation} spans {dilation * (kernel_size - 1) + 1}, "
            f"more than the padded input's {size + 2 * padding}"
        )


def direct_dtype(x: Tensor, weight_: Tensor) -> None:
    """torch computes the product of the first layer, and takes only one floating-point type for both factors."""
    if weight_.dtype == torch.int8:
        raise TypeError(
            "weight: int8 weights multiply spikes; a ConstantInput or ImpulseInput needs floating-point ones"
        )
    if x.dtype != weight_.dtype and not torch._C._is_any_autocast_enabled():
        raise TypeError(f"x is {x.dtype}, but weight is {weight_.dtype}: cast one of them, or use torch.autocast")


def eps(value: Any) -> None:
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"eps: expected a number of at least 0, got {value!r}")


class TooFewSamples(ValueError):
    """The batch is too small to have a variance. Catch it to distinguish a batch's size from its values."""


def batch_norm(shape: tuple[int, ...]) -> None:
    if shape[0] * math.prod(shape[2:]) < 2:
        raise TooFewSamples(
            f"x: batch norm in training needs more than one value per channel, got outputs {list(shape)}"
        )


def preactivation(name: str, value: Any, train_: Any) -> None:
    _floats(name, value)
    if value.shape != train_.shape:
        raise ValueError(f"{name}: expected shape {list(train_.shape)} as the train has, got {list(value.shape)}")
    same_device(name, value, "train", train_.device)
