"""Simulators of NIR graphs: each tool's own import, with the lines that put its neuron right, and NIR's formulas."""

import contextlib
import io
import warnings
from graphlib import TopologicalSorter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Net, stepped
from torch import nn

import tandem_ext as te
from tandem_snn import to_nir

nir = pytest.importorskip("nir")
T = 8


def counts_of(model, neurons, x):
    """The counts of another tool's model, stepped T times with the image at every step, and its answer."""
    state = None

    def step(x):
        nonlocal state
        y = model(x, state)
        y, state = y if isinstance(y, tuple) else (y, None)
        return y

    return stepped(model, [x] * T, lambda _, module: module in neurons, step)


def file_of(net, x, path, **options):
    nir.write(path / "net.nir", to_nir(net, x, window=True, **options))
    return str(path / "net.nir")


def dynamics(node):
    """What a step of length 1 leaves of a potential, and the factor of its current."""
    r, tau = (torch.from_numpy(getattr(node, name, np.ones(()))) for name in ("r", "tau"))
    return (1 - 1 / tau if hasattr(node, "tau") else 1.0), r / tau


class Integrator(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.kept, self.factor = dynamics(node)

    def forward(self, x, state=None):
        v = self.factor * x if state is None else self.kept * state + self.factor * x
        return v, v


def affine(node):
    layer = nn.Linear(*node.weight.shape[::-1])
    layer.weight.data, layer.bias.data = torch.tensor(node.weight), torch.tensor(node.bias)
    return layer


PRIMITIVES = {
    nir.I: Integrator,
    nir.LI: Integrator,
    nir.Threshold: lambda node: Net(lambda _, v: (v >= torch.tensor(node.threshold)).float()),
    nir.Scale: lambda node: Net(lambda _, x: torch.tensor(node.scale) * x),
    nir.Affine: affine,  # nirtorch's own leaves out the bias
}


def by_nirtorch(path):
    nirtorch = pytest.importorskip("nirtorch")
    model = nirtorch.nir_to_torch(path, PRIMITIVES)
    return model, [m for name, m in model.named_modules() if name.endswith("_spikes")]


def by_spikingjelly(path, soft=True):
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    from spikingjelly.activation_based.neuron import IFNode

    model = exchange.import_from_nir(path, dt=1.0)
    neurons = [m for m in model.modules() if isinstance(getattr(m, "module", None), IFNode)]
    for neuron in neurons if soft else ():
        neuron.module.v_reset = None  # SpikingJelly's way to say: subtract
    return model, neurons


def by_snntorch(path, soft=True):
    module = pytest.importorskip("snntorch.import_nir")
    from snntorch import Leaky

    with contextlib.redirect_stdout(io.StringIO()):
        model = module.import_from_nir(nir.read(path))
    neurons = [m for m in model.modules() if isinstance(m, Leaky)]
    for neuron in neurons:
        neuron.init_hidden = True
        if soft:
            neuron.beta = torch.tensor(1.0)  # its import gives an IF a leak of 0.9,
            neuron.reset_delay = True  # and a reset that differs where a potential is left at ϑ or above
            neuron.threshold = neuron.threshold.nextafter(torch.tensor(0.0))  # it fires at v > ϑ
    return model, neurons


class Stepped(nn.Module):
    """A sinabs model, whose layers keep their own state, by steps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, state):
        y = self.model(x)
        return y[0] if isinstance(y, tuple) else y


def by_sinabs(path, batch, soft=True):
    sinabs = pytest.importorskip("sinabs.nir")
    from sinabs.activation import SingleSpike
    from sinabs.layers import IAFSqueeze

    graph = nir.read(path)
    for node in graph.nodes.values():
        if isinstance(node, nir.IF):
            node.v_threshold = torch.tensor(node.v_threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sinabs.from_nir(graph, batch_size=batch)
    neurons = [m for m in model.modules() if isinstance(m, IAFSqueeze)]
    for neuron in neurons if soft else ():
        neuron.spike_fn, neuron.min_v_mem = SingleSpike, None  # else several spikes a step, and a floor
    return Stepped(model), neurons


@torch.no_grad()
def simulated(graph, x):
    """What NIR says that a graph does, node by node and step by step: the counts of its neurons, and its answers."""
    sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    order = list(TopologicalSorter(sources).static_order())
    steps = x.to_dense() if isinstance(x, te.SpikeTrain) else x.expand(T, *x.shape)
    potentials = dict.fromkeys(order, 0.0)
    sums = dict.fromkeys(order, 0.0)
    for step in steps:
        values = {}
        for name in order:
            node, given = graph.nodes[name], sum(values[source] for source in sources[name])
            if isinstance(node, nir.IF | nir.LIF):
                kept, factor = dynamics(node)
                v = kept * potentials[name] + factor * given
                values[name] = (v >= torch.from_numpy(node.v_threshold)).float()
                potentials[name] = v - values[name] * torch.from_numpy(node.v_threshold)
            else:
                values[name] = step if isinstance(node, nir.Input) else mapped(node, given)
            sums[name] = sums[name] + values[name]
    return [sums[name] for name in graph.nodes if isinstance(graph.nodes[name], nir.IF | nir.LIF)], sums["output"]


def mapped(node, x):
    if isinstance(node, nir.Output):
        return x
    if isinstance(node, nir.Scale):
        return x * torch.from_numpy(node.scale)
    if isinstance(node, nir.Flatten):
        return x.flatten(*(int(d) + (d >= 0) for d in (node.start_dim, node.end_dim)))  # they count without the batch
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        window = (tuple(map(int, v)) for v in (node.kernel_size, node.stride, node.padding))
        return F.avg_pool2d(x, *window, divisor_override=1 if isinstance(node, nir.SumPool2d) else None)
    weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    if isinstance(node, nir.Affine):
        return F.linear(x, weight, bias)
    geometry = [v if isinstance(v, int) else tuple(v) for v in (node.stride, node.padding, node.dilation)]
    return (F.conv1d if weight.dim() == 3 else F.conv2d)(x, weight, bias, *geometry)
