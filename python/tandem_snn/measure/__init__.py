"""Measures of trained networks: recordings of layers, firing rates, synaptic operations and their energy, the mismatch
between spike counts and ANN branch.
"""

from tandem_ext._load import moved

from .coupling import Activation, Mismatch, activations, mismatch
from .monitor import Monitor, Recording, firing_rates
from .operations import Energy, LayerOps, SynOps, energy, fan_out, synops, synops_penalty

__all__ = [
    "Activation",
    "Energy",
    "LayerOps",
    "Mismatch",
    "Monitor",
    "Recording",
    "SynOps",
    "activations",
    "energy",
    "fan_out",
    "firing_rates",
    "mismatch",
    "synops",
    "synops_penalty",
]

__getattr__ = moved(
    __name__,
    {
        "early_exit": "frozen.anytime(x, confidence)",
        "metric_over_time": "(frozen.readouts(x).argmax(2) == y).float().mean(1)",
    },
)
