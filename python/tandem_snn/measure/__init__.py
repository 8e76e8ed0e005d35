"""What a trained network does and costs: recordings of its layers, firing rates, synaptic operations and their energy,
mismatch between its two branches, accuracy against time.
"""

from .anytime import Exit, accuracy_over_time, early_exit
from .coupling import Activation, Mismatch, activations, mismatch
from .energy import Energy, energy
from .monitor import Monitor, Recording
from .operations import LayerOps, SynOps, fan_out, synops
from .rates import firing_rates, rate_penalty

__all__ = [
    "Activation",
    "Energy",
    "Exit",
    "LayerOps",
    "Mismatch",
    "Monitor",
    "Recording",
    "SynOps",
    "accuracy_over_time",
    "activations",
    "early_exit",
    "energy",
    "fan_out",
    "firing_rates",
    "mismatch",
    "rate_penalty",
    "synops",
]
