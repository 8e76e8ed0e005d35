"""Products with spikes, fused with their neurons, at several rates; beside them the ANN's layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tandem_ext as te

rates = pytest.mark.parametrize(
    ("rate", "kind"), [(0.02, "rate"), (0.1, "rate"), (0.25, "rate"), (0.1, "iid"), (0.25, "iid")]
)


def weights(*shape: int) -> torch.Tensor:
    fan_in = torch.Size(shape[1:]).numel()
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2 * fan_in**-0.5
    return weight.to(memory_format=torch.channels_last) if weight.dim() == 4 else weight


@torch.inference_mode()
def measure(benchmark, call):
    call()
    benchmark(call)


LINEAR = {"1x800x800": (1, 800, 800), "128x800x800": (128, 800, 800), "16x4096x4096": (16, 4096, 4096)}
linears = pytest.mark.parametrize("size", LINEAR.values(), ids=LINEAR)


@linears
@rates
def test_linear_if(benchmark, train_of, size, rate, kind):
    B, K, N = size
    train, weight = train_of(8, (B, K), rate, kind), weights(N, K)
    measure(benchmark, lambda: te.functional.linear_if(train, weight))


@pytest.mark.parametrize("T", [4, 16, 32])
def test_linear_if_steps(benchmark, train_of, T):
    train, weight = train_of(T, (128, 800), 0.1), weights(800, 800)
    measure(benchmark, lambda: te.functional.linear_if(train, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "f64"])
def test_linear_if_dtype(benchmark, train_of, dtype):
    train, weight = train_of(8, (128, 800), 0.1), weights(800, 800).to(dtype)
    measure(benchmark, lambda: te.functional.linear_if(train, weight))


@linears
def test_linear_relu(benchmark, size):
    B, K, N = size
    x, weight = torch.rand(B, K), weights(N, K)
    measure(benchmark, lambda: torch.relu(F.linear(x, weight)))


# inputs, outputs, stride, groups
CONV = {"64-64": (64, 64, 1, 1), "128-256-s2": (128, 256, 2, 1), "depthwise-64": (64, 64, 1, 64)}
convs = pytest.mark.parametrize("layer", CONV.values(), ids=CONV)


@convs
@rates
def test_conv2d_if(benchmark, train_of, layer, rate, kind):
    inputs, outputs, stride, groups = layer
    train, weight = train_of(8, (4, inputs, 32, 32), rate, kind), weights(outputs, inputs // groups, 3, 3)
    measure(benchmark, lambda: te.functional.conv2d_if(train, weight, None, stride, 1, 1, groups))


def test_conv1d_if(benchmark, train_of):
    train, weight = train_of(8, (16, 64, 256), 0.1), weights(64, 64, 5)
    measure(benchmark, lambda: te.functional.conv1d_if(train, weight, None, 1, 2))


@convs
def test_conv2d_relu(benchmark, layer):
    inputs, outputs, stride, groups = layer
    x = torch.rand(4, inputs, 32, 32).to(memory_format=torch.channels_last)
    weight = weights(outputs, inputs // groups, 3, 3)
    measure(benchmark, lambda: torch.relu(F.conv2d(x, weight, None, stride, 1, 1, groups)))


@rates
def test_linear_bn_if(benchmark, train_of, rate, kind):
    train, weight = train_of(8, (128, 800), rate, kind), weights(800, 800)
    gamma, beta = torch.full((800,), 3.0), torch.zeros(800)
    measure(benchmark, lambda: te.functional.linear_bn_if(train, weight, None, gamma, beta))


@rates
def test_conv2d_bn_if(benchmark, train_of, rate, kind):
    train, weight = train_of(8, (4, 64, 32, 32), rate, kind), weights(128, 64, 3, 3)
    gamma, beta = torch.full((128,), 3.0), torch.zeros(128)
    measure(benchmark, lambda: te.functional.conv2d_bn_if(train, weight, None, gamma, beta, 2, 1))
