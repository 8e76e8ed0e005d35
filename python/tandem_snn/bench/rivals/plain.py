"""Competitors in plain PyTorch: the ANN, the tandem rule written naively, and backpropagation through time (BPTT)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..network import EPS, Batch, Layer, Network
from .model import Model

Loop = Callable[[Tensor], tuple[Tensor, Tensor]]


def product(x: Tensor, layer: Layer, bias: Tensor | None) -> Tensor:
    if layer.weight.dim() == 2:
        return F.linear(x, layer.weight, bias)
    return F.conv2d(x, layer.weight, bias, layer.stride, layer.padding)


def product_over_time(spikes: Tensor, layer: Layer, bias: Tensor | None) -> Tensor:
    """[T, B, *] -> [T, B, *]: one product with T·B samples."""
    return product(spikes.flatten(0, 1), layer, bias).unflatten(0, spikes.shape[:2])


def constant(batch: Batch, layer: Layer, T: int) -> Tensor:
    """The currents of a direct-encoded input [T, B, *]: its product is computed once."""
    assert layer.bias is not None
    return product(batch.x, layer, layer.bias / T).expand(T, *[-1] * batch.x.dim())


def read(counts: Tensor, network: Network) -> Tensor:
    return counts if network.readout is None else F.linear(counts.flatten(1), *network.readout)


def normalise(u: Tensor, layer: Layer) -> Tensor:
    return F.batch_norm(u, None, None, layer.gamma, layer.beta, training=True, eps=EPS)


def ann(network: Network) -> Model:
    """The network of the same shape with ReLU in the place of neurons, channels-last."""
    network = network.trainable()

    def forward(batch: Batch) -> Tensor:
        x = batch.x
        for layer in network.layers:
            u = product(x, layer, layer.bias)
            x = torch.relu(u if layer.gamma is None else normalise(u, layer))
        return read(x, network)

    return Model(network.tensors, forward, same=False, same_gradient=False)


def if_loop(currents: Tensor) -> tuple[Tensor, Tensor]:
    """IF neurons with threshold 1: spikes and their counts."""
    v = torch.zeros_like(currents[0])
    counts = torch.zeros_like(v)
    spikes = []
    for current in currents:
        v = v + current
        spike = (v >= 1).to(v.dtype)
        v = v - spike
        counts = counts + spike
        spikes.append(spike)
    return torch.stack(spikes), counts


class _Couple(torch.autograd.Function):
    """The value is the count, the gradient goes to the ANN branch."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, counts: Tensor) -> Tensor:
        return counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def naive(network: Network, loop: Loop = if_loop) -> Model:
    """The tandem rule as one writes it first: products of all steps at once, a loop over time, and in training the ANN
    branch at the counts."""
    network = network.trainable()
    T = network.T

    def currents(layer: Layer, spikes: Tensor, u: Tensor | None) -> Tensor:
        if layer.bias is not None:
            return product_over_time(spikes, layer, layer.bias / T)
        assert u is not None
        assert layer.gamma is not None
        assert layer.beta is not None
        var, mean = torch.var_mean(u, [0, *range(2, u.dim())], correction=0)
        scale = layer.gamma / (var + EPS).sqrt()
        shift = layer.beta - mean * scale
        over_space = (-1, *[1] * (spikes.dim() - 3))
        return product_over_time(spikes, layer, None) * scale.view(over_space) + (shift / T).view(over_space)

    def forward(batch: Batch) -> Tensor:
        spikes, counts = batch.spikes, T * batch.x if batch.spikes is None else batch.counts
        for layer in network.layers:
            u = z = None
            if torch.is_grad_enabled():
                u = product(counts, layer, layer.bias)
                z = torch.relu(u if layer.gamma is None else normalise(u, layer))
            with torch.no_grad():
                y = constant(batch, layer, T) if spikes is None else currents(layer, spikes, u)
                spikes, counts = loop(y)
            counts = counts if z is None else _Couple.apply(z, counts)  # type: ignore[no-untyped-call]
        return read(counts, network)

    return Model(network.tensors, forward)


def naive_compiled(network: Network) -> Model:
    return naive(network, torch.compile(if_loop, dynamic=False))


class _Surrogate(torch.autograd.Function):
    """A step whose derivative is that of an arc tangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + (math.pi * x).square())


def bptt(network: Network) -> Model:
    """Backpropagation through time with a surrogate gradient; products of all steps at once."""
    network = network.trainable()
    T = network.T

    def neurons(currents: Tensor) -> Tensor:
        v = torch.zeros_like(currents[0])
        spikes = []
        for current in currents:
            v = v + current
            spike = _Surrogate.apply(v - 1)  # type: ignore[no-untyped-call]
            v = v - spike
            spikes.append(spike)
        return torch.stack(spikes)

    def forward(batch: Batch) -> Tensor:
        spikes = batch.spikes
        for layer in network.layers:
            assert layer.bias is not None
            if spikes is None:
                spikes = neurons(constant(batch, layer, T))
            else:
                spikes = neurons(product_over_time(spikes, layer, layer.bias / T))
        assert spikes is not None
        return read(spikes.sum(0), network)

    return Model(network.tensors, forward, same_gradient=False)
