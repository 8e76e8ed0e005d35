"""Spiking layers that replace torch.nn's layers together with their activations.

>>> import tandem_snn.nn as tnn
>>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(64, 256, norm=True), tnn.Readout(256, 10))
>>> net(torch.rand(2, 64)).shape
torch.Size([2, 10])
"""

from .attention import Attention, Permute, SelfAttention
from .batch_norm import SyncBatchNorm
from .currents import Currents, currents_of
from .neuron import Neurons, SpikingLayer
from .options import NeuronOptions, default_threshold
from .passing import Dropout, Encoder, Flatten, Residual
from .places import Upsample
from .pooling import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
)
from .precision import set_T
from .readouts import Readout, ReadoutConv2d
from .synapses import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, Linear

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "Attention",
    "AvgPool1d",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Currents",
    "Dropout",
    "Encoder",
    "Flatten",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "NeuronOptions",
    "Neurons",
    "Permute",
    "Readout",
    "ReadoutConv2d",
    "Residual",
    "SelfAttention",
    "SpikingLayer",
    "SyncBatchNorm",
    "Upsample",
    "currents_of",
    "default_threshold",
    "set_T",
]


def __dir__() -> list[str]:
    return __all__
