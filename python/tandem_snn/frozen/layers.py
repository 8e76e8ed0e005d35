"""Layers as data: their settings as JSON, their numbers as tensors, and back. What is read may be hostile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import checks

from .. import nn as tnn
from ..nn.encoder import MODES

Settings = dict[str, Any]
Check = Callable[[Any], Any]
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.half)
}


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"expected a finite number, got {value!r:.80}")
    return float(value)


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"expected true or false, got {value!r:.80}")
    return value


def _whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"expected an int from {low} to {high}, got {value!r:.80}")
        return value

    return check


def _sizes(dims: int, low: int, high: int) -> Check:
    one = _whole(low, high)

    def check(values: Any) -> tuple[int, ...]:
        values = (values,) * dims if type(values) is int else values
        if not isinstance(values, (list, tuple)) or len(values) != dims:
            raise ValueError(f"expected {dims} sizes, got {values!r:.80}")
        return tuple(one(value) for value in values)

    return check


def _one_of(*values: Any) -> Check:
    def check(value: Any) -> Any:
        if type(value) not in {type(v) for v in values} or value not in values:
            raise ValueError(f"expected one of {', '.join(map(repr, values))}, got {value!r:.80}")
        return value

    return check


def _padding(dims: int) -> Check:
    sizes = _sizes(dims, 0, 255)
    return lambda value: _one_of("same", "valid")(value) if isinstance(value, str) else sizes(value)


def _gain(value: Any) -> Any:
    return value if value == "threshold" else _number(value)


_POSITIVE = 1, 65535
_NEURONS: dict[str, Check] = {
    "leak": _number,
    "gain": _gain,
    "gate": _one_of(*checks.GATES),
    "analog": _bool,
}
_POOL: dict[str, Check] = {
    "kernel_size": _sizes(2, *_POSITIVE),
    "stride": _sizes(2, *_POSITIVE),
    "padding": _sizes(2, 0, 255),
}


def _conv(dims: int) -> dict[str, Check]:
    sizes = _sizes(dims, *_POSITIVE)
    return {"stride": sizes, "padding": _padding(dims), "dilation": sizes, "groups": _whole(*_POSITIVE), **_NEURONS}


# The settings of each layer beside the sizes, which its weights have, with what each may be.
KINDS: dict[str, tuple[type[nn.Module], dict[str, Check]]] = {
    "Encoder": (
        tnn.Encoder,
        {"T": _whole(1, 255), "mode": _one_of(*MODES), "gain": _number},
    ),
    "Linear": (tnn.Linear, _NEURONS),
    "Conv1d": (tnn.Conv1d, _conv(1)),
    "Conv2d": (tnn.Conv2d, _conv(2)),
    "AvgPool2d": (tnn.AvgPool2d, {**_POOL, "spiking": _bool, "dtype": _one_of(*DTYPES)}),
    "AdaptiveAvgPool2d": (tnn.AdaptiveAvgPool2d, {"output_size": _sizes(2, 1, 255)}),
    "MaxPool2d": (tnn.MaxPool2d, {**_POOL, "dilation": _sizes(2, *_POSITIVE), "ceil_mode": _bool}),
    "Flatten": (tnn.Flatten, {"start_dim": _whole(-8, 8), "end_dim": _whole(-8, 8)}),
    "Dropout": (tnn.Dropout, {"p": _number}),
    "Readout": (tnn.Readout, {}),
}


def settings_of(layer: Any) -> Settings:
    """What :func:`layer_of` needs beside the layer's tensors.

    Raises:
        ValueError: a layer of another class, or with a setting that a file cannot hold.
    """
    kind = type(layer).__name__
    if kind not in KINDS or type(layer) is not KINDS[kind][0]:
        raise ValueError(f"{kind} is not a layer of tandem_snn.nn: a file holds no code")
    values = {name: getattr(layer, name) for name in KINDS[kind][1] if name != "dtype"}
    if isinstance(layer, tnn.AvgPool2d):
        values["dtype"] = str(layer.weight.dtype).removeprefix("torch.")
    settings: Settings = {"kind": kind, **_checked(kind, values)}
    if isinstance(layer, tnn.AvgPool2d) and layer.v_init:  # absent from files that are older than it
        settings["v_init"] = _number(layer.v_init)
    if isinstance(layer, tnn.SpikingLayer):
        for name in ("threshold", "v_init"):
            if not isinstance(getattr(layer, name), Tensor):
                settings[name] = _number(getattr(layer, name))
        if layer.norm is not None:
            if layer.norm.running_mean is None:
                raise ValueError("its batch norm has no running statistics")
            settings["eps"] = _number(layer.norm.eps)
    return settings


def layer_of(settings: Settings, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The layer with those settings and tensors, which are used as they are: nothing is allocated.

    Raises:
        ValueError, TypeError: a setting or a tensor that does not fit.
    """
    settings = dict(settings)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"no layer is called {kind!r:.80}")
    cls, known_settings = KINDS[kind]
    checked = _checked(kind, {name: settings.pop(name, None) for name in known_settings})
    numbers: Settings = {
        name: _setting(name, _number, settings.pop(name)) for name in ("threshold", "v_init", "eps") if name in settings
    }
    if settings:
        raise ValueError(f"{kind} has no setting {min(settings)!r:.80}")
    if issubclass(cls, (tnn.SpikingLayer, tnn.Readout)):
        layer = _weighted(cls, checked, numbers, tensors)
        known = {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}
    else:
        if isinstance(checked.get("dtype"), str):
            checked["dtype"] = DTYPES[checked["dtype"]]
        if cls is tnn.AvgPool2d and "v_init" in numbers:
            checked["v_init"] = numbers.pop("v_init")
        if numbers:
            raise ValueError(f"{kind} has no setting {min(numbers)!r}")
        layer, known = cls(**checked), set()
    if set(tensors) != known:
        raise ValueError(f"{kind} has no tensor {min(set(tensors) ^ known)!r:.80}, or wants one")
    return layer.eval().requires_grad_(False)


