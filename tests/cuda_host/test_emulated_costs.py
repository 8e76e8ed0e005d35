"""What an mma of a product costs in the loop over the depth: the figures of tests/gpu/predictions.py, counted."""

import pytest
import torch
from gpu.predictions import KERNELS, STEP, Kernel
from harness import ARCH, Emulator
from neuron_layers import IMPULSE, Layer, pack
from products import Conv, layer_of

CONV = Conv((32, 32), kernel=(2, 2), stride=(2, 2))  # of 256 pixels


def counted(emulator: Emulator, kernel: Kernel, T: int, window: bool, digits: int, C: int) -> list[int]:
    """Of a convolution that fills the tiles, on all of whose multiprocessors."""
    g, N = torch.Generator().manual_seed(0), 2 * kernel.outputs
    weight = torch.randn(N, 2, 2, C, generator=g).to({1: torch.int8, 2: torch.float16, 3: torch.float32}[digits])
    counts = torch.randint(0, T + 1, (1, 1, *CONV.size, C), generator=g, dtype=torch.uint8)
    stored = counts if window else pack(torch.rand(T, 1, *CONV.size, C, generator=g) < 0.3)
    layer = Layer(torch.zeros(CONV.pixels, N), T, IMPULSE, window=window).neuron()
    blocks = 2 * CONV.pixels // kernel.pixels
    emulator.card(blocks, (64 if ARCH == "75" else 164) * 1024)
    emulator.begin()
    emulator.launch("run", layer=layer_of(emulator, CONV, stored, weight, layer.fields))
    instructions, mma, _, waits = emulator.counted("window_product" if window else "product_if")
    shared = [emulator.traffic("shared dynamic shared memory", write).bytes for write in (False, True)]
    cache = emulator.traffic("digits").bytes + emulator.traffic("spikes").bytes
    return [mma // 4 if ARCH == "75" else mma, sum(shared), cache, instructions, waits]


def of_an_mma(emulator: Emulator, kernel: Kernel, T: int, window: bool, digits: int) -> list[float]:
    """Of that which a twice as deep layer has more."""
    few, many = (counted(emulator, kernel, T, window, digits, C) for C in (64, 128))
    mma, *costs = (b - a for a, b in zip(few, many, strict=True))
    return [cost / mma for cost in costs]


@pytest.mark.parametrize(("way", "tile", "digits"), [
    (way, tile, digits)
    for way, tiles in KERNELS.items() for tile, kernel in tiles.items() for digits in (2, 3)[: len(kernel.shared)]
])  # fmt: skip
def test_predictions_have_what_is_counted(checked: Emulator, way: str, tile: str, digits: int) -> None:
    kernel = KERNELS[way][tile]
    shared, cache, instructions, waits = of_an_mma(checked, kernel, 8, way != STEP, digits)
    assert shared == pytest.approx(kernel.shared[digits - 2])
    assert cache == pytest.approx(kernel.cache[digits - 2])
    if ARCH == "75":
        assert waits == pytest.approx(kernel.waits[digits - 2])
    else:
        assert kernel.instructions[digits - 2] * 0.9 <= instructions <= kernel.instructions[digits - 2]


def test_short_windows(checked: Emulator) -> None:
    """At T = 4."""
    kernel = KERNELS[STEP]["wide"]._replace(pixels=64)
    shared, cache, *_ = of_an_mma(checked, kernel, 4, False, 2)
    assert (shared, cache) == (128, 32)
