"""The rivals: ways to compute the same network. Each makes a :class:`Model` of a problem."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tandem_snn
import tandem_snn.nn as tnn
from tandem_ext import SpikeTrain

from .problems import Batch, Problem

Timing = Literal["step", "window"]
Output = Tensor | SpikeTrain  # logits, or the last layer's activity


@dataclass(frozen=True)
class Candidate:
    """run: takes the number of the call. answer: the result of this call; None: it is not compared with the others."""

    run: Callable[[int], Output]
    answer: Callable[[int], list[Tensor]] | None = None
    parameters: Sequence[Tensor] = ()
    timing: Timing = "step"


@dataclass(frozen=True)
class Model:
    """parameters are in the order of the network's.

    same, same_gradient: whether spikes, and gradients, equal the tandem rule's with this timing.
    """

    parameters: Sequence[Tensor]
    forward: Callable[[Batch], Output]
    same: bool = True
    same_gradient: bool = True
    timing: Timing = "step"

    def inference(self, batches: Sequence[Batch]) -> Candidate:
        def run(i: int) -> Output:
            with torch.inference_mode():
                return self.forward(batches[i % len(batches)])

        return Candidate(run, (lambda i: [values(run(i))]) if self.same else None, timing=self.timing)

    def training_step(self, batches: Sequence[Batch]) -> Candidate:
        """Forward, loss, backward; without an optimiser, whose cost is the same for all rivals."""

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

        return Candidate(run, answer if self.same else None, self.parameters, self.timing)


def values(output: Output) -> Tensor:
    return output.counts if isinstance(output, SpikeTrain) else output


Loop = Callable[[Tensor], tuple[Tensor, Tensor]]


class Parts:
    """The layers with neurons and the readout of a problem's network, with parameters of their own."""

    def __init__(self, problem: Problem) -> None:
        network = copy.deepcopy(problem.network)
        self.parameters = list(network.parameters())
        self.layers: list[Any] = [layer for layer in network if isinstance(layer, tnn.SpikingLayer)]
        self.readout = network[-1] if isinstance(network[-1], tnn.Readout) else None

    def read(self, counts: Tensor) -> Tensor:
        return counts if self.readout is None else F.linear(counts.flatten(1), self.readout.weight, self.readout.bias)


def product(x: Tensor, layer: Any, bias: Tensor | None) -> Tensor:
    if layer.weight.dim() == 2:
        return F.linear(x, layer.weight, bias)
    return F.conv2d(x, layer.weight, bias, layer.stride, layer.padding)


def product_over_time(spikes: Tensor, layer: Any, bias: Tensor | None) -> Tensor:
    """[T, B, *] -> [T, B, *]: one product with T·B samples."""
    return product(spikes.flatten(0, 1), layer, bias).unflatten(0, spikes.shape[:2])


def constant(batch: Batch, layer: Any, T: int) -> Tensor:
    """The currents of a direct-encoded input [T, B, *]: its product is computed once."""
    return product(batch.x, layer, layer.bias / T).expand(T, *[-1] * batch.x.dim())


def normalise(u: Tensor, layer: Any) -> Tensor:
    return F.batch_norm(u, None, None, layer.norm.weight, layer.norm.bias, training=True, eps=layer.norm.eps)


def ann(problem: Problem) -> Model:
    """The network of the same shape with ReLU instead of neurons, channels-last."""
    own = Parts(problem)

    def forward(batch: Batch) -> Tensor:
        x = batch.x
        for layer in own.layers:
            u = product(x, layer, layer.bias)
            x = torch.relu(u if layer.norm is None else normalise(u, layer))
        return own.read(x)

    return Model(own.parameters, forward, same=False, same_gradient=False)


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


def naive(problem: Problem, loop: Loop = if_loop) -> Model:
    """The tandem rule in plain PyTorch: products of all steps at once, then a loop over time."""
    own, T = Parts(problem), problem.T

    def currents(layer: Any, spikes: Tensor, u: Tensor | None) -> Tensor:
        if layer.bias is not None:
            return product_over_time(spikes, layer, layer.bias / T)
        assert u is not None
        var, mean = torch.var_mean(u, [0, *range(2, u.dim())], correction=0)
        scale = layer.norm.weight / (var + layer.norm.eps).sqrt()
        shift = layer.norm.bias - mean * scale
        over_space = (-1, *[1] * (spikes.dim() - 3))
        return product_over_time(spikes, layer, None) * scale.view(over_space) + (shift / T).view(over_space)

    def forward(batch: Batch) -> Tensor:
        spikes, counts = batch.spikes, T * batch.x if batch.spikes is None else batch.counts
        for layer in own.layers:
            u = z = None
            if torch.is_grad_enabled():
                u = product(counts, layer, layer.bias)
                z = torch.relu(u if layer.norm is None else normalise(u, layer))
            with torch.no_grad():
                y = constant(batch, layer, T) if spikes is None else currents(layer, spikes, u)
                spikes, counts = loop(y)
            counts = counts if z is None else _Couple.apply(z, counts)  # type: ignore[no-untyped-call]
        return own.read(counts)

    return Model(own.parameters, forward)


