"""Logits are exact sums of integers, rounded in a stated order: the same bits everywhere."""

import sys
from pathlib import Path

import child
import pytest
import torch
import torch.nn.functional as F
from networks import assert_frozen_is, trained
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_ext.rule import fixed_point

sys.path.append(str(Path(__file__).parents[1] / "data"))
import make_networks

LOGITS = {  # for the test digits, and for generated images
    "counts": [
        "3833a8fccac537af67fc93e75bed88bd64da351e6fae5408088f3f699ccf5ad0",
        "43430aabc6651fe7144a5a5d25904e0ece3cc7fec733c22d85d033ecab7687dd",
    ],
    "pixels": [
        "5b481376a469e29c5bdddb8c85f217018c88d18f92cccef0e07b19a83c22e728",
        "ef2470e091057db24adb68b8010758d06e53e59ea584287588c829b0258278b8",
    ],
}


def hashes():
    """Of the logits of the committed networks."""
    images = make_networks.digits()[0][1347:], make_networks.generated()
    nets = {name: ts.load(file) for name, file in make_networks.FILES.items()}
    return [make_networks.digest(make_networks.logits(name, net, x)) for name, net in nets.items() for x in images]


@pytest.mark.kernels
@pytest.mark.parametrize("environment", [
    {}, {"TANDEM_CPU_CAPABILITY": "v3", "ATEN_CPU_CAPABILITY": "avx2"},
    {"TANDEM_CPU_CAPABILITY": "default", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"},
], ids=["best", "avx2", "sse2"])  # fmt: skip
def test_committed_networks_have_the_same_logits_on_every_machine(environment):
    pytest.importorskip("sklearn")
    try:
        found = child.run("-c", "import test_readouts as t; print(*t.hashes())", **environment).split()
    except AssertionError as error:
        if "TANDEM_CPU_CAPABILITY" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[-1])
    assert found == LOGITS["counts"] + LOGITS["pixels"]


def heads(K, bits, dtype):
    """Readouts behind neurons, behind mean counts, and for each pixel."""
    pools = tnn.AdaptiveAvgPool2d(1), tnn.AdaptiveAvgPool2d((2, 3)), tnn.AvgPool2d(3, 2, 1, spiking=False)
    heads = [[tnn.Flatten(), tnn.Readout(K * 63, 5, weight_bits=bits)]]
    for pool, places in zip(pools, (1, 6, 20), strict=True):
        heads.append([pool, tnn.Flatten(), tnn.Readout(K * places, 5, weight_bits=bits)])
    heads.append([tnn.ReadoutConv2d(K, 4, (2, 3), padding="same", groups=2, bias=False, weight_bits=bits)])
    heads.append([tnn.AdaptiveAvgPool2d((3, 5)), tnn.ReadoutConv2d(K, 4, 3, 2, 1, weight_bits=bits)])
    return [nn.Sequential(*head).to(dtype) for head in heads]


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("by_channel", [False, True])
@torch.no_grad()
def test_frozen_networks_files_streams_and_any_batch_have_the_layers_logits(dtype, bits, by_channel, timing, tmp_path):
    threads = torch.get_num_threads()
    for head in heads(6, bits, dtype):
        threshold = torch.rand(6) + 0.5 if by_channel else None
        layer = tnn.Conv2d(2, 6, 3, padding=1, timing=timing, threshold=threshold).to(dtype)
        net, x = nn.Sequential(layer, head), te.SpikeTrain.from_dense((torch.rand(8, 128, 2, 7, 9) < 0.4).to(dtype))
        expected = trained(net, x).eval()(x)
        assert expected.dtype == dtype
        for rows in (slice(1), slice(7), slice(121, 128)):
            assert_frozen_is(net, x[rows], tmp_path)
            assert torch.equal(net(x[rows]), expected[rows])
        try:
            torch.set_num_threads(3 - threads if threads < 3 else 1)
            assert torch.equal(net(x), expected)
            assert torch.equal(ts.freeze(net, T=8)(x), expected)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("T", [7, 255])
