"""The CUDA scan on the emulator: the CPU's bits, no report of the checker, each byte moved once."""

import itertools
from typing import Any

import pytest
import torch
from harness import DTYPES, Emulator
from neuron_layers import CONSTANT, GATES, IMPULSE, TRAIN, Layer, random_layer, random_window, scan

# Neurons [B, C]: tails of the block, of the warp, of a byte of the mask, of four neurons; channels that are not a
# multiple of four, also where neurons are: parameters begin anew within four; more than one block of each kernel.
SHAPES = [(1, 1), (3, 7), (4, 6), (2, 12), (5, 36), (1, 130), (3, 172), (4, 144)]


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("source", [TRAIN, CONSTANT, IMPULSE])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("make", [random_layer, random_window])
def test_bits(checked: Emulator, make: Any, dtype: torch.dtype, source: int, residual: str | None) -> None:
    for i, (T, shape) in enumerate(itertools.product([1, 2, 4, 7, 8, 9, 16, 33, 255], SHAPES)):
        scan(checked, make(i, T, shape, dtype, source, residual), seed=i % 3, offset=i % 2)
        for name in ("currents", "residual_stored", "residual_currents"):
            if name in checked.buffers:
                assert checked.touches(name)[:2] == (1, 1), name


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_long_windows(checked: Emulator, dtype: torch.dtype, residual: str | None) -> None:
    for (i, shape), gate in itertools.product(enumerate([(3, 7), (5, 36)]), GATES):
        layer = random_layer(i, 300, shape, dtype, TRAIN, residual)
        layer.gate = gate
        layer.threshold = max(layer.threshold, 0.8)  # bfloat16 represents these counts
        scan(checked, layer, offset=i)


def test_window_traffic(checked: Emulator) -> None:
    """A float32 product is read; a byte, a count and a bit of the mask are written."""
    layer = random_window(2, 8, (16, 64), torch.float32, IMPULSE, "planes")
    scan(checked, layer)
    for name, moved, write in [("currents", 4096, False), ("residual_stored", 1024, False), ("stored", 1024, True)]:
        traffic = checked.traffic(name, write)
        assert traffic.bytes == moved
        assert traffic.sectors == traffic.least_sectors


BUFFERS = ["currents", "scale", "shift", "residual_scale", "v_init", "residual", "stored", "counts", "v"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BUFFERS)
def test_alignment(checked: Emulator, name: str, dtype: torch.dtype) -> None:
    """A single buffer is not aligned for four neurons at a time."""
    shape = (2, 8)
    for residual, (T, offset) in itertools.product(["planes", "currents"], [(3, 1), (8, 2)]):
        layer = random_layer(3, T, shape, dtype, TRAIN, residual)
        layer.scale, layer.shift, layer.residual_scale, layer.v_init = torch.randn(4, 8).unbind()
        layer.v_init = layer.v_init.clone()
        scan(checked, layer, offset=offset, shifted=[name, f"{name}_planes", f"{name}_currents"])


@pytest.mark.parametrize("T", [4, 8, 16, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic(checked: Emulator, dtype: torch.dtype, T: int) -> None:
    """Memory is moved by whole sectors, with the widest instructions that four neurons allow."""
    scale, shift, v_init = torch.randn(3, 64).unbind()
    layer = Layer(torch.randn(T, 16, 64).to(dtype), T, scale=scale, shift=shift, v_init=v_init.clone())
    N, size = 16 * 64, layer.currents.element_size()
    scan(checked, layer)
    read = checked.traffic("currents")
    assert read.bytes == T * N * size
    assert read.sectors == read.least_sectors == read.bytes // 32
    assert read.requests == T * N // (32 * 4)
    for name, bytes_out in {"stored": (T + 7) // 8 * N, "counts": N * size, "v": 4 * N, "mask": N // 8}.items():
        written = checked.traffic(name, write=True)
        assert written.bytes == bytes_out
        assert written.sectors == written.least_sectors, name


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(("channels", "v_init"), [(6, None), (6, 1), (64, 64), (64, 128)])
def test_four_neurons_to_a_thread(checked: Emulator, channels: int, v_init: int | None, window: bool) -> None:
    """Threads have four neurons each if they are aligned and no parameter wraps around among them."""
    layer = Layer(torch.zeros(8, 3072 // channels, channels), 8, window=window)
    layer.v_init = None if v_init is None else torch.zeros(v_init)
    layer.residual_scale = torch.ones(channels) if channels == 64 else None
    layer.residual = torch.zeros(1, *layer.currents.shape[1:], dtype=torch.uint8)
    scan(checked, layer)
    assert checked.traffic("residual_stored").requests == checked.counted("if_")[2] == 3072 // 128
