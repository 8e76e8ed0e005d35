"""``make bench``: a block of a spiking transformer beside its twin with ReLU, timed by pytest-benchmark.

64 samples of tokens with 128 features, counts at T = 4, four heads. The stream of currents begins with a projection;
for inference it ends in a readout of each token.
"""

from typing import Any

import pytest
import torch
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from blocks import Transformer
from training import keep_freed_memory

DIM, HEADS, T, GAIN = 128, 4, 4, 0.5
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def network(layers: Any) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"norm": True, "bias": False, "timing": "window"}
    project = layers.Linear(DIM, DIM, neurons=False, **options)
    return nn.Sequential(project, Transformer(layers, DIM, HEADS, options))


def tokens(kind: str, number: int, dtype: torch.dtype = torch.float32) -> Any:
    counts = torch.randint(T + 1, (64, number, DIM)).to(dtype)
    return counts * GAIN if kind == "ANN" else te.SpikeTrain.from_counts(counts, T, GAIN)


def step(net: nn.Module, x: Any, grad: torch.Tensor, dtype: torch.dtype) -> None:
    net.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        z = net(x)
    z = z if isinstance(z, torch.Tensor) else z.total
    z.backward(grad.to(z.dtype))


@pytest.fixture(autouse=True, scope="module")
def quiet():
    torch.set_num_threads(1)
    keep_freed_memory()


@pytest.mark.parametrize("kind", ["SNN", "ANN"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("number", [64, 196])
def test_training_step(benchmark, number, dtype, kind):
    net = network(ts.ann if kind == "ANN" else tnn).train()
    given = net, tokens(kind, number, TYPES[dtype]), torch.randn(64, number, DIM), TYPES[dtype]
    benchmark.pedantic(step, given, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("kind", ["frozen", "frozen, 8 bits", "ANN"])
@pytest.mark.parametrize("number", [64, 196])
def test_inference(benchmark, number, kind):
    x = tokens(kind, number)
    layers = ts.ann if kind == "ANN" else tnn
    net: Any = nn.Sequential(network(layers), layers.Readout(DIM, 10)).eval()
    if kind != "ANN":
        net = ts.freeze(net, example=x[:1], T=T, weight_bits=8 if "8" in kind else None)
    with torch.inference_mode():
        benchmark.pedantic(net, [x], rounds=30, warmup_rounds=3)
