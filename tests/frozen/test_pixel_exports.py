"""Networks for pixels as C and ONNX: both take counts, and of centred pixels as many of 255 after them."""

import pytest
import torch
from networks import by_onnxruntime
from test_integers import compiled
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn

pytestmark = pytest.mark.kernels


def network(**given):
    layers = tnn.Conv2d(3, 8, 3, padding=1, norm=True, timing="window", weight_bits=8), tnn.MaxPool2d(2)
    head = tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(8, 5, weight_bits=8)
    net, x = (
        nn.Sequential(tnn.Encoder(8, "pixels", **given), *layers, *head),
        torch.randint(0, 256, (9, 3, 8, 6)).byte(),
    )
    net(x)
    return ts.freeze(net.eval(), example=x), x


@pytest.mark.parametrize("given", [{}, {"mean": [0.5, 0.4, 0.3], "std": 0.25}])
def test_c_and_onnx_have_the_network_s_logits(given, tmp_path):
    frozen, x = network(**given)
    counts = torch.cat([x, torch.full_like(x, 255)], 1) if given else x
    expected = frozen(x)
    assert torch.equal(compiled(frozen, tmp_path)(counts, (5,))[1], expected)
    ts.to_onnx(frozen, tmp_path / "net.onnx", x)
    _, answers = by_onnxruntime(tmp_path / "net.onnx", counts.float())
    torch.testing.assert_close(answers[-1], expected)


def test_nir_refuses_them():
    frozen, x = network()
    with pytest.raises(ValueError, match="NIR has no pixels"):
        ts.to_nir(frozen, x)
