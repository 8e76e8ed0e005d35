"""Linear: fully connected synapses and IF neurons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import Unpack

from .neuron import NeuronOptions, SpikingLayer
from .signature import shows_neuron_options


@shows_neuron_options
class Linear(SpikingLayer, nn.Linear):  # type: ignore[misc]  # its forward gives a train
    """A fully connected layer of IF neurons, in the place of ``nn.Linear`` (+ ``nn.BatchNorm1d``) + ``nn.ReLU``.

    Args:
        in_features, out_features, bias, device, dtype: as ``torch.nn.Linear``.
        norm and further keywords of neurons: see :class:`SpikingLayer`.

    Shape: signal [B, in_features] -> SpikeTrain [B, out_features].

    State: ``weight`` and ``bias`` as ``nn.Linear``, with ``norm.*`` as ``nn.BatchNorm1d``.

    >>> layer = tnn.Linear(784, 800, norm=True)
    >>> layer(te.ConstantInput(torch.rand(2, 784), T=8))
    SpikeTrain(T=8, shape=[2, 800], gain=1.0, device=cpu)
    """

    _product = staticmethod(F.linear)
    _norm_class = nn.BatchNorm1d

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Unpack[NeuronOptions],
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._add_neurons(out_features, device, dtype, **neuron)
