"""``make bench``: the cases of ``tandem-snn bench``, each of this package's ways and the ANN by itself, and ops without
products, whose floor is the memory's bandwidth; timed by pytest-benchmark.

This file is not called test_*.py: speed is measured here and asserted nowhere.
"""

from functools import lru_cache

import pytest
import torch

import tandem_ext as te
from tandem_snn.bench.cases import CASES, Workload
from tandem_snn.bench.problems import KINDS, rate_of

WAYS = ("frozen", "tandem", "ANN")
TIMED = [(c.name, way) for c in CASES.values() if c.quantity == "time" for way in WAYS if way in c.rivals]
OPS = torch.ops.tandem
NEURONS = {"small": (16, 1024), "large": (256, 4096)}
sizes = pytest.mark.parametrize("shape", NEURONS.values(), ids=NEURONS)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train_of(benchmark):
    """Makes a train; its rate and nonzero nibbles per byte go into the benchmark's record."""

    def make(T: int, shape: tuple[int, ...], rate: float) -> te.SpikeTrain:
        dense = KINDS["rate"](T, shape, rate, torch.Generator().manual_seed(0))
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


@lru_cache(maxsize=1)
def workload(name: str) -> Workload:
    return CASES[name].build()


@pytest.mark.parametrize(("name", "way"), TIMED)
def test_case(benchmark, name, way):
    made = workload(name)
    benchmark.extra_info["rates"] = {layer: round(rate.spikes, 4) for layer, rate in made.rates.items()}
    run = made.candidates[way]().run
    run(0)
    benchmark(run, 1)


def currents(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.5).to(dtype)


def mask(n: int) -> torch.Tensor:
    return torch.randint(0, 256, ((n + 7) // 8,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@sizes
@pytest.mark.parametrize("T", [4, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["f32", "bf16", "f64"])
def test_if_scan(throughput, shape, T, dtype):
    x = currents(T, *shape, dtype=dtype)
    throughput(lambda: te.functional.if_scan(x), x.nbytes + x[0].numel() * -(-T // 8))


@sizes
def test_if_scan_per_channel(throughput, shape):
    x = currents(8, *shape)
    scale, shift = currents(shape[1]) + 1, currents(shape[1])
    throughput(lambda: te.functional.if_scan(x, scale=scale, shift=shift), x.nbytes + x[0].numel())


@sizes
def test_if_scan_train(throughput, shape):
    """With the counts and the gate that the backward pass needs."""
    x = currents(8, *shape)
    call = lambda: OPS.if_scan(x, None, None, None, None, None, 8, 1.0, 1.0, "relu", True, False)  # noqa: E731
    throughput(call, x.nbytes + x[0].numel() * 5 + x[0].numel() // 8)


@sizes
@pytest.mark.parametrize("source", [te.ConstantInput, te.ImpulseInput], ids=["constant", "impulse"])
@pytest.mark.parametrize("T", [8, 16])
def test_direct_input(throughput, shape, source, T):
    x = source(currents(*shape), T)
    throughput(lambda: te.functional.if_scan(x), x.x.nbytes + x.x.numel() * -(-T // 8))


@sizes
@pytest.mark.parametrize("T", [8, 16])
def test_pack(throughput, shape, T):
    x = (currents(T, *shape) > 0.5).float()
    throughput(lambda: OPS.pack(x), x.nbytes + x[0].numel() * -(-T // 8))


@sizes
@pytest.mark.parametrize("T", [8, 16])
def test_unpack(throughput, train_of, shape, T):
    train = train_of(T, shape, 0.1)
    throughput(
        lambda: OPS.unpack(train.planes, T, torch.float32), train.planes.nbytes + 4 * T * train.planes[0].numel()
    )


@sizes
@pytest.mark.parametrize("T", [8, 16])
def test_counts(throughput, train_of, shape, T):
    train = train_of(T, shape, 0.1)
    throughput(lambda: OPS.counts(train.planes, torch.float32), train.planes.nbytes + 4 * train.planes[0].numel())


@sizes
def test_gate_grad(throughput, shape):
    grad = currents(*shape)
    bits = mask(grad.numel())
    throughput(lambda: OPS.gate_grad(grad, bits, 1.0), 2 * grad.nbytes + bits.nbytes)


products = pytest.mark.parametrize("shape", [(128, 800), (32, 128, 16, 16)], ids=["linear", "conv"])


def channels_last(*shape: int) -> torch.Tensor:
    return currents(*shape).contiguous(
        memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format
    )


@products
def test_bn_statistics(throughput, shape):
    product = channels_last(*shape)
    throughput(lambda: OPS.bn_statistics(product, 1.0, None, None, None, 1e-5), product.nbytes)


@products
def test_bn_grad(throughput, shape):
    grad, product = (channels_last(*shape) for _ in range(2))
    bits, channel = mask(grad.numel()), torch.ones(shape[1])
    call = lambda: OPS.bn_grad(grad, bits, product, channel, channel, None, channel, 1e-5, 1.0)  # noqa: E731
    throughput(call, 5 * grad.nbytes + 2 * bits.nbytes)  # both inputs twice: once for the sums, once for the result
