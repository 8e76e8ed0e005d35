"""ONNX: the exported step, run by onnxruntime, gives the same spike counts and the same answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import conv, images, lif, line, mlp, own_counts, projection, residual, trained
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
T = 8


def by_onnxruntime(path: Path, x: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Counts of each layer with neurons, and the answer after each step."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    images = facts["input"] != "events"
    dense = x if images else x.to_dense(torch.float32)
    batch = len(dense) if images else dense.shape[1]
    state = {
        i.name: np.zeros([batch, *i.shape[1:]], np.float32)
        for i in session.get_inputs()
        if i.name.endswith((".v", ".counts"))
    }
    outputs = [o.name for o in session.get_outputs()]
    counts: dict[str, Tensor] = {}
    answers = []
    for t in range(int(facts["T"])):
        given = {"x": (dense if images else dense[t]).numpy(), "step": np.array([t], np.float32), **state}
        found = dict(zip(outputs, session.run(outputs, given), strict=True))
        state = {name: found[f"{name}.next"] for name in state}
        for name in (name for name in outputs if name.endswith(".spikes")):
            counts[name] = counts.get(name, 0) + torch.from_numpy(found[name])
        answers.append(torch.from_numpy(found["answer"]))
    return counts, answers


@torch.no_grad()
def dyadic(net: nn.Module) -> nn.Module:
    """Weights and batch norms with which float32 sums are exact in any order."""
    for layer in net.modules():
        if isinstance(layer, (tnn.SpikingLayer, tnn.Readout)):
            layer.weight.copy_((layer.weight * 128).round() / 64)
            if layer.bias is not None:
                layer.bias.copy_((layer.bias * 64).round() / 64)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.copy_((layer.running_mean * 16).round() / 16)
            layer.running_var.fill_(1.0 - layer.eps)
            layer.weight.copy_((layer.weight * 2).round() / 2)
    return net.eval()


def inputs_of(x: Tensor) -> Tensor:
    return (x * 16).round() / 16


def average() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.AvgPool2d(2),
        tnn.Encoder(T, gain=0.5),
        tnn.Conv2d(1, 6, 3, padding=(2, 1), gain=0.5, threshold=0.5),
        tnn.AvgPool2d(3, 2, 1),
        tnn.Flatten(),
        tnn.Readout(6 * 12, 3),
    )
    return net, torch.rand(4, 1, 12, 10)


@pytest.mark.parametrize("make", [mlp, lif, conv, residual, projection, line, average])
def test_every_layer(make: Any, tmp_path: Path) -> None:
    net, x = make()
    net, x = dyadic(trained(net, x)), inputs_of(x)
    frozen = ts.freeze(net)
    answer = frozen(x)
    ts.to_onnx(frozen, tmp_path / "net.onnx")
    counts, answers = by_onnxruntime(tmp_path / "net.onnx", x)
    ours, _ = own_counts(net, x)
    assert len(ours) == len(counts)
    for c, other in zip(ours, counts.values(), strict=True):
        assert c.sum() > 0
        assert (c != other).float().mean() <= (1e-3 if make is lif else 0)  # λ = 0.9 is not dyadic
    for t in range(frozen.T):
        torch.testing.assert_close(answers[t], frozen.step(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answers[-1], answer, atol=1e-4, rtol=1e-4)


def digits(T: int) -> tuple[nn.Module, Tensor]:
    """A network with weights in 64ths, whose float32 sums are exact in any order, and handwritten digits."""
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 8, 3, padding=1, threshold=0.5, gain=0.5),
        tnn.Conv2d(8, 12, 3, stride=2, padding=1, threshold=2.0),
        tnn.Flatten(),
        tnn.Linear(12 * 16, 32, threshold=0.5),
        tnn.Readout(32, 10),
    )
    return dyadic(net), images(1797)


def test_real_images_to_the_same_counts(tmp_path: Path) -> None:
    net, x = digits(T)
    ts.to_onnx(net, tmp_path / "net.onnx", x)
    counts, answers = by_onnxruntime(tmp_path / "net.onnx", x)
    ours, answer = own_counts(net, x)
    for c, other in zip(ours, counts.values(), strict=True):
        assert c.sum() > 0
        assert torch.equal(c, other)
    assert torch.equal(answers[-1], answer)


@torch.no_grad()
def onto_grids(net: nn.Module, bits: int) -> None:
    """Weights of few bits, whose steps are powers of two."""
    largest = 2 ** (bits - 1) - 1
    for layer in net.modules():
        if isinstance(layer, (tnn.SpikingLayer, tnn.Readout)):
            q = torch.randint(-largest, largest + 1, layer.weight.shape)
            q.view(len(q), -1)[:, 0] = largest
            layer.weight.copy_(q * 2.0 ** (2 - bits))


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_weights_of_few_bits(bits: int, tmp_path: Path) -> None:
    """The file holds the integers; where the steps are powers of two, sums are exact and the counts the same."""
    net, x = digits(T)
    onto_grids(net, bits)
    frozen = ts.freeze(net, weight_bits=bits)
    expected = frozen(x)
    ts.to_onnx(frozen, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    kind = onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8
    weights = {t.name: t for t in model.graph.initializer if t.name.endswith(".weight")}
    assert [t.data_type for t in weights.values()] == [kind] * 4
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 4
    counts, answers = by_onnxruntime(tmp_path / "net.onnx", x)
    for c, other in zip(own_counts(frozen.net, x)[0], counts.values(), strict=True):
        assert torch.equal(c, other)
    assert torch.equal(answers[-1], expected)


def test_spikes_in(tmp_path: Path) -> None:
    net = dyadic(nn.Sequential(tnn.Conv2d(2, 4, 3), tnn.MaxPool2d(2), tnn.Flatten(), tnn.Readout(4 * 9, 3)))
    x = te.SpikeTrain.from_dense(torch.rand(11, 3, 2, 8, 8).lt(0.3).float())
    frozen = ts.freeze(net)
    frozen(x)
    ts.to_onnx(frozen, tmp_path / "net.onnx")
    counts, answers = by_onnxruntime(tmp_path / "net.onnx", x)
    assert torch.equal(next(iter(counts.values())), own_counts(net, x)[0][0])
    for t in range(11):
        torch.testing.assert_close(answers[t], frozen.step(x.to_dense(torch.float32)[t]))


def test_a_loaded_network_knows_its_shapes(tmp_path: Path) -> None:
    net, x = digits(T)
    frozen = ts.freeze(net)
    frozen(x)
    frozen.save(tmp_path / "net.tandem")
    ts.to_onnx(ts.load_frozen(tmp_path / "net.tandem"), tmp_path / "loaded.onnx")
    ts.to_onnx(frozen, tmp_path / "net.onnx")
    assert (tmp_path / "loaded.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()


def test_errors(tmp_path: Path) -> None:
    net, x = digits(T)
    with pytest.raises(ValueError, match="x: expected a batch of inputs"):
        ts.to_onnx(ts.freeze(net), tmp_path / "net.onnx")
    for layers, message in (
        ([tnn.Linear(64, 4, gate="resu"), tnn.Readout(4, 2)], "resu"),
        ([tnn.Linear(64, 4)], "Readout"),
    ):
        with pytest.raises(ValueError, match=message):
            ts.to_onnx(nn.Sequential(tnn.Encoder(T), tnn.Flatten(), *layers), tmp_path / "net.onnx", x)
    conv, mean = tnn.Conv2d(1, 2, 3), tnn.AdaptiveAvgPool2d(4)
    uneven = nn.Sequential(tnn.Encoder(T), conv, mean, tnn.Flatten(), tnn.Readout(32, 2))
    with pytest.raises(ValueError, match="windows of different sizes"):
        ts.to_onnx(uneven, tmp_path / "net.onnx", x)
    analog = nn.Sequential(tnn.Encoder(T), tnn.Flatten(), tnn.Linear(64, 4), tnn.Linear(4, 4), tnn.Readout(4, 2))
    analog[3].analog = True
    with pytest.raises(ValueError, match="analog"):
        ts.to_onnx(analog, tmp_path / "net.onnx", x)
    assert not list(tmp_path.iterdir())
