"""convert takes the ReLU networks of torchvision and timm, and says what stops it in the others."""

from __future__ import annotations

import time

import pytest
import torch
from convertible import MODELS, NOT, make
from torch import nn

import tandem_snn as ts
from tandem_snn.convert import CannotConvert

QUICK = ("torchvision squeezenet1_1", "timm regnetx_002", "timm mobilenetv2_050")


def model(name: str) -> nn.Module:
    pytest.importorskip(name.split()[0], reason=f"{name.split()[0]} is not installed")
    return make(name)


@pytest.mark.filterwarnings("ignore:convert. .* takes no part in evaluation")
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n not in QUICK)])
def test_models(name: str) -> None:
    net, x = model(name), torch.rand(2, 3, MODELS[name], MODELS[name])
    snn = ts.convert(net, T=4, example=x[:1])
    used = {id(p) for p in snn.parameters()}
    assert used <= {id(p) for p in net.parameters()}
    assert used == {id(p) for p in net.parameters()} or name in ("torchvision googlenet", "torchvision inception_v3")
    net.eval()
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(
            ts.to_ann(snn.eval())(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )
    answer = snn.train()(torch.rand(4, 3, MODELS[name], MODELS[name]))
    answer.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in snn.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT)
def test_what_stops_the_others(name: str) -> None:
    with pytest.raises(CannotConvert, match=NOT[name]):
        ts.convert(model(name), T=4, example=torch.rand(1, 3, 224, 224))


@pytest.mark.clients
def test_resnet50_converts_in_ten_seconds() -> None:
    """With an example and without; process time, in which other programs have no part."""
    net = model("torchvision resnet50")
    for options in {"example": torch.rand(1, 3, 224, 224)}, {}:
        start = time.process_time()
        ts.convert(net, T=8, **options)
        assert time.process_time() - start < 10