@torch.no_grad()
def test_a_readout_is_the_rounded_sum_of_integers(T, timing):
    """Of weights of any sizes, with Python's integers; the mean counts of 7 x 9 pixels too."""
    for trial in range(20):
        K, N = (int(n) for n in torch.randint(1, 40, (2,)))
        weight = torch.randn(N, K) * 10.0 ** torch.randint(-9, 9, (N, 1)) * 10.0 ** (trial % 5 * torch.rand(N, K))
        gain, bias = float(torch.rand(())), torch.randn(N)
        counts = torch.randint(0, T + 1, (3, K, 7, 9))
        x = te.SpikeTrain.from_counts(counts, T, gain)
        x = x if timing == "window" else te.SpikeTrain.from_dense(x.to_dense(), gain)
        for pool, n, sums in (
            (tnn.AdaptiveAvgPool2d(1), 63, counts.sum((2, 3))), (nn.Identity(), 1, counts[:, :, 0, 0])
        ):  # fmt: skip
            layer = tnn.Readout(K, N)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
            read = x if n == 63 else x.replace(stored=x.stored[..., 0, 0], counts=None)
            units = [[int(w * 2**60) for w in row] for row in fixed_point(weight).tolist()]
            exact = [[sum(map(int.__mul__, row, c)) / (n * 2**60) for row in units] for c in sums.tolist()]
            expected = torch.tensor(exact, dtype=torch.float64).float() * gain + bias
            assert torch.equal(layer(tnn.Flatten()(pool(read)) if n == 63 else read), expected)


@pytest.mark.kernels
def test_weights_in_units_are_the_kernels():
    """rule.fixed_point, by one-hot counts."""
    for trial in range(200):
        N, K = (int(n) for n in torch.randint(1, 30, (2,)))
        size = 10.0 ** torch.randint(-30, 30, (N, 1)) * 10.0 ** (torch.rand(N, K) * (trial % 10))
        weight = (torch.randn(N, K) * size).clamp(-3e38, 3e38)
        weight[0, 0] = torch.tensor([0.0, 1.0, torch.inf, torch.nan])[trial % 4]
        weight = weight.to([torch.float32, torch.bfloat16, torch.float16][trial % 3])
        one_hot = torch.eye(K, dtype=torch.uint8).unsqueeze(0)
        found = torch.ops.tandem.window_product(one_hot, 1, weight, (), (), (), 1, "window").T
        torch.testing.assert_close(fixed_point(weight), found.double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_kernels_answers_have_the_same_bits(dtype, bits, timing, monkeypatch):
    for head in heads(6, bits, dtype):
        edge = torch.randint(0, 9, (4, 6, 7, 9)).to(dtype).requires_grad_()
        x = te.SpikeTrain.from_counts(edge, 8, 0.3)
        x = x.replace(stored=x.stored_as(timing), timing=timing)
        found = []
        for kernels in (True, False):
            monkeypatch.setattr(tnn.readouts, "has_kernels", lambda *_, here=kernels: here)
            y = head(x)
            torch.testing.assert_close(head(x).detach(), y.detach(), rtol=0, atol=0)
            found.append([y.detach(), *torch.autograd.grad(y.sum(), [edge, *head.parameters()])])
        assert torch.equal(found[0][0], found[1][0])
        for gradient, other in zip(found[0][1:], found[1][1:], strict=True):  # in the order of torch's products
            torch.testing.assert_close(gradient, other, rtol=2e-2 if dtype != torch.float32 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("bits", [None, 3])
def test_gradients_are_the_ann_s(bits, timing):
    for head in heads(6, bits, torch.float32):
        dense = (torch.rand(8, 4, 6, 7, 9) < 0.4).float()
        edge = dense.sum(0).requires_grad_()
        x = te.SpikeTrain.from_dense(dense).replace(gain=0.3, counts=edge)
        y = head(x.replace(stored=x.stored_as(timing), timing=timing))
        weights = torch.randn_like(y)
        found = torch.autograd.grad((y * weights).sum(), [edge, *head.parameters()])
        layer = head[-1]
        ann = layer.used_weight().detach().requires_grad_(), *[p for n, p in layer.named_parameters() if n == "bias"]
        z = head[:-1](edge * 0.3)
        z = F.linear(z, *ann) if isinstance(layer, tnn.Readout) else layer._conv_forward(z, ann[0], layer.bias)
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
        expected = torch.autograd.grad((z * weights).sum(), [edge, *ann])
        for gradient, other in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


@pytest.mark.kernels
def test_means_of_a_layer_whose_gain_is_one_tensor():
    layer = tnn.Conv1d(3, 8, 1, timing="window", threshold=0.4, gain=torch.tensor(0.37))
    pool = tnn.AvgPool1d(4, spiking=False)
    net = nn.Sequential(tnn.Encoder(8), layer, pool, tnn.Flatten(), tnn.Readout(8, 3)).eval()
    x = torch.rand(5, 3, 4)
    assert torch.equal(ts.freeze(net, example=x)(x), net(x))
