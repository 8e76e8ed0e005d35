"""Fused linear and convolutional layers in CUDA on the emulator: the CPU's bits for any weights."""

import itertools
import math

import pytest
import torch
from harness import AMPERE, ARCH, Emulator
from neuron_layers import IMPULSE, Layer, random_window
from products import (
    CONVS,
    IMAGE,
    LINEAR,
    WEIGHTS,
    Conv,
    check,
    check_banks,
    digits_read,
    fire,
    random_weight,
    window_product,
)
from torch import Tensor


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_bits(plain: Emulator, dtype: torch.dtype) -> None:
    """Tails in every dimension; one to three rounds of steps; few and many samples."""
    shapes = [(1, 1, 1), (3, 8, 16), (8, 40, 130), (9, 70, 144), (33, 65, 400)]
    every = list(itertools.product([1, 2, 4, 5, 7, 8, 10, 13, 16, 21, 40], shapes))
    for i, (T, (B, N, K)) in enumerate(every[list(WEIGHTS).index(dtype) % 2 :: 2]):
        check(plain, T, B, N, K, dtype, seed=i, offset=i % 2)


@pytest.mark.parametrize("T", [4, 8, 16, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accesses(checked: Emulator, dtype: torch.dtype, T: int) -> None:
    """Weights are read once for 64 samples of up to four steps, 32 of eight, 16 of more (eight if there are no more),
    spikes once for the outputs of a block, both by whole sectors; shared memory has no bank conflicts."""
    N, K, rounds = 72, 288, (T + 15) // 16
    steps = 4 if T <= 4 else 8 if T <= 8 else 16  # steps per round
    for B in (5, 8, 65) if T == 8 else (5, 65):
        outputs = 64 if steps <= (8 if B > 8 else 4) else 32
        pixels = 8 if B <= 8 else {4: 64, 8: 32, 16: 16}[steps]
        check(checked, T, B, N, K, dtype, seed=T)
        reads, passes = digits_read(checked, N, outputs)
        weight, spikes = checked.traffic("digits"), checked.traffic("spikes")
        assert weight.bytes == rounds * -(-B // pixels) * reads * K
        assert spikes.bytes == (T + 7) // 8 * passes * B * K
        for traffic in (weight, spikes):
            assert traffic.sectors == traffic.least_sectors
        check_banks(checked)
        check(checked, T, B, N - 3, K - 3, dtype, seed=T, offset=1)


@pytest.mark.parametrize("shared", [64, 100, 164, 228])
def test_the_ring_wraps_around(checked: Emulator, shared: int) -> None:
    """There are more stages than the ring of shared memory holds, whose size depends on the card."""
    checked.card(shared=shared * 1024)
    for T in (4, 8, 16):
        check(checked, T, 9, 24, 700, torch.float16, seed=T)
    check(checked, 8, 9, 24, 700, torch.float16, seed=1, window=True)


@AMPERE
@pytest.mark.parametrize(("K", "most", "conv"), [
    (128, 15.9, LINEAR), (1024, 5.5, LINEAR), (4096, 4.4, LINEAR), (128, 5.4, IMAGE),
])  # fmt: skip
def test_instructions(plain: Emulator, K: int, most: float, conv: Conv) -> None:
    """Instructions of a warp in the whole kernel, per mma, in two digits at T = 8. For gates the products
    of the steps are added up in 64 bits too, so that z is exact."""
    check(plain, 8, 1 if conv is IMAGE else 32, 64, K, torch.float16, seed=0, conv=conv)
    instructions, mma, *_ = plain.counted("product_if")
    # An mma has thirty-two depths, eight samples and sixteen outputs, at one step.
    assert mma == 2 * 4 * K * conv.kernel[0] * conv.kernel[1]
    assert instructions <= most * mma, instructions / mma


@AMPERE
@pytest.mark.parametrize(
    ("T", "steps"), [(1, 2), (2, 2), (3, 4), (5, 6), (6, 6), (9, 10), (10, 10), (11, 12), (20, 20)]
)
def test_steps_that_do_not_exist(plain: Emulator, T: int, steps: int) -> None:
    """They are multiplied up to the next even number."""
    for B in (9, 1):
        check(plain, T, B, 16, 128, torch.int8, seed=0)
        most = 8 if B > 8 else 4
        outputs = 32 if most < T else 64
        tiles = 1 if B == 1 else 8 if T <= 4 else 4 if T <= 8 else 2  # of eight samples
        assert plain.counted("product_if")[1] == 4 * steps * outputs // 16 * tiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_small_grids(checked: Emulator, dtype: torch.dtype) -> None:
    """If there are far fewer blocks than multiprocessors, warps share the depth of sixteen pixels. Their rings have up
    to eight stages, and the depth wraps around the ring."""
    checked.card(multiprocessors=132)
    for T, B, N, K in [(4, 9, 72, 288), (8, 33, 72, 288), (8, 17, 8, 1104), (21, 9, 40, 288)]:
        check(checked, T, B, N, K, dtype, seed=T)
        reads, passes = digits_read(checked, N, 64 if T == 4 else 32)
        assert checked.traffic("digits").bytes == (T + 15) // 16 * -(-B // 16) * reads * K
        assert checked.traffic("spikes").bytes == (T + 7) // 8 * passes * B * K
        check_banks(checked)
        check(checked, T, B, N - 3, K - 3, dtype, seed=T, offset=1)
    check(checked, 8, 5, 8, 1104, dtype, seed=0)  # up to eight pixels, where warps always share the depth


@pytest.mark.parametrize("conv", [LINEAR, Conv((3, 3), kernel=(3, 3), padding=(1, 1))])
def test_narrow_channels(checked: Emulator, conv: Conv) -> None:
    """A copy has sixteen spikes, or eight (not on Turing), four or one where the number of channels has no larger
    factor."""
    lanes = []
    for K, bytes_of_a_copy in [(48, 16), (40, 4 if ARCH == "75" else 8), (36, 4), (37, 1)]:
        check(checked, 8, 9, 16, K, torch.float16, seed=1, conv=conv)
        spikes = checked.traffic("spikes")
        lanes.append(spikes.bytes / spikes.requests / bytes_of_a_copy)
    assert all(lane > 4 for lane in lanes), lanes  # of 32; edges of the image and tails have no copies


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("N", [1, 10, 100, 129])
def test_outputs_that_do_not_fill_bytes(checked: Emulator, N: int, window: bool) -> None:
    """Tiles, not plain kernels; the gates are bytes first."""
    for B in (3, 11):
        check(checked, 8, B, N, 48, torch.float32, seed=N + B, window=window)
        assert checked.counted("plain")[0] == 0
        assert checked.counted("pack_gates")[0] > 0
    check(checked, 10, 1, 2 * N, 32, torch.bfloat16, seed=N, conv=Conv((4, 3), (2, 2), groups=2), window=window)


BYTES = Conv((8, 10), (3, 3), padding=(1, 1))
WINDOWS = [
    (1, 1, 1, LINEAR), (70, 72, 288, LINEAR), (9, 45, 715, LINEAR), (2, 24, 40, IMAGE), (1, 64, 64, IMAGE),
    (33, 65, 400, LINEAR), (3, 80, 3000, LINEAR), (2, 24, 16, CONVS[0][-1]), (2, 32, 32, CONVS[4][-1]),
    (2, 66, 3, BYTES), (130, 136, 240, LINEAR), (1, 66, 12, BYTES), (260, 66, 40, LINEAR),
]  # fmt: skip


def counts_and_weight(
    seed: int, most: int, B: int, N: int, C: int, conv: Conv, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (1, B, *conv.size, C), generator=g, dtype=torch.uint8)
    counts[:, 0] = most
    return counts, random_weight(g, N, *conv.kernel, C // conv.groups, dtype=dtype)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_window_product(checked: Emulator, dtype: torch.dtype) -> None:
    """Weights are read once for the pixels of a tile, counts once for its outputs, whatever the number of digits. Sums
    of counts have up to eight bits more than int32."""
    for seed, (B, N, C, conv) in enumerate([*WINDOWS, (2, 2, 65_800, LINEAR)]):
        counts, weight = counts_and_weight(seed, 255, B, N, C, conv, dtype)
        weight[-1].abs_()
        window_product(checked, conv, counts, weight, seed, seed % 2)
        if conv is LINEAR and C % 16 == 0:
            one_sum = dtype != torch.float32 and B > 128
            pixels, outputs = (64, 32) if B <= 64 or N <= 64 else (256, 128) if one_sum else (128, 128)
            reads, _ = digits_read(checked, N, outputs)
            assert checked.traffic("digits").bytes == -(-B // pixels) * reads * C
            assert checked.traffic("spikes").bytes == -(-N // outputs) * counts.numel()
            if seed % 2 == 0 and N % 8 == 0:
                check_banks(checked)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_windows_fire(checked: Emulator, dtype: torch.dtype) -> None:
    """Neurons fire on the product in registers: nothing of it is in memory."""
    for seed, (B, N, C, conv) in enumerate(WINDOWS):
        T = [8, 255, 1, 21][seed % 4]
        counts, weight = counts_and_weight(seed, T, B, N, C, conv, dtype)
        residual = [None, "planes", "currents"][seed % 3]
        layer = random_window(seed, T, (B * conv.pixels, N), torch.float32, IMPULSE, residual)
        layer.scale = torch.rand(N) / weight[0].numel() ** 0.5 / 8
        fired = fire(checked, conv, layer, counts, weight, seed)["counts"]
        assert N < 16 or 0 < fired.count_nonzero() < fired.numel()


@AMPERE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("K", "most", "conv"), [
    (128, 49.5, LINEAR), (1024, 13.9, LINEAR), (4096, 10.1, LINEAR), (128, 13.5, Conv((8, 8), (3, 3), padding=(1, 1))),
])  # fmt: skip
def test_instructions_of_windows(plain: Emulator, K: int, most: float, conv: Conv, dtype: torch.dtype) -> None:
    """Instructions for 64 pixels and outputs at T = 8, when neurons fire as often as they can."""
    g = torch.Generator().manual_seed(0)
    counts, _ = counts_and_weight(0, 8, 64 // math.prod(conv.size), 64, K, conv, dtype)
    weight = torch.randn(64, *conv.kernel, K, generator=g).to(dtype)
    layer = Layer(torch.zeros(64, 64), 8, IMPULSE, threshold=1e-3, window=True)
    layer.scale, layer.shift = torch.rand(2, 64).clone().unbind()
    fire(plain, conv, layer, counts, weight)
    instructions, mma, *_ = plain.counted("window_product")
    assert 2 * mma == digits_read(plain, 64, 32)[1] * K * math.prod(conv.kernel)
    assert instructions <= most * mma, instructions / mma


def test_no_stage_is_empty(checked: Emulator) -> None:
    """Up to 128 depths are one stage of shared memory."""
    written = []
    for K in (16, 128, 144):
        check(checked, 8, 5, 16, K, torch.int8, seed=1)
        written.append(checked.traffic("shared dynamic shared memory", True).bytes)
    assert written[0] == written[1] < written[2]


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_convolution(checked: Emulator, dtype: torch.dtype) -> None:
    offset = list(WEIGHTS).index(dtype) % 2
    for i, (T, (C, N, conv)) in list(enumerate(itertools.product([4, 8, 16, 18], CONVS)))[offset::2]:
        check(checked, T, 2, N, C, dtype, seed=i, offset=offset, conv=conv)
        if C % 16 == 0 and conv.groups == 1 and offset == 0:
            check_banks(checked)
