"""What a trained network does and costs: firing rates, synaptic operations, mismatch between its two branches."""

from .coupling import Mismatch, activations, mismatch
from .operations import LayerOps, SynOps, fan_out, synops
from .rates import firing_rates, rate_penalty

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
