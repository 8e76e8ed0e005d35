"""Layers that integrate a window, in NIR: what comes back, and the same counts in SpikingJelly."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extras import needs
from networks import assert_same, dyadic, images, network, own_counts
from nir_simulators import by_spikingjelly, file_of
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.stages import CannotLower

T = 8


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


NETWORKS: dict[str, Any] = {
    "chain": lambda: (waiting(network()), images()),
    "blocks": lambda: (blocks(), images()),
    "every other": lambda: (waiting(network(), "2"), images()),
    "events": events,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_nir_is_given_comes_back(name: str, tmp_path: Path) -> None:
    needs("nir")
    net, x = NETWORKS[name]()
    back = ts.from_nir(file_of(net, x, tmp_path)).eval()
    assert_same(own_counts(net, x), own_counts(back, x))
    timings = [layer.timing for layer in back.modules() if isinstance(layer, tnn.SpikingLayer)]
    assert "window" in timings
    assert_same(own_counts(net, x), own_counts(ts.from_nir(ts.to_nir(back, x, window=True)), x))


def test_readers_without_the_metadata_are_warned_of() -> None:
    needs("nir")
    net, x = NETWORKS["every other"]()
    with pytest.warns(UserWarning, match='metadata of timing "window" run other spikes.*window=True'):
        ts.to_nir(ts.freeze(net), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ts.to_nir(net, x, window=True)
        ts.to_nir(nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2)), torch.rand(1, 4))


def test_what_a_reader_of_nir_must_know() -> None:
    nir = needs("nir")
    net, x = NETWORKS["every other"]()
    graph = ts.to_nir(net, x, window=True)
    neurons = {name: node.metadata for name, node in graph.nodes.items() if isinstance(node, nir.IF)}
    told = [(facts["timing"], facts["phase"], "v_init" in facts) for facts in neurons.values()]
    assert told == [("window", 0, True), ("step", 1, False), ("window", 1, True)]
    assert (graph.metadata["timing"], graph.metadata["phase"]) == ("window", 2)
    with pytest.raises(CannotLower, match='n1: timing "window" needs a clock'):
        ts.to_nir(net, x, neurons="primitives")
    facts = next(iter(neurons.values()))
    for key, value, message in (("timing", "later", "timing 'later'"), ("v_init", np.zeros(3), "v_init is not of")):
        before = facts[key]
        facts[key] = value
        with pytest.raises(ValueError, match=f"node 'n1_neurons': .*{message}"):
            ts.from_nir(graph)
        facts[key] = before


@pytest.mark.clients
@torch.no_grad()
def test_spikingjelly_runs_the_file_layer_by_layer(tmp_path: Path) -> None:
    """Its import, and the two phases that the metadata ask for: currents are added up, then the neurons fire."""
    nir = needs("nir")
    net, x = NETWORKS["chain"]()
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
