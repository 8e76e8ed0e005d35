"""Frozen networks: a whole window in one call, with every step's readout, and one step of a stream.

Together they have every instruction of a program: direct and impulse inputs, products, maxima, flattening, padding,
currents of a projection, readouts.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tandem_snn as ts
import tandem_snn.nn as tnn


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return ts.create_model("FC800-FC800", shape=(784,), classes=10, T=8), (784,)


def conv() -> tuple[nn.Module, tuple[int, ...]]:
    return ts.create_model("32C3-64C3s2-MP2-128C3-FC256", shape=(1, 28, 28), classes=10, T=8), (1, 28, 28)


def branches() -> tuple[nn.Module, tuple[int, ...]]:
    """A projection, a kernel of even size, and a mean over space before the readout."""
    body = nn.Sequential(tnn.Conv2d(32, 64, 3, stride=2, padding=1, norm=True), tnn.Conv2d(64, 64, 3, padding=1))
    net = nn.Sequential(
        tnn.Encoder(T=8, mode="zero_expand"),
        tnn.Conv2d(3, 32, 3, padding=1, norm=True),
        tnn.Conv2d(32, 32, 2, padding="same", norm=True),
        tnn.Residual(body, tnn.Conv2d(32, 64, 1, stride=2, norm=True)),
        tnn.AdaptiveAvgPool2d(1),
        tnn.Flatten(),
        tnn.Readout(64, 10),
    )
    return net, (3, 32, 32)


networks = pytest.mark.parametrize("make", [mlp, conv, branches])


def frozen_of(benchmark, make, B: int, weight_bits: int | None = None) -> tuple[ts.FrozenNetwork, torch.Tensor]:
    """The network, whose batch norms have seen data, and a batch; its firing rates go into the benchmark's record."""
    torch.manual_seed(0)
    net, shape = make()
    net(torch.rand(32, *shape))
    frozen, x = ts.freeze(net, weight_bits), torch.rand(B, *shape)
    rates = ts.measure.firing_rates(frozen.net, x)
    benchmark.extra_info["rates"] = {name: round(rate, 4) for name, rate in rates.items()}
    return frozen, x


@networks
@pytest.mark.parametrize("B", [1, 16])
def test_window(benchmark, make, B):
    frozen, x = frozen_of(benchmark, make, B)
    frozen(x)
    benchmark(frozen, x)


@networks
def test_window_of_few_bits(benchmark, make):
    frozen, x = frozen_of(benchmark, make, 16, weight_bits=8)
    frozen(x)
    benchmark(frozen, x)


@networks
def test_every_step(benchmark, make):
    frozen, x = frozen_of(benchmark, make, 16)
    frozen.readouts(x)
    benchmark(frozen.readouts, x)


@networks
def test_step(benchmark, make):
    frozen, x = frozen_of(benchmark, make, 1)
    frozen.step(x)
    benchmark(frozen.step, x)
