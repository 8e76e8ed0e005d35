"""The settings of neurons, declared once with type, default and check: as keyword arguments, and as those of an op."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar, get_args

from torch import Tensor

from .. import checks
from ..train import SpikeTrain

F = TypeVar("F", bound=Callable[..., Any])


class Setting(NamedTuple):
    """What a declaration says beside the type: ``check(value, channels)`` raises an error for a value.

    ``each_call``: it may be a tensor, which can change in place, so that each call checks it.
    """

    default: Any
    check: Callable[[Any, Any], object]
    each_call: bool = False


class NeuronSettings(TypedDict, total=False):
    """The settings of integrate-and-fire neurons.

    Args:
        threshold: ϑ > 0, a float, or a 0-dim or [N] tensor, which may be learned.
        leak: λ in (0, 1]; 1 is the IF neuron, less is a leaky (LIF) one.
        v_init: the membrane potential before the first step: a float, or a tensor that is 0-dim, [N], [*features] or
            [B, *features]. It is not learned. None: 0, or with timing "window" ϑ/2, which rounds to the nearest count.
        gate: where gradients pass. "relu": z > 0; "clip": 0 < z < ϑT, where T is that of the neurons' train.
        timing: "step": a neuron fires as soon as it reaches the threshold. "window": it integrates a whole window, then
            fires, so that a layer is one product for any T, and the order of input spikes does not matter. Then leak
            must be 1. The type of these words is ``tandem_ext.checks.Timing``, that of a gate's ``Gate``.

    >>> neuron: te.functional.NeuronSettings = {"leak": 0.9, "gate": "clip"}
    >>> te.functional.if_scan(torch.rand(4, 2, 3), **neuron).T
    4
    """

    threshold: Annotated[float | Tensor, Setting(1.0, checks.threshold, each_call=True)]
    leak: Annotated[float, Setting(1.0, lambda value, _: checks.share("leak", value, ", where 1 means no leak"))]
    v_init: Annotated[float | Tensor | None, Setting(None, lambda value, _: checks.v_init(value), each_call=True)]
    gate: Annotated[checks.Gate, Setting("relu", lambda value, _: checks.one_of("gate", value, checks.GATES))]
    timing: Annotated[checks.Timing, Setting("step", lambda value, _: checks.one_of("timing", value, checks.TIMINGS))]


class Neuron(NeuronSettings, total=False):
    """The keyword arguments of neurons that every functional layer takes: :class:`NeuronSettings`, and those of a call.

    Args:
        residual: added to the currents after scale and shift: a train with the output's shape and, with timing "step",
            T of x, multiplied by its gain; or currents [T, B, *features], with timing "window" also their sum
            [1, B, *features].
        steps: the length of the neurons' window (default: T of x). With timing "step" bias and shift are spread over
            it, and x may be a part of it. With timing "window", up to 255, the neurons fire in it: it is T of their
            train, whatever T of x is.
        return_v: also return the final membrane potential [B, *features], in float32 (float64 for float64 weights),
            without a gradient. Type checkers do not know whether a call returns it: ``isinstance`` tells them.

    >>> neuron: te.functional.Neuron = {"leak": 0.9, "return_v": True}
    >>> train, v = te.functional.if_scan(torch.rand(4, 2, 3), **neuron)
    """

    residual: Annotated[SpikeTrain | Tensor | None, Setting(None, lambda value, _: None, each_call=True)]
    steps: Annotated[
        int | None,
        Setting(None, lambda value, _: value is None or checks.positive("steps", value, ", the length of the window")),
    ]
    return_v: Annotated[bool, Setting(False, lambda value, _: None)]


def declared(keywords: Any) -> dict[str, Setting]:
    """Return the settings that a TypedDict declares, in their order."""
    return {name: get_args(declaration)[1] for name, declaration in keywords.__annotations__.items()}


SETTINGS = declared(Neuron)
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}


def check_together(timing: str, leak: float) -> None:
    """With timing "window" neurons integrate the whole window before they fire, without a leak."""
    if timing == "window" and leak != 1:
        raise ValueError(f"leak: with timing='window' neurons do not leak, expected 1, got {leak}")


def default_v_init(threshold: float | Tensor, timing: str) -> float | Tensor:
    """Return the initial potential of neurons whose ``v_init`` is None."""
    if timing == "step":
        return 0.0
    return (threshold.detach() if isinstance(threshold, Tensor) else threshold) / 2


class Settings(NamedTuple):
    """What a layer is given beside x and weight, checked except for tensors. A module builds it in each forward pass.

    The fields from ``threshold`` on are the keyword arguments :class:`Neuron`.
    """

    T: int
    bias: Tensor | None = None
    scale: Tensor | None = None  # with eps: gamma
    shift: Tensor | None = None  # with eps: beta
    step: Tensor | None = None  # of few-bit weights, which are then integers
    eps: float | None = None  # of batch norm with batch statistics; None: no such batch norm
    unit: float = 1.0  # z and the residual are divided by it, so that potentials count in it
    threshold: float | Tensor = DEFAULTS["threshold"]
    leak: float = DEFAULTS["leak"]
    v_init: float | Tensor | None = DEFAULTS["v_init"]
    gate: checks.Gate = DEFAULTS["gate"]
    timing: checks.Timing = DEFAULTS["timing"]
    residual: SpikeTrain | Tensor | None = DEFAULTS["residual"]
    steps: int | None = DEFAULTS["steps"]
    return_v: bool = DEFAULTS["return_v"]


def check_neuron(neuron: Mapping[str, Any], T: int, channels: int) -> None:
    """Check the keyword arguments :class:`Neuron` of a call, except for tensors."""
    for name, value in neuron.items():
        if (setting := SETTINGS.get(name)) is None:
            raise TypeError(f"{name}: no such argument; neurons have {', '.join(SETTINGS)}")
        if not (setting.each_call and isinstance(value, Tensor)):
            setting.check(value, channels)
    if neuron.get("timing") == "window":
        check_together("window", neuron.get("leak", 1.0))
        checks.T("steps", neuron.get("steps") or T, "window")


def shows(keywords: Any, **defaults: Any) -> Callable[[F], F]:
    """A decorator that shows the settings of a TypedDict in the place of ``**neuron`` in help() and completion.

    ``defaults``: those that the target has instead of the declared ones.
    """
    settings = declared(keywords)
    types = {name: get_args(declaration)[0] for name, declaration in keywords.__annotations__.items()}

    def decorate(target: F) -> F:
        call: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]  # classes may share it
        shown = inspect.signature(call)
        kept = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name not in types]
        own = {name: setting.default for name, setting in settings.items()} | defaults
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
            for name, default in own.items()
        ]
        call.__signature__ = shown.replace(parameters=[*kept, *options])
        return target

    return decorate
