"""This package: its layers called one by one, and the frozen network."""

from __future__ import annotations

import torch
from torch import nn

import tandem_snn
import tandem_snn.nn as tnn

from ..network import EPS, Batch, Layer, Network
from .model import Model, Output


def build(network: Network) -> nn.Sequential:
    """The network of tandem_snn.nn's layers, as a user writes it."""
    net = nn.Sequential(*[tnn.Encoder(network.T)] * network.direct)
    for layer in network.layers:
        net.append(_layer(layer))
    if network.readout is not None:
        weight, bias = network.readout
        net.extend([tnn.Flatten(), tnn.Readout(weight.shape[1], weight.shape[0])])
        _set(net[-1], weight=weight, bias=bias)
    return net


def _layer(layer: Layer) -> tnn.SpikingLayer:
    outputs, inputs, *kernel = layer.weight.shape
    norm, bias = layer.gamma is not None, layer.bias is not None
    made: tnn.SpikingLayer
    if kernel:
        made = tnn.Conv2d(
            inputs, outputs, (kernel[0], kernel[1]), layer.stride, layer.padding, bias=bias, norm=norm, eps=EPS
        )
    else:
        made = tnn.Linear(inputs, outputs, bias=bias, norm=norm, eps=EPS)
    _set(made, weight=layer.weight, bias=layer.bias)
    if made.norm is not None:
        _set(made.norm, weight=layer.gamma, bias=layer.beta)
    return made


def _set(module: nn.Module, **tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(module, name, nn.Parameter(tensor.clone(memory_format=torch.preserve_format)))


def _input(batch: Batch) -> Output:
    return batch.x if batch.train is None else batch.train


def layerwise(network: Network) -> Model:
    net = build(network)
    return Model(list(net.parameters()), lambda batch: net(_input(batch)))


def frozen(network: Network) -> Model:
    net = tandem_snn.freeze(build(network).eval())
    return Model([], lambda batch: net(_input(batch)))
