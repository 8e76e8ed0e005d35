"""What help() and completion show of layers with neurons: every argument."""

from __future__ import annotations

import inspect
from typing import TypeVar

from .neuron import SpikingLayer

L = TypeVar("L", bound=type[SpikingLayer])


def shows_neuron_options(layer: L) -> L:
    """A class decorator that puts the neurons' options, with their defaults, in the place of ``**neuron``."""
    own = inspect.signature(layer.__init__)
    options = inspect.signature(SpikingLayer._add_neurons).parameters.values()
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    neuron = [p for p in options if p.kind is p.KEYWORD_ONLY]
    layer.__init__.__signature__ = own.replace(parameters=[*kept, *neuron])  # type: ignore[attr-defined]
    return layer
