"""Functional layers of integrate-and-fire neurons, with the gradients of the tandem learning rule."""

from .attention import attention
from .couple import couple
from .layers import bn_if, conv1d_if, conv2d_if, if_scan, linear_if
from .settings import Neuron, NeuronSettings

__all__ = ["Neuron", "NeuronSettings", "attention", "bn_if", "conv1d_if", "conv2d_if", "couple", "if_scan", "linear_if"]
