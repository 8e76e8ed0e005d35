"""NIR of the general way: neurons on any sum of linear maps, written map by map and read back to the same counts; and
of layers that integrate a window: what comes back, and the same counts in SpikingJelly.
"""

import itertools
import pickle
import warnings
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from extras import needs
from networks import Net, assert_same, dyadic, images, network, own_counts
from nir_simulators import by_spikingjelly, file_of
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import calibrate, convert, freeze, from_nir, to_nir
from tandem_snn.frozen.stages import CannotLower
from tandem_snn.nn.general import Neurons

nir = needs("nir")
T = 8


def separable() -> nn.Module:
    """Two products in a row, and branches added and subtracted."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.norm(m.first(x)))
        x = F.relu(m.norm2(m.point(m.depth(x))) + m.other(x) - 0.5 * m.point(x) + m.shift)
        return m.last(F.relu(m.down(x) + m.down2(F.avg_pool2d(x, 2)) + F.avg_pool2d(x, 2)).mean([2, 3]))

    net = Net(
        forward,
        first=nn.Conv2d(1, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8),
        depth=nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        point=nn.Conv2d(8, 8, 1, bias=False),
        norm2=nn.BatchNorm2d(8),
        other=nn.Conv2d(8, 8, 1),
        down=nn.Conv2d(8, 8, 3, 2, 1),
        down2=nn.Conv2d(8, 8, 1),
        last=nn.Linear(8, 5),
    )
    net.shift = nn.Parameter(torch.randint(-8, 8, (8, 1, 1)) / 64)
    return net


def preactivated() -> nn.Module:
    """Batch norm of a sum, before the ReLU, whose sum goes on."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.a(F.relu(m.norm(x)))
        return m.last(F.adaptive_avg_pool2d(F.relu(m.norm2(x)), 1).flatten(1))

    stem, a = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    norms = {"norm": nn.BatchNorm2d(6), "norm2": nn.BatchNorm2d(6)}
    return Net(forward, stem=stem, a=a, last=nn.Linear(6, 4), **norms)


