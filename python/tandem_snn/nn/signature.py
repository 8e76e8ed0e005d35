"""What help() and completion show of layers with neurons: every argument."""

from __future__ import annotations

import inspect
from typing import TypeVar

from .neuron import DEFAULTS, NeuronOptions, SpikingLayer

L = TypeVar("L", bound=type[SpikingLayer])


def shows_neuron_options(layer: L) -> L:
    """A class decorator that puts the neurons' options, with their defaults, in the place of ``**neuron``."""
    init = layer.__init__  # which classes may share
    shown = inspect.signature(init)
    types = {name: getattr(t, "__forward_arg__", t) for name, t in NeuronOptions.__annotations__.items()}
    kept = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name not in types]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=types[name])
        for name in types
    ]
    init.__signature__ = shown.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return layer
