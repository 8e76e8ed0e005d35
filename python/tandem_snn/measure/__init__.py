"""What a trained network does and costs: firing rates, synaptic operations, mismatch between its two branches."""

from .mismatch import Mismatch, activations, mismatch
from .rates import firing_rates, rate_penalty
from .synops import LayerOps, SynOps, fan_out, synops

__all__ = [
    "LayerOps",
    "Mismatch",
    "SynOps",
    "activations",
    "fan_out",
    "firing_rates",
    "mismatch",
    "rate_penalty",
    "synops",
]
