"""Measures of trained networks: recordings of layers, firing rates, synaptic operations and their energy, the mismatch
between spike counts and ANN branch.
"""

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
