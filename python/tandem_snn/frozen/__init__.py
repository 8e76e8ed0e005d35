"""Frozen networks for inference: a network in evaluation mode that runs as one call or step by step, and its file."""

from .create import freeze, load
from .network import FrozenNetwork

__all__ = ["FrozenNetwork", "freeze", "load"]
