"""ONNX: a whole window of layers that integrate, then fire, run by onnxruntime to the same counts and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import own_counts
from test_frozen_window import NETWORKS, conv, mlp, of_timing, spiking
from test_onnx import dyadic, inputs_of, onto_grids
from torch import Tensor

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def by_onnxruntime(path: Path, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Counts of each layer with neurons, and the answer."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["timing"] == "window"
    assert [i.name for i in session.get_inputs()] == ["x"]
    outputs = [o.name for o in session.get_outputs()]
    found = dict(zip(outputs, session.run(outputs, {"x": x.numpy()}), strict=True))
    return [torch.from_numpy(found[n]) for n in outputs if n != "answer"], torch.from_numpy(found["answer"])


def assert_the_same(net: Any, x: Any, dense: Tensor, path: Path) -> None:
    ts.to_onnx(net, path / "net.onnx", x)
    counts, answer = by_onnxruntime(path / "net.onnx", dense)
    ours, expected = own_counts(net, x)
    assert len(ours) == len(counts)
    for c, other in zip(ours, counts, strict=True):
        assert c.sum() > 0
        assert torch.equal(c, other)
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)  # torch's product, and a batch norm's scale


@pytest.mark.parametrize("mixed", ["", "even", "odd"])
@pytest.mark.parametrize("T", [1, 2, 8])
@pytest.mark.parametrize("make", NETWORKS)
def test_every_layer(make: Any, T: int, mixed: str, tmp_path: Path) -> None:
    net, x = of_timing(make, T, mixed)
    net, x = dyadic(net), inputs_of(x)
    assert_the_same(net, x, x, tmp_path)


@pytest.mark.parametrize("T", [1, 8, 200])
def test_a_node_for_each_operation_whatever_t(T: int, tmp_path: Path) -> None:
    net, x = of_timing(conv, T)
    net, x = dyadic(net), inputs_of(x)
    assert_the_same(net, x, x, tmp_path)
    nodes = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert nodes.count("Floor") == nodes.count("Clip") == 4
    assert len(nodes) < 50


def test_thresholds_whose_multiples_are_rounded(tmp_path: Path) -> None:
    """Where v is a multiple of ϑ or nearly, subtraction and division may differ: the graph subtracts."""
    layer = tnn.Linear(1, 4000, bias=False, threshold=0.1, timing="window")
    layer.weight.data = (torch.arange(4000).view(-1, 1) * 0.1 / 13).float()
    net = torch.nn.Sequential(tnn.Encoder(T=200, mode="zero_expand"), layer, tnn.Readout(4000, 2))
    x = torch.ones(1, 1)
    ts.to_onnx(net, tmp_path / "net.onnx", x)
    (counts,), _ = by_onnxruntime(tmp_path / "net.onnx", x)
    ours = own_counts(net, x)[0][0]
    assert torch.equal(counts, ours)
    assert not torch.equal(counts, (layer.weight.detach().T / 0.1).floor().clamp(0, 200))


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_few_bits(bits: int, tmp_path: Path) -> None:
    net, x = of_timing(mlp, 8)
    net, x = dyadic(net), inputs_of(x)
    onto_grids(net, bits)
    frozen = ts.freeze(net, weight_bits=bits)
    ts.to_onnx(frozen, tmp_path / "net.onnx", x)
    counts, answer = by_onnxruntime(tmp_path / "net.onnx", x)
    for c, other in zip(own_counts(frozen.net, x)[0], counts, strict=True):
        assert torch.equal(c, other)
    assert torch.equal(answer, frozen(x))


@pytest.mark.parametrize("T", [1, 11, 200])
def test_spikes_in(T: int, tmp_path: Path) -> None:
    net = dyadic(spiking())
    x = te.SpikeTrain.from_dense(torch.rand(T, 3, 3, 9).lt(0.3).float())
    assert_the_same(net, x, x.to_dense(torch.float32), tmp_path)
