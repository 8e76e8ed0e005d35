"""Simulators of NIR graphs: each tool's own import, as docs/nir.md puts its neuron right, and NIR's formulas."""

from graphlib import TopologicalSorter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import stepped
from pages import ROOT, blocks
from torch import nn

import tandem_ext as te
from tandem_snn import to_nir

nir = pytest.importorskip("nir")
T = 8
PAGE = ROOT / "docs/nir.md"


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


def read_by(simulator, path):
    """The model that the function of docs/nir.md makes of a file, and its neurons."""
    pytest.importorskip(simulator)
    names = {}
    exec(next(code for code in blocks(PAGE, "python") if f"def {simulator}_net(" in code), names)
    model = names[f"{simulator}_net"](path)
    return model, [m for name, m in model.named_modules() if name.endswith("_neurons")]


class Stepped(nn.Module):
    """A sinabs model, whose layers keep their own state, by steps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, state):
        y = self.model(x)
        return y[0] if isinstance(y, tuple) else y


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
