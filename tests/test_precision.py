"""torch.set_float32_matmul_precision: how a GPU multiplies float32 weights. On the CPU it changes nothing."""

import os

import pytest
import torch
from cases import assert_same, train

import tandem_ext as te

PRECISIONS = ("highest", "high", "medium")


@pytest.fixture(params=PRECISIONS)
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def multiplied(weight, precision, device):
    """What is multiplied in place of the weight: the sum of its first two bfloat16, or the first of them."""
    emulated = "emulated" in os.environ.get("TANDEM_LIBRARY", "")
    if precision == "highest" or not (emulated or device.type == "cuda"):
        return weight
    first = weight.bfloat16().float()
    return first + (weight - first).bfloat16().float() if precision == "high" else first


@pytest.mark.parametrize("train_mode", [False, True])
def test_products_follow_it(precision, train_mode, device):
    x = train(8, 4, 6, rate=0.5, device=device)
    weight = (torch.randint(-(2**19), 2**19, (16, 6), device=device) / 2**18).requires_grad_(train_mode)
    exact = multiplied(weight.detach(), precision, device)
    got, v = te.functional.linear_if(x, weight, return_v=True)
    assert_same((got, v), te.reference.linear_if(x, exact, return_v=True))
    image = te.SpikeTrain(x.planes.view(1, 4, 6, 1, 1), 8)
    got, w = te.functional.conv2d_if(image, weight.view(16, 6, 1, 1), return_v=True)
    assert torch.equal(v, w.flatten(1))


def test_compiled_layers_follow_a_change():
    seen = []

    def backend(graph, _):
        seen.extend(node.args[3] for node in graph.graph.nodes if node.target is torch.ops.tandem.linear_if.default)
        return graph

    layer = torch.compile(lambda x, weight: te.functional.linear_if(x, weight).counts, backend=backend, fullgraph=True)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            layer(train(8, 2, 3), torch.ones(4, 3))
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest", "high"]


def test_torchs_newer_setting():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert te.functional.products.float32_precision() == "high"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert te.functional.products.float32_precision() == "highest"
