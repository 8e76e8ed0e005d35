"""Measures of trained networks: recordings of layers, firing rates, synaptic operations and their energy, the mismatch
between spike counts and ANN branch, accuracy over time.
"""

from .coupling import Activation, Mismatch, activations, mismatch
from .monitor import Monitor, Recording, firing_rates
from .operations import Energy, LayerOps, SynOps, energy, fan_out, synops, synops_penalty
from .quality import Exit, early_exit, metric_over_time

__all__ = [
    "Activation",
    "Energy",
    "Exit",
    "LayerOps",
    "Mismatch",
    "Monitor",
    "Recording",
    "SynOps",
    "activations",
    "early_exit",
    "energy",
    "fan_out",
    "firing_rates",
    "metric_over_time",
    "mismatch",
    "synops",
    "synops_penalty",
]
