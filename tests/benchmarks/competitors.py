"""The ways to compute a network of problems.py, ours and others', each a function of the problem."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from problems import Batch, Problem
from torch import Tensor, nn

import tandem_snn
import tandem_snn.nn as tnn
from tandem_ext import SpikeTrain

Timing = Literal["step", "window"]
Output = Tensor | SpikeTrain  # logits, or the last layer's activity


class Model(NamedTuple):
    """The parameters are in the order of the network's."""

    forward: Callable[[Batch], Output]
    parameters: Sequence[Tensor]


@dataclass(frozen=True)
class Competitor:
    """agrees: whether its spikes, and whether also its gradients, are those of the tandem rule with this timing."""

    make: Callable[[Problem], Model]
    agrees: Literal["no", "spikes", "gradients"] = "gradients"
    timing: Timing = "step"
    library: str = "torch"
    compiles: bool = False

    def can_run(self, quick: bool = False) -> bool:
        """Whether its library is installed; in a quick run nothing is compiled first."""
        return find_spec(self.library) is not None and not (quick and self.compiles)


def values(output: Output) -> Tensor:
    return output.counts if isinstance(output, SpikeTrain) else output


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


def currents(spikes: Tensor | None, batch: Batch, layer: Any, T: int) -> Tensor:
    """[T, B, *] by one product: of the spikes of all steps, or, without, of the batch's real values."""
    bias = None if layer.bias is None else layer.bias / T
    if spikes is None:
        return product(batch.x, layer, bias).expand(T, *[-1] * batch.x.dim())
    return product(spikes.flatten(0, 1), layer, bias).unflatten(0, spikes.shape[:2])


def normalise(u: Tensor, layer: Any) -> Tensor:
    if layer.norm is None:
        return u
    return F.batch_norm(u, None, None, layer.norm.weight, layer.norm.bias, training=True, eps=layer.norm.eps)


def ann(problem: Problem) -> Model:
    """The network of the same shape with ReLU instead of neurons, channels-last."""
    own = Parts(problem)

    def forward(batch: Batch) -> Tensor:
        x = batch.x
        for layer in own.layers:
            x = torch.relu(normalise(product(x, layer, layer.bias), layer))
        return own.read(x)

    return Model(forward, own.parameters)


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


class Couple(torch.autograd.Function):
    """The value is the count, the gradient goes to the ANN branch."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, counts: Tensor) -> Tensor:
        return counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def naive(problem: Problem, compiled: bool = False) -> Model:
    """The tandem rule in plain PyTorch: products of all steps at once, then a loop over time."""
    own, T = Parts(problem), problem.T
    loop = torch.compile(if_loop, dynamic=False) if compiled else if_loop

    def normalised(y: Tensor, u: Tensor, norm: Any) -> Tensor:
        var, mean = torch.var_mean(u, [0, *range(2, u.dim())], correction=0)
        scale = norm.weight / (var + norm.eps).sqrt()
        shift = (norm.bias - mean * scale) / T
        over_space = (-1, *[1] * (u.dim() - 2))
        return y * scale.view(over_space) + shift.view(over_space)

    def forward(batch: Batch) -> Tensor:
        spikes, counts = batch.spikes, T * batch.x if batch.spikes is None else batch.counts
        for layer in own.layers:
            u = product(counts, layer, layer.bias) if torch.is_grad_enabled() else None
            with torch.no_grad():
                y = currents(spikes, batch, layer, T)
                spikes, counts = loop(y if layer.norm is None else normalised(y, u, layer.norm))
            counts = counts if u is None else Couple.apply(torch.relu(normalise(u, layer)), counts)
        return own.read(counts)

    return Model(forward, own.parameters)


def naive_windows(problem: Problem) -> Model:
    """The tandem rule with timing "window", v_init = ϑ/2, in plain PyTorch: one product of the counts, rounded."""
    own, T = Parts(problem), problem.T

    def forward(batch: Batch) -> Tensor:
        counts = T * batch.x if batch.spikes is None else batch.counts
        for layer in own.layers:
            z = normalise(product(counts, layer, layer.bias), layer)
            fired = (z.detach() + 0.5).floor().clamp(0, T)
            counts = Couple.apply(torch.relu(z), fired) if z.requires_grad else fired
        return own.read(counts)

    return Model(forward, own.parameters)


class Surrogate(torch.autograd.Function):
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
            spike = Surrogate.apply(v - 1)
            v = v - spike
            spikes.append(spike)
        return torch.stack(spikes)

    def forward(batch: Batch) -> Tensor:
        spikes = batch.spikes
        for layer in own.layers:
            spikes = neurons(currents(spikes, batch, layer, T))
        return own.read(spikes.sum(0))

    return Model(forward, own.parameters)


def ours(problem: Problem, timing: Timing = "step") -> Model:
    """This package's layers, called one by one."""
    net = timed(problem, timing)
    return Model(of_trains(net, timing), list(net.parameters()))


