"""The keyword arguments that every layer with neurons takes: types, defaults, checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

from torch import Tensor

from tandem_ext import checks

from .quantise import check_bits

L = TypeVar("L", bound=type)
BN_STATS = ("batch", "running")


class NeuronOptions(TypedDict, total=False):
    """The keyword arguments that every layer with neurons takes; see :class:`SpikingLayer`."""

    norm: bool
    threshold: float | Tensor
    leak: float
    v_init: float | Tensor
    gain: float | str
    gate: str
    eps: float
    momentum: float | None
    bn_stats: str
    gamma: float | None
    weight_bits: int | None
    timing: str


DEFAULTS: dict[str, Any] = {
    "norm": False, "threshold": 1.0, "leak": 1.0, "v_init": 0.0, "gain": 1.0, "gate": "relu", "eps": 1e-5,
    "momentum": None, "bn_stats": "batch", "gamma": None, "weight_bits": None, "timing": "step",
}  # fmt: skip


def _check_gain(layer: Any, gain: object) -> None:
    if gain != "threshold":
        checks.gain("gain", gain)


def _check_leak(layer: Any, leak: Any) -> None:
    checks.leak(leak)
    checks.timing_fits(layer.timing, leak, "relu")


def _check_gate(layer: Any, gate: Any) -> None:
    checks.gate(gate)
    checks.timing_fits(layer.timing, 1.0, gate)


def _check_timing(layer: Any, timing: Any) -> None:
    checks.timing(timing)
    checks.timing_fits(timing, layer.leak, layer.gate)


def _check_bn_stats(layer: Any, bn_stats: object) -> None:
    if bn_stats not in BN_STATS:
        raise ValueError(f"bn_stats: expected one of {', '.join(map(repr, BN_STATS))}, got {bn_stats!r}")


# In the order in which they are shown.
CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "threshold": lambda layer, value: checks.threshold(value, layer._channels),
    "leak": _check_leak,
    "v_init": lambda layer, value: checks.v_init(value),
    "gain": _check_gain,
    "gate": _check_gate,
    "bn_stats": _check_bn_stats,
    "weight_bits": lambda layer, value: check_bits(value),
    "timing": _check_timing,
}


def shows_neuron_options(layer: L) -> L:
    """A class decorator for help() and completion: they show the neurons' options with defaults, not ``**neuron``."""
    init = layer.__init__  # type: ignore[misc]  # which classes may share
    shown = inspect.signature(init)
    types = {name: getattr(t, "__forward_arg__", t) for name, t in NeuronOptions.__annotations__.items()}
    kept = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name not in types]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=types[name])
        for name in types
    ]
    init.__signature__ = shown.replace(parameters=[*kept, *options])
    return layer
