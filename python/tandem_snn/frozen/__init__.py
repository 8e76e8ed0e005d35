"""Frozen networks for inference: a network in evaluation mode that runs as one call or step by step, and its file."""

from .network import FrozenNetwork, freeze, load

__all__ = ["FrozenNetwork", "freeze", "load"]
