"""The rivals: ways to compute the same network, each a function from a :class:`~tandem_snn.bench.problems.Network` to a
:class:`Model`, whose forward takes a batch in the form that suits it best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tandem_snn
import tandem_snn.nn as tnn
from tandem_ext import SpikeTrain

from .problems import EPS, Batch, Layer, Network

Output = Tensor | SpikeTrain  # logits, or the last layer's activity


@dataclass(frozen=True)
class Candidate:
    """run takes the number of the call. answer: what such a call computes; None where that is not to be compared."""

    run: Callable[[int], Output]
    answer: Callable[[int], list[Tensor]] | None = None
    parameters: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Model:
    """parameters are in the order of :attr:`Network.tensors`.

    same, same_gradient: whether the spikes, and the gradients, are those of the tandem rule.
    """

    parameters: Sequence[Tensor]
    forward: Callable[[Batch], Output]
    same: bool = True
    same_gradient: bool = True

    def inference(self, batches: Sequence[Batch]) -> Candidate:
        def run(i: int) -> Output:
            with torch.inference_mode():
                return self.forward(batches[i % len(batches)])

        return Candidate(run, (lambda i: [values(run(i))]) if self.same else None)

    def training_step(self, batches: Sequence[Batch]) -> Candidate:
        """Forward, loss, backward; without an optimiser, which costs all of them the same."""

        def run(i: int) -> Output:
            batch = batches[i % len(batches)]
            for leaf in (*self.parameters, *batch.leaves):
                leaf.grad = None
            output = self.forward(batch)
            result = values(output)
            if batch.target.is_floating_point():
                result.backward(batch.target)
            else:
                F.cross_entropy(result, batch.target).backward()
            return output

        def answer(i: int) -> list[Tensor]:
            result = values(run(i)).detach()
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            return [result, *gradients] if self.same_gradient else [result]

        return Candidate(run, answer if self.same else None, self.parameters)


def values(output: Output) -> Tensor:
    return output.counts if isinstance(output, SpikeTrain) else output


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


def build(network: Network) -> nn.Sequential:
    """This package's layers, as a user writes them."""
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


def spikingjelly(network: Network, compiled: bool = False) -> Model:
    """Multi-step mode: products of all steps at once."""
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based import layer as sj

    def synapses(weight: Tensor, bias: Tensor, stride: int, padding: int) -> nn.Module:
        outputs, inputs, *kernel = weight.shape
        made = sj.Conv2d(inputs, outputs, kernel, stride, padding) if kernel else sj.Linear(inputs, outputs)
        made.weight = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        made.bias = nn.Parameter(bias / network.T)
        return made

    net = nn.Sequential()
    for layer in network.layers:
        assert layer.bias is not None
        net.append(synapses(layer.weight, layer.bias, layer.stride, layer.padding))
        net.append(neuron.IFNode(v_threshold=1.0, v_reset=None, surrogate_function=surrogate.ATan()))
    functional.set_step_mode(net, "m")
    own = network.trainable()
    run = torch.compile(net, dynamic=False) if compiled else net

    def forward(batch: Batch) -> Tensor:
        functional.reset_net(net)
        spikes = batch.spikes
        if spikes is None:
            spikes = batch.x.unsqueeze(0).repeat(network.T, *[1] * batch.x.dim())
        net.train(torch.is_grad_enabled())
        return read(run(spikes).sum(0), own)

    return Model([*net.parameters(), *(own.readout or ())], forward, same_gradient=False)


def spikingjelly_compiled(network: Network) -> Model:
    return spikingjelly(network, compiled=True)


def snntorch(network: Network) -> Model:
    """Step by step. Its neurons fire above the threshold, not at it: an initial potential finer than the grid of all
    currents makes that the same."""
    import snntorch as snn

    network = network.trainable()
    neurons = [snn.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract") for _ in network.layers]

    def forward(batch: Batch) -> Tensor:
        v: list[Tensor | None] = [None for _ in neurons]
        total: Tensor | None = None
        for t in range(network.T):
            spikes = batch.x if batch.spikes is None else batch.spikes[t]
            for i, (layer, neuron) in enumerate(zip(network.layers, neurons, strict=True)):
                assert layer.bias is not None
                current = product(spikes, layer, layer.bias / network.T)
                before = torch.full_like(current, 2.0**-20) if v[i] is None else v[i]
                spikes, v[i] = neuron(current, before)
            total = spikes if total is None else total + spikes
        assert total is not None
        return read(total, network)

    return Model(network.tensors, forward, same_gradient=False)


MAKERS: dict[str, Callable[[Network], Model]] = {
    "tandem": layerwise,
    "frozen": frozen,
    "ANN": ann,
    "naive": naive,
    "naive, loop compiled": naive_compiled,
    "BPTT": bptt,
    "SpikingJelly": spikingjelly,
    "SpikingJelly, compiled": spikingjelly_compiled,
    "snnTorch": snntorch,
}

_LIBRARY = {"SpikingJelly": "spikingjelly", "SpikingJelly, compiled": "spikingjelly", "snnTorch": "snntorch"}


def available(name: str) -> bool:
    """Whether the library that the competitor needs is installed."""
    return name not in _LIBRARY or find_spec(_LIBRARY[name]) is not None
