"""QONNX: the package qonnx runs what to_qonnx writes, with the same counts."""

import pytest
import torch
from any_window import FIRST, counts_of, drawn, of_pixels
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.instruction import CannotLower

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.kernels


def window(**options):
    """A layer for each place, whose neurons have their own potentials, and a readout."""
    layer = tnn.Conv2d(2, 3, 3, timing="window", v_init=torch.rand(3, 4, 4))
    return nn.Sequential(layer, tnn.AvgPool2d(2, timing="window"), tnn.Flatten(), tnn.Readout(12, 4, **options)).eval()


def train(shape, T):
    return te.SpikeTrain.from_counts(torch.randint(T + 1, (3, *shape)), T)


@pytest.mark.clients
@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(30, 1000), marks=pytest.mark.slow)])
def test_qonnx_finds_the_same_counts(seeds, tmp_path):
    run = pytest.importorskip("qonnx.core.onnx_exec").execute_onnx
    model = pytest.importorskip("qonnx.core.modelwrapper").ModelWrapper
    infer = pytest.importorskip("qonnx.transformation.infer_shapes").InferShapes
    done = 0
    places = train((2, 6, 6), T=8)
    given = [(ts.freeze(window(), weight_bits=4, T=8, example=places), places), *map(drawn, seeds)]
    given += [of_pixels(first, {"mean": 0.4, "std": [0.2, 0.3, 0.25]}) for first in FIRST]
    for frozen, x in given:
        try:
            ts.to_qonnx(frozen, tmp_path / "net.onnx")
        except CannotLower as refusal:
            assert "it adds currents" in refusal.why or "sums reach" in refusal.why  # noqa: PT017
            continue
        done += 1
        graph, expected, answers = model(str(tmp_path / "net.onnx")).transform(infer()), counts_of(frozen, x), frozen(x)
        for n in range(2):
            image = x if isinstance(x, torch.Tensor) else x.counts
            found = run(graph, {"x": image[n : n + 1].float().numpy()})
            for name, counts in expected.items():
                assert torch.equal(counts[n].float(), torch.from_numpy(found[f"{name}.counts"][0])), name
            torch.testing.assert_close(torch.from_numpy(found["answer"][0]), answers[n])
    assert done > len(seeds) / 4


def test_datatypes_and_nodes(tmp_path):
    frozen = ts.freeze(window(), weight_bits=4, T=8, example=train((2, 6, 6), 8))
    ts.to_qonnx(frozen, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    types = {a.tensor_name: a.quant_parameter_tensor_names[0].value for a in graph.quantization_annotation}
    assert types["x"] == types["n0.counts"] == types["n1.counts"] == "UINT4"
    assert types["n0.weight"] == types["n3.weight"] == "INT4"
    assert [node.op_type for node in graph.node].count("MultiThreshold") == 2
    assert all(i.type.tensor_type.shape.dim[0].dim_value == 1 for i in graph.input)


def test_sums_below_2_to_24_are_written(tmp_path):
    net = nn.Sequential(tnn.Encoder(255, "events"), tnn.Readout(288, 3)).eval()
    net[1].weight.data.fill_(1.0)
    ts.to_qonnx(ts.freeze(net, weight_bits=8, T=255, example=train((288,), 255)), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").exists()


def test_what_hardware_cannot_hold_is_refused(tmp_path):
    layer = tnn.Linear(700, 2, timing="window", threshold=1.0)
    layer.weight.data.fill_(1.0)
    frozen = ts.freeze(nn.Sequential(layer, tnn.Readout(2, 2)), weight_bits=8, T=255, example=train((700,), 255))
    with pytest.raises(CannotLower, match="0: its sums reach 22669500"):
        ts.to_qonnx(frozen, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
