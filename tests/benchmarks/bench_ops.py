"""``make bench``: ops without products, whose floor is the memory's bandwidth, timed by pytest-benchmark.

This file is not called test_*.py: speed is measured here and asserted nowhere.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from problems import rate_coded
from torch import Tensor

import tandem_ext as te

OPS = torch.ops.tandem
GENERATOR = torch.Generator().manual_seed(0)
NEURONS = ((16, 1024), (256, 4096))
ACTIVITIES = ((128, 800), (32, 128, 16, 16))  # channels-last
Inputs = Callable[..., tuple[Any, ...]]  # of a shape and T


def real(shape: Sequence[int], *T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    made = (torch.randn(*T, *shape, generator=GENERATOR) * 0.5).to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made


def bits(shape: Sequence[int]) -> Tensor:
    return torch.randint(0, 256, (torch.Size(shape).numel() // 8,), dtype=torch.uint8, generator=GENERATOR)


def planes(shape: Sequence[int], T: int) -> Tensor:
    return te.planes.pack(rate_coded(T, shape, 0.1, GENERATOR))


def case(name: str, op: Callable[..., object], inputs: Inputs, moved: float, T: int = 8, shapes: Any = NEURONS) -> Any:
    """moved: the bytes a neuron that the op has to read and write at least."""
    return [pytest.param(op, inputs, moved, T, shape, id=f"{name}, T={T}, {shape}") for shape in shapes]


def scanned(x: Tensor, scale: Tensor, shift: Tensor, T: int) -> object:
    """With the counts and the gate that the backward pass needs."""
    return OPS.if_scan(x, T, 1.0, 1.0, "relu", "step", True, False, scale, shift)


def normalised(grad: Tensor, product: Tensor, gate: Tensor, channel: Tensor) -> object:
    return OPS.bn_grad(grad, gate, product, channel, channel, None, channel, 1e-5, 1.0)


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}
SCAN = te.functional.if_scan
CASES = [
    *(one for T in (4, 8, 16) for name, dtype in DTYPES.items() for one in case(
        f"if_scan {name}", SCAN, lambda shape, T, dtype=dtype: (real(shape, T, dtype=dtype),),
        T * dtype.itemsize + -(-T // 8), T)),
    *case("if_scan, training", partial(scanned, T=8),
          lambda shape, T: (real(shape, T), real(shape[1:]) + 1, real(shape[1:])), 4 * 8 + 5 + 1 / 8),
    *(one for T in (8, 16) for one in (
        *case("constant", SCAN, lambda shape, T: (te.ConstantInput(real(shape), T),), 4 + T // 8, T),
        *case("impulse", SCAN, lambda shape, T: (te.ImpulseInput(real(shape), T),), 4 + T // 8, T),
        *case("pack", OPS.pack, lambda shape, T: ((real(shape, T) > 0.5).float(),), 4 * T + T // 8, T),
        *case("unpack", partial(OPS.unpack, T=T, dtype=torch.float32), lambda *of: (planes(*of),), 4 * T + T // 8, T),
        *case("counts", partial(OPS.counts, dtype=torch.float32), lambda *of: (planes(*of),), 4 + T // 8, T))),
    *case("gate_grad", partial(OPS.gate_grad, threshold=1.0), lambda shape, T: (real(shape), bits(shape)), 8 + 1 / 8),
    *case("bn_statistics", lambda u: OPS.bn_statistics(u, 1.0, None, None, None, 1e-5), lambda shape, T: (real(shape),),
          4, shapes=ACTIVITIES),
    # It reads both inputs twice: once for the sums, once for the result.
    *case("bn_grad", normalised, lambda shape, T: (real(shape), real(shape), bits(shape), torch.ones(shape[1])),
          20 + 2 / 8, shapes=ACTIVITIES),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "moved", "T", "shape"), CASES)
def test_op(benchmark, op, inputs, moved, T, shape):
    torch.set_num_threads(1)
    given = inputs(shape, T)
    with torch.inference_mode():
        op(*given)
        benchmark(op, *given)
    if benchmark.stats is not None:
        benchmark.extra_info["GB/s"] = round(moved * torch.Size(shape).numel() / benchmark.stats["median"] / 1e9, 2)
