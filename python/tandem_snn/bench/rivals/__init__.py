"""The competitors: ways to compute the same network, each a function of a :class:`~tandem_snn.bench.network.Network`.

Each gives a :class:`Model`: its forward takes a batch in the form that suits it best.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from ..network import Network
from . import libraries, plain, tandem
from .model import Candidate, Model

MAKERS: dict[str, Callable[[Network], Model]] = {
    "tandem": tandem.layerwise,
    "frozen": tandem.frozen,
    "ANN": plain.ann,
    "naive": plain.naive,
    "naive, loop compiled": plain.naive_compiled,
    "BPTT": plain.bptt,
    "SpikingJelly": libraries.spikingjelly,
    "SpikingJelly, compiled": libraries.spikingjelly_compiled,
    "snnTorch": libraries.snntorch,
}

_LIBRARY = {"SpikingJelly": "spikingjelly", "SpikingJelly, compiled": "spikingjelly", "snnTorch": "snntorch"}


def available(name: str) -> bool:
    """Whether the library that the competitor needs is installed."""
    return name not in _LIBRARY or find_spec(_LIBRARY[name]) is not None


__all__ = ["MAKERS", "Candidate", "Model", "available"]
