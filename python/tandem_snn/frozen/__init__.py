"""Frozen networks: a network's evaluation as one call, step by step, and as one file."""

from .file import load_frozen
from .network import FrozenNetwork, freeze

__all__ = ["FrozenNetwork", "freeze", "load_frozen"]
