"""Frozen networks: a network's evaluation as one call, and step by step."""

from .network import FrozenNetwork, freeze

__all__ = ["FrozenNetwork", "freeze"]
