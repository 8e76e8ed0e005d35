"""``make bench``: the cases of ``tandem-snn bench`` and ops without products, timed by pytest-benchmark.

These files are not called test_*.py: speed is measured here and asserted nowhere.
"""

from __future__ import annotations

import pytest
import torch

import tandem_ext as te
from tandem_snn.bench.problems import KINDS, rate_of


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train_of(benchmark):
    """Makes a train; its rate and nonzero nibbles per byte go into the benchmark's record."""

    def make(T: int, shape: tuple[int, ...], rate: float, kind: str = "rate") -> te.SpikeTrain:
        dense = KINDS[kind](T, shape, rate, torch.Generator().manual_seed(0))
        train = te.SpikeTrain.from_dense(dense.float())
        made = rate_of(train)
        benchmark.extra_info |= {"rate": round(made.spikes, 4), "nibbles": round(made.nibbles, 4)}
        return train

    return make


@pytest.fixture
def throughput(benchmark):
    """Measures a call, and records the bytes it has to read and write at least."""

    def measure(call, bytes_moved: int):
        with torch.inference_mode():
            call()
            benchmark(call)
        if benchmark.stats is not None:
            benchmark.extra_info["GB/s"] = round(bytes_moved / benchmark.stats["median"] / 1e9, 2)

    return measure