def _checked(kind: str, values: Settings) -> Settings:
    return {name: _setting(name, KINDS[kind][1][name], value) for name, value in values.items()}


def _setting(name: str, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _weighted(cls: Any, settings: Settings, numbers: Settings, tensors: Mapping[str, Tensor]) -> Any:
    """A layer with synapses: its sizes are those of its weight."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() and name != "norm.num_batches_tracked":
            raise ValueError(f"{name}: expected floating-point numbers, got {tensor.dtype}")
    weight = tensors.get("weight")
    dims = {tnn.Conv1d: 3, tnn.Conv2d: 4}.get(cls, 2)
    if weight is None or weight.dim() != dims or 0 in weight.shape:
        raise ValueError(f"weight: expected {dims} dimensions, got {None if weight is None else list(weight.shape)}")
    outputs, inputs, *kernel = weight.shape
    sizes: tuple[Any, ...] = (inputs, outputs)
    if kernel:
        groups = settings["groups"]
        geometry = settings["stride"], settings["padding"], settings["dilation"], groups
        sizes = (inputs * groups, outputs, tuple(kernel), *geometry)
    layer: Any
    with torch.device("meta"):
        if cls is tnn.Readout:
            layer = tnn.Readout(inputs, outputs, "bias" in tensors)
        else:
            neurons = {name: settings[name] for name in ("leak", "gain", "gate")}
            norm = {"norm": True, "eps": numbers["eps"]} if "eps" in numbers else {}
            layer = cls(*sizes, "bias" in tensors, **neurons, **norm)
    if isinstance(layer, tnn.SpikingLayer):
        layer.analog = settings["analog"]
        _set_numbers(layer, {name: numbers.get(name, tensors.get(name)) for name in ("threshold", "v_init")}, outputs)
    for name, value in (*layer.named_parameters(), *layer.named_buffers()):
        given = tensors.get(name)
        if given is None or given.shape != value.shape:
            shape = None if given is None else list(given.shape)
            raise ValueError(f"{name}: expected the shape {list(value.shape)}, got {shape}")
        owner, _, last = name.rpartition(".")
        holder = layer.get_submodule(owner)
        if last in holder._parameters:
            holder._parameters[last] = nn.Parameter(given, requires_grad=False)
        else:
            holder._buffers[last] = given
    return layer


def _set_numbers(layer: tnn.SpikingLayer, values: Settings, channels: int) -> None:
    """Threshold and initial potential, floats or tensors."""
    checks.threshold(values["threshold"], channels, torch.device("cpu"))
    if layer.gain == "threshold" and isinstance(values["threshold"], Tensor) and values["threshold"].dim():
        raise ValueError('gain: "threshold" wants one threshold, not one per channel')
    if values["v_init"] is None:
        raise ValueError("v_init: expected a number or a tensor")
    for name, value in values.items():
        delattr(layer, name)
        layer._add_number(name, value)