def frozen(problem: Problem, timing: Timing = "step", bits: int | None = None) -> Model:
    """The same frozen, which may round the weights."""
    return Model(of_trains(tandem_snn.freeze(timed(problem, timing).eval(), weight_bits=bits), timing), [])


def timed(problem: Problem, timing: Timing) -> nn.Sequential:
    net = copy.deepcopy(problem.network)
    for layer in net:
        if isinstance(layer, tnn.SpikingLayer):
            layer.timing, layer.v_init = timing, 0.5 if timing == "window" else 0.0
    return net


def of_trains(net: Any, timing: Timing) -> Callable[[Batch], Output]:
    """Gives a network trains in the form that a layer of this timing gives."""
    counted: dict[int, SpikeTrain] = {}  # by batch

    def forward(batch: Batch) -> Output:
        if batch.train is None or timing == "step":
            return net(batch.x if batch.train is None else batch.train)
        if id(batch) not in counted:
            with torch.inference_mode(False):  # training uses it too
                counted[id(batch)] = SpikeTrain.from_counts(batch.counts, batch.train.T)
        return net(counted[id(batch)])

    return forward


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

    return Model(forward, [*net.parameters(), *(own.readout.parameters() if own.readout else ())])


def snntorch(problem: Problem) -> Model:
    """Step by step. Its neurons fire at v > ϑ, so their initial potential is a little above 0."""
    import snntorch as snn

    own = Parts(problem)
    neurons = [snn.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract") for _ in own.layers]

    def forward(batch: Batch) -> Tensor:
        v: list[Any] = [None] * len(neurons)
        total: Any = 0
        for t in range(problem.T):
            spikes = batch.x if batch.spikes is None else batch.spikes[t]
            for i, (layer, neuron) in enumerate(zip(own.layers, neurons, strict=True)):
                current = product(spikes, layer, layer.bias / problem.T)
                spikes, v[i] = neuron(current, torch.full_like(current, 2.0**-20) if t == 0 else v[i])
            total = total + spikes
        return own.read(total)

    return Model(forward, own.parameters)


LOOP = "naive, loop compiled"
WINDOW: Any = {"timing": "window"}
FROZEN: dict[str, int | None] = {"frozen": None, "frozen, 8 bits": 8, "frozen, 4 bits": 4}
COMPETITORS: dict[str, Competitor] = {
    "tandem": Competitor(ours),
    "windows": Competitor(partial(ours, **WINDOW), **WINDOW),
    **{name: Competitor(partial(frozen, bits=bits), "no" if bits else "spikes") for name, bits in FROZEN.items()},
    **{f"{name}, windows": Competitor(partial(frozen, bits=bits, **WINDOW), "no" if bits else "spikes", **WINDOW)
       for name, bits in FROZEN.items()},
    "ANN": Competitor(ann, "no"),
    "naive": Competitor(naive),
    "naive, windows": Competitor(naive_windows, **WINDOW),
    LOOP: Competitor(partial(naive, compiled=True), compiles=True),
    "BPTT": Competitor(bptt, "spikes"),
    "SpikingJelly": Competitor(spikingjelly, "spikes", library="spikingjelly"),
    "SpikingJelly, compiled": Competitor(partial(spikingjelly, compiled=True), "spikes", "step", "spikingjelly", True),
    "snnTorch": Competitor(snntorch, "spikes", library="snntorch"),
}  # fmt: skip
OURS = ("tandem", "windows", *(name for name in COMPETITORS if name.startswith("frozen")))
