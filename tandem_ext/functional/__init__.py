"""Layers of integrate-and-fire neurons as functions, with the gradients of the tandem learning rule."""

from .batch_norm import conv1d_bn_if, conv2d_bn_if, linear_bn_if
from .conv import conv1d_if, conv2d_if
from .couple import couple
from .linear import linear_if
from .scan import if_scan

__all__ = [
    "conv1d_bn_if",
    "conv1d_if",
    "conv2d_bn_if",
    "conv2d_if",
    "couple",
    "if_scan",
    "linear_bn_if",
    "linear_if",
]
