"""Spiking layers that replace torch.nn's layers together with their activations.

>>> import tandem_snn.nn as tnn
>>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(64, 256, norm=True), tnn.Readout(256, 10))
>>> net(torch.rand(2, 64)).shape
torch.Size([2, 10])
"""

from .batch_norm import SyncBatchNorm
from .neuron import SpikingLayer
from .options import NeuronOptions, default_threshold
from .passing import Dropout, Encoder, Flatten, Readout, Residual
from .pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from .precision import set_T
from .synapses import Conv1d, Conv2d, Linear

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "Dropout",
    "Encoder",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "NeuronOptions",
    "Readout",
    "Residual",
    "SpikingLayer",
    "SyncBatchNorm",
    "default_threshold",
    "set_T",
]


def __dir__() -> list[str]:
    return __all__