def naive_windows(problem: Problem) -> Model:
    """The tandem rule with timing "window" in plain PyTorch: one product of the counts, rounded down."""
    own, T = Parts(problem), problem.T

    def forward(batch: Batch) -> Tensor:
        counts = T * batch.x if batch.spikes is None else batch.counts
        for layer in own.layers:
            z = product(counts, layer, layer.bias)
            z = z if layer.norm is None else normalise(z, layer)
            fired = z.detach().floor().clamp(0, T)
            counts = _Couple.apply(torch.relu(z), fired) if z.requires_grad else fired  # type: ignore[no-untyped-call]
        return own.read(counts)

    return Model(own.parameters, forward, timing="window")


class _Surrogate(torch.autograd.Function):
    """A step function with the derivative of an arc tangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + (math.pi * x).square())


def bptt(problem: Problem) -> Model:
    """Backpropagation through time with a surrogate gradient; products of all steps at once."""
    own, T = Parts(problem), problem.T

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
        for layer in own.layers:
            if spikes is None:
                spikes = neurons(constant(batch, layer, T))
            else:
                spikes = neurons(product_over_time(spikes, layer, layer.bias / T))
        assert spikes is not None
        return own.read(spikes.sum(0))

    return Model(own.parameters, forward, same_gradient=False)


def ours(problem: Problem, timing: Timing = "step", freeze: bool = False, bits: int | None = None) -> Model:
    """This package's layers, called one by one or frozen, which may round the weights."""
    net = copy.deepcopy(problem.network)
    for layer in net:
        if isinstance(layer, tnn.SpikingLayer):
            layer.timing = timing
    run = tandem_snn.freeze(net.eval(), weight_bits=bits) if freeze else net
    counts: dict[int, SpikeTrain] = {}  # trains in the form that a window layer gives, by batch

    def forward(batch: Batch) -> Output:
        if batch.train is None or timing == "step":
            return run(batch.x if batch.train is None else batch.train)
        if id(batch) not in counts:
            with torch.inference_mode(False):  # training uses it too
                counts[id(batch)] = SpikeTrain.from_counts(batch.counts, problem.T)
        return run(counts[id(batch)])

    return Model([] if freeze else list(net.parameters()), forward, same=bits is None, timing=timing)


def spikingjelly(problem: Problem, compiled: bool = False) -> Model:
    """Multi-step mode: products of all steps at once."""
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based import layer as sj

    def synapses(layer: Any) -> nn.Module:
        outputs, inputs, *kernel = layer.weight.shape
        geometry = (kernel, layer.stride, layer.padding) if kernel else ()
        made = (sj.Conv2d if kernel else sj.Linear)(inputs, outputs, *geometry)
        made.weight, made.bias = layer.weight, nn.Parameter(layer.bias.detach() / problem.T)
        return made

    own, net = Parts(problem), nn.Sequential()
    for layer in own.layers:
        net.append(synapses(layer))
        net.append(neuron.IFNode(v_threshold=1.0, v_reset=None, surrogate_function=surrogate.ATan()))
    functional.set_step_mode(net, "m")
    run = torch.compile(net, dynamic=False) if compiled else net

    def forward(batch: Batch) -> Tensor:
        functional.reset_net(net)
        spikes = batch.spikes
        if spikes is None:
            spikes = batch.x.unsqueeze(0).repeat(problem.T, *[1] * batch.x.dim())
        net.train(torch.is_grad_enabled())
        return own.read(run(spikes).sum(0))

    return Model([*net.parameters(), *(own.readout.parameters() if own.readout else ())], forward, same_gradient=False)


def snntorch(problem: Problem) -> Model:
    """Step by step. Its neurons fire at v > ϑ, so their initial potential is a little above 0."""
    import snntorch as snn

    own = Parts(problem)
    neurons = [snn.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract") for _ in own.layers]

    def forward(batch: Batch) -> Tensor:
        v: list[Tensor | None] = [None for _ in neurons]
        total: Tensor | None = None
        for t in range(problem.T):
            spikes = batch.x if batch.spikes is None else batch.spikes[t]
            for i, (layer, neuron) in enumerate(zip(own.layers, neurons, strict=True)):
                current = product(spikes, layer, layer.bias / problem.T)
                before = torch.full_like(current, 2.0**-20) if v[i] is None else v[i]
                spikes, v[i] = neuron(current, before)
            total = spikes if total is None else total + spikes
        assert total is not None
        return own.read(total)

    return Model(own.parameters, forward, same_gradient=False)


LOOP = "naive, loop compiled"
MAKERS: dict[str, Callable[[Problem], Model]] = {
    "tandem": ours,
    "windows": partial(ours, timing="window"),
    "frozen": partial(ours, freeze=True),
    "frozen, windows": partial(ours, timing="window", freeze=True),
    "frozen, 8 bits": partial(ours, freeze=True, bits=8),
    "frozen, 8 bits, windows": partial(ours, timing="window", freeze=True, bits=8),
    "ANN": ann,
    "naive": naive,
    "naive, windows": naive_windows,
    LOOP: lambda problem: naive(problem, torch.compile(if_loop, dynamic=False)),
    "BPTT": bptt,
    "SpikingJelly": spikingjelly,
    "SpikingJelly, compiled": partial(spikingjelly, compiled=True),
    "snnTorch": snntorch,
}


def available(name: str) -> bool:
    """Whether the rival's library is installed."""
    library = name.partition(",")[0].lower()
    return library not in ("spikingjelly", "snntorch") or find_spec(library) is not None