def flat() -> nn.Module:
    """Pooled currents, and linear layers in a row."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(F.avg_pool2d(m.c(x), 2))
        x = F.relu(-m.b(m.a(x.flatten(1))) / 2)
        return m.e(m.d(x))

    layers = {"a": nn.Linear(64, 7), "b": nn.Linear(7, 12), "d": nn.Linear(12, 6), "e": nn.Linear(6, 3)}
    return Net(forward, c=nn.Conv2d(1, 4, 3, padding=1), **layers)


def line() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.a(x.flatten(2)))
        return m.d(F.relu(m.c(m.b(x)) + x).flatten(1))

    convs = {"a": nn.Conv1d(1, 4, 3, padding=1), "b": nn.Conv1d(4, 4, 5, padding=2), "c": nn.Conv1d(4, 4, 1)}
    return Net(forward, d=nn.Linear(256, 3), **convs)


def converted(ann: nn.Module, x: Tensor, timing: str) -> nn.Module:
    """A spiking network whose thresholds per channel are powers of two."""
    net = convert(ann, T, example=x, timing=timing, v_init=0.0)
    for layer in net.modules():
        if isinstance(layer, (tnn.SpikingLayer, Neurons)):
            layer.threshold = 2.0 ** torch.randint(-5, -2, layer.threshold.shape)
    return net


NETS = {"separable": separable, "preactivated": preactivated, "flat": flat, "line": line}


@pytest.mark.parametrize(("timing", "form"), [("step", "IF"), ("step", "primitives"), ("window", "IF")])
@pytest.mark.parametrize("name", NETS)
def test_the_general_way_comes_back_and_again(name: str, timing: str, form: str) -> None:
    torch.manual_seed(3)
    x = torch.randint(0, 16, (4, 1, 8, 8)) / 16
    with torch.no_grad():
        net = converted(dyadic(NETS[name]()), x, timing)
    assert any(way.startswith("general") for way in net.meta["ways"].values())
    ours, graph = own_counts(net, x), to_nir(net, x, neurons=form)
    if (timing, form) == ("step", "IF"):
        assert_same(ours, simulated(graph, x))
    back = from_nir(graph)
    assert_same(ours, own_counts(back, x))
    assert_same(ours, own_counts(from_nir(to_nir(back, x, neurons=form)), x))


def test_initial_potentials_and_calibrated_thresholds() -> None:
    """Not dyadic, so that few neurons may differ."""
    torch.manual_seed(4)
    x = torch.rand(8, 1, 8, 8)
    net = calibrate(convert(separable().eval(), T, example=x, timing="step"), [x])
    with pytest.raises(CannotLower, match=r'first: NIR.s neurons start at potential 0.*neurons="primitives"'):
        to_nir(net, x)
    back = from_nir(to_nir(net, x, neurons="primitives"))
    for ours, theirs in zip(own_counts(net, x)[0], own_counts(back, x)[0], strict=True):
        assert (ours != theirs).double().mean() < 0.01


@torch.no_grad()
def simulated(graph: Any, x: Tensor | te.SpikeTrain) -> tuple[list[Tensor], Tensor]:
    """What NIR says that a graph does, node by node and step by step: the counts of its neurons, and its answers."""
    sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    order = list(TopologicalSorter(sources).static_order())
    steps = x.to_dense() if isinstance(x, te.SpikeTrain) else x.expand(T, *x.shape)
    potentials: dict[str, Any] = dict.fromkeys(order, 0.0)
    sums: dict[str, Any] = dict.fromkeys(order, 0.0)
    for step in steps:
        values: dict[str, Any] = {}
        for name in order:
            node, given = graph.nodes[name], sum(values[source] for source in sources[name])
            if isinstance(node, nir.IF):
                v = potentials[name] + given
                values[name] = (v >= torch.from_numpy(node.v_threshold)).float()
                potentials[name] = v - values[name] * torch.from_numpy(node.v_threshold)
            else:
                values[name] = step if isinstance(node, nir.Input) else mapped(node, given)
            sums[name] = sums[name] + values[name]
    return [sums[name] for name in graph.nodes if isinstance(graph.nodes[name], nir.IF)], sums["output"]


def mapped(node: Any, x: Tensor) -> Tensor:
    if isinstance(node, nir.Output):
        return x
    if isinstance(node, nir.Scale):
        return x * torch.from_numpy(node.scale)
    if isinstance(node, nir.Flatten):
        return x.flatten(int(node.start_dim), int(node.end_dim))
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        window = (tuple(map(int, v)) for v in (node.kernel_size, node.stride, node.padding))
        return F.avg_pool2d(x, *window, divisor_override=1 if isinstance(node, nir.SumPool2d) else None)
    weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    if isinstance(node, nir.Affine):
        return F.linear(x, weight, bias)
    geometry = [v if isinstance(v, int) else tuple(v) for v in (node.stride, node.padding, node.dilation)]
    return (F.conv1d if weight.dim() == 3 else F.conv2d)(x, weight, bias, *geometry)


def chain(*nodes: Any) -> Any:
    """A graph of nodes one after the other, for spikes of shape [2, 4, 4]."""
    shape = np.array([2, 4, 4])
    every = ["input", *(f"n{i}" for i in range(len(nodes))), "output"]
    named = dict(zip(every, [nir.Input({"input": shape}), *nodes, nir.Output({"output": shape})], strict=True))
    edges = list(itertools.pairwise(every))
    return nir.NIRGraph(named, edges, metadata={"T": T, "input": "events"}, type_check=False)


def powers(*shape: int) -> np.ndarray:
    return (2.0 ** torch.randint(-2, 2, shape)).float().numpy()


def eighths(*shape: int) -> np.ndarray:
    return (torch.randint(-8, 16, shape) / 8).numpy()


def conv(channels: int = 2, kernel: int = 1) -> Any:
    return nir.Conv2d((4, 4), eighths(channels, 2, kernel, kernel), 1, kernel // 2, 1, 1, eighths(channels) / 8)


def neurons(*shape: int) -> Any:
    return nir.IF(*(np.full(shape or (2, 4, 4), n, np.float32) for n in (1, 1, 0)), metadata={"reset": "subtract"})


def graphs() -> dict[str, Any]:
    pool = nir.AvgPool2d(*(np.array([n, n]) for n in (2, 2, 0)))
    shortcut = chain(conv(), neurons())
    shortcut.nodes["scale"] = nir.Scale(-powers(2, 4, 4))
    shortcut.edges += [("input", "scale"), ("scale", "n1")]
    three = chain(conv(), neurons())
    three.nodes |= {"b": conv(kernel=3), "c": conv()}
    three.edges += [("input", "b"), ("input", "c"), ("b", "n1"), ("c", "n1"), ("input", "n1")]
    sums = nir.SumPool2d(*(np.array([n, n]) for n in (3, 1, 1)))
    return {
        "sums, a convolution": chain(sums, conv(), neurons()),
        "neurons, sums, other neurons": chain(neurons(), sums, neurons()),
        "a scale, pooling": chain(nir.Scale(powers(2, 4, 4)), pool, neurons(2, 2, 2)),
        "a scale, pooling, a convolution": chain(nir.Scale(powers(2, 4, 4)), pool, conv(), neurons(2, 2, 2)),
        "a scale of each neuron, a convolution": chain(nir.Scale(powers(2, 4, 4)), conv(kernel=3), neurons()),
        "a scale of each channel, a convolution": chain(
            nir.Scale(np.ones((2, 4, 4), np.float32) * powers(2, 1, 1)), conv(kernel=3), neurons()
        ),
        "a convolution, a scale of each neuron": chain(conv(), nir.Scale(powers(2, 4, 4)), neurons()),
        "pooling, a convolution": chain(pool, conv(), neurons(2, 2, 2)),
        "two convolutions": chain(conv(), conv(kernel=3), neurons()),
        "no synapses": chain(neurons(), nir.Scale(powers(2, 4, 4))),
        "a scale at the end": chain(conv(), neurons(), nir.Scale(powers(2, 4, 4))),
        "a shortcut with its sign changed": shortcut,
        "three paths and a shortcut": three,
    }


@pytest.mark.parametrize("name", graphs())
def test_any_sum_of_maps_is_read(name: str) -> None:
    torch.manual_seed(5)
    graph = graphs()[name]
    x = te.SpikeTrain.from_dense(torch.rand(T, 3, 2, 4, 4).lt(0.5).float())
    assert_same(own_counts(from_nir(graph), x), simulated(graph, x))


@pytest.mark.parametrize(("forward", "message"), [
    (lambda m, x: m.c(torch.cat([x, m.c(x)], 1)[:, :6]), "cat: NIR has no node for cat"),
    (lambda m, x: m.c(F.interpolate(m.c(x), scale_factor=2)), "NIR has no node for upsample_nearest2d"),
    (lambda m, x: m.c(m.c(F.max_pool2d(x, 2))), "NIR has no node for max_pool2d: use AvgPool2d or strides"),
    (lambda m, x: m.c(F.pad(m.c(x), [1, 0, 0, 0])), "NIR has no node for pad"),
    (lambda m, x: m.c(m.c(x).mean(1, keepdim=True) + x), "means other than those over the space"),
])  # fmt: skip
def test_what_has_no_node_is_named(forward: Callable[[Any, Tensor], Tensor], message: str) -> None:
    net = Net(lambda m, x: F.relu(forward(m, F.relu(m.first(x)))).mean([2, 3]), first=nn.Conv2d(1, 6, 3, padding=1))
    net.c = nn.Conv2d(6, 6, 1)
    x = torch.rand(1, 1, 8, 8)
    with pytest.raises(CannotLower, match=message):
        to_nir(convert(net.eval(), T, example=x, v_init=0.0), x)


def test_frozen_networks_pickles_and_answers() -> None:
    torch.manual_seed(6)
    x = torch.randint(0, 16, (2, 1, 8, 8)) / 16
    with torch.no_grad():
        net = converted(dyadic(separable()), x, "step")
    back = from_nir(to_nir(freeze(net), x))
    assert torch.equal(pickle.loads(pickle.dumps(back))(x), net(x))
    back.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in back.parameters())
    squared = Net(lambda m, x: m.inner(x) * m.inner(x), inner=separable()).eval()
    for ann, node in ((nn.Sequential(separable().eval(), nn.Softmax(1)), "softmax"), (squared, "mul of activations")):
        net = convert(ann, T, example=x, v_init=0.0)
        with pytest.raises(CannotLower, match=f"NIR has no node for {node}"):
            to_nir(net, x)


def waiting(net: nn.Module, *at_once: str, v_init: float = 0.5) -> nn.Module:
    for name, layer in net.named_modules():
        if isinstance(layer, (tnn.SpikingLayer, tnn.AvgPool2d)) and name not in at_once:
            layer.timing = "window"
            layer.v_init = v_init
    return net


def blocks() -> nn.Module:
    """A shortcut past two layers that wait, a projection, averages, and a layer that does not wait."""
    torch.manual_seed(2)
    body = nn.Sequential(tnn.Conv2d(8, 4, 3, padding=1), tnn.Conv2d(4, 8, 1, threshold=2.0))
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 8, 3, padding=1, gain=0.5),
        tnn.AvgPool2d(2),
        tnn.Residual(body),
        tnn.Residual(nn.Sequential(tnn.Conv2d(8, 8, 1), tnn.Conv2d(8, 6, 3, 2, 1)), tnn.Conv2d(8, 6, 1, 2)),
        tnn.AvgPool2d(2, spiking=False),
        tnn.Flatten(),
        tnn.Readout(6, 3),
    )
    return waiting(dyadic(net), "3.body.1")


def events() -> tuple[nn.Module, te.SpikeTrain]:
    torch.manual_seed(3)
    net = nn.Sequential(tnn.Conv1d(2, 6, 3), tnn.Residual(tnn.Conv1d(6, 6, 1)), tnn.Flatten(), tnn.Readout(60, 3))
    return waiting(dyadic(net)), te.SpikeTrain.from_dense(torch.rand(T, 4, 2, 12).lt(0.4).float())


WINDOWS: dict[str, Any] = {
    "chain": lambda: (waiting(network()), images()),
    "blocks": lambda: (blocks(), images()),
    "every other": lambda: (waiting(network(), "2"), images()),
    "events": events,
}


@pytest.mark.parametrize("name", WINDOWS)
def test_what_nir_is_given_comes_back(name: str, tmp_path: Path) -> None:
    net, x = WINDOWS[name]()
    back = from_nir(file_of(net, x, tmp_path)).eval()
    assert_same(own_counts(net, x), own_counts(back, x))
    timings = [layer.timing for layer in back.modules() if isinstance(layer, tnn.SpikingLayer)]
    assert "window" in timings
    assert_same(own_counts(net, x), own_counts(from_nir(to_nir(back, x, window=True)), x))


def test_readers_without_the_metadata_are_warned_of() -> None:
    net, x = WINDOWS["every other"]()
    with pytest.warns(UserWarning, match='metadata of timing "window" run other spikes.*window=True'):
        to_nir(freeze(net), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_nir(net, x, window=True)
        to_nir(nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2)), torch.rand(1, 4))


def test_what_a_reader_of_nir_must_know() -> None:
    net, x = WINDOWS["every other"]()
    graph = to_nir(net, x, window=True)
    neurons = {name: node.metadata for name, node in graph.nodes.items() if isinstance(node, nir.IF)}
    told = [(facts["timing"], facts["phase"], "v_init" in facts) for facts in neurons.values()]
    assert told == [("window", 0, True), ("step", 1, False), ("window", 1, True)]
    assert (graph.metadata["timing"], graph.metadata["phase"]) == ("window", 2)
    with pytest.raises(CannotLower, match='n1: timing "window" needs a clock'):
        to_nir(net, x, neurons="primitives")
    facts = next(iter(neurons.values()))
    for key, value, message in (("timing", "later", "timing 'later'"), ("v_init", np.zeros(3), "v_init is not of")):
        before = facts[key]
        facts[key] = value
        with pytest.raises(ValueError, match=f"node 'n1_neurons': .*{message}"):
            from_nir(graph)
        facts[key] = before


@pytest.mark.clients
@torch.no_grad()
def test_spikingjelly_runs_the_file_layer_by_layer(tmp_path: Path) -> None:
    """Its import, and the two phases that the metadata ask for: currents are added up, then the neurons fire."""
    net, x = WINDOWS["chain"]()
    path = file_of(net, x, tmp_path)
    model, _ = by_spikingjelly(path)
    facts = {name: node.metadata for name, node in nir.read(path).nodes.items() if isinstance(node, nir.IF)}
    assert {value["timing"] for value in facts.values()} == {"window"}
    train, counts = [x] * T, []
    for name, module in model.named_children():
        if name in facts:
            node = module.module
            node.reset()
            node.v = torch.tensor(facts[name]["v_init"]) + torch.stack(train).sum(0)
            train = [node(torch.zeros_like(node.v)) for _ in range(T)]
            counts.append(torch.stack(train).sum(0))
        elif name not in ("input", "output"):
            train = [module(value) for value in train]
    assert_same(own_counts(net, x), (counts, torch.stack(train).sum(0)))
