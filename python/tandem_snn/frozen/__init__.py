"""Frozen networks: a network's evaluation as one call, step by step, and as one file."""

from .network import FrozenNetwork, freeze, load_frozen

__all__ = ["FrozenNetwork", "freeze", "load_frozen"]
