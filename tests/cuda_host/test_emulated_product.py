"""Fused linear and convolutional layers in CUDA on the emulator: the CPU's bits where no sum rounds."""

import itertools
import math

import pytest
import torch
from harness import Emulator
from neuron_layers import IMPULSE, Layer, random_window
from products import (
    BFLOAT16,
    CONVS,
    FLOAT16,
    FLOAT32,
    FLOAT32_HIGH,
    FLOAT32_MEDIUM,
    IMAGE,
    INT8,
    LINEAR,
    OPERANDS,
    Conv,
    check,
    check_banks,
    fire,
    weights_read,
    window_product,
)
from torch import Tensor


@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_bits(plain: Emulator, dtype: torch.dtype) -> None:
    """Tails in every dimension; one to three rounds of steps; few and many samples."""
    shapes = [(1, 1, 1), (3, 8, 16), (8, 40, 130), (9, 70, 144), (33, 65, 400)]
    for i, (T, (B, N, K)) in enumerate(itertools.product([1, 4, 7, 8, 16, 21, 40], shapes)):
        check(plain, T, B, N, K, dtype, seed=i, offset=i % 2)


@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_long_windows(plain: Emulator, dtype: torch.dtype) -> None:
    """Counts exceed a byte."""
    for T, seed in itertools.product([256, 300], range(3)):
        check(plain, T, 3, 16, 32, dtype, seed=seed)


@pytest.mark.parametrize("T", [4, 8, 16, 21])
@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_accesses(checked: Emulator, dtype: torch.dtype, T: int) -> None:
    """Weights are read once for 32 samples (8 if there are no more), spikes once for the outputs of a block, both by
    whole sectors; shared memory has no bank conflicts."""
    N, K, rounds = 72, 288, (T + 15) // 16
    steps = 4 if T <= 4 else 8 if T <= 8 else 16  # steps per round
    for B in (5, 8, 33) if T == 8 else (5, 33):
        outputs = {4: 64, 8: 64, 16: 32}[steps] if B > 8 else 256 // steps
        check(checked, T, B, N, K, dtype, seed=T)
        name, reads, passes = weights_read(checked, dtype, N, outputs, OPERANDS[dtype])
        weight, spikes = checked.traffic(name), checked.traffic("spikes")
        assert weight.bytes == rounds * -(-B // 32) * reads * K
        assert spikes.bytes == (T + 7) // 8 * passes * B * K
        for traffic in (weight, spikes):
            assert traffic.sectors == traffic.least_sectors
        check_banks(checked)
        check(checked, T, B, N - 3, K - 3, dtype, seed=T, offset=1)


@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_the_ring_wraps_around(checked: Emulator, dtype: torch.dtype) -> None:
    """There are more stages than the ring of shared memory holds."""
    for T in (4, 8, 16):
        check(checked, T, 9, 24, 700, dtype, seed=T)


@pytest.mark.parametrize(("K", "most", "conv"), [
    (128, 11.9, LINEAR), (256, 7.7, LINEAR), (512, 5.5, LINEAR), (1024, 4.4, LINEAR), (2048, 3.9, LINEAR),
    (4096, 3.6, LINEAR), (128, 4.6, IMAGE),
])  # fmt: skip
def test_instructions(plain: Emulator, K: int, most: float, conv: Conv) -> None:
    """Instructions of a warp in the whole kernel, per mma, in float16 at T = 8: the table is in docs/cuda.md."""
    check(plain, 8, 1 if conv is IMAGE else 32, 64, K, torch.float16, seed=0, conv=conv)
    instructions, mma, _ = plain.counted("product_if")
    # An mma has sixteen depths, eight samples and sixteen outputs, at one step.
    assert mma == 8 * K * conv.kernel[0] * conv.kernel[1]
    assert instructions <= most * mma


@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_small_grids(checked: Emulator, dtype: torch.dtype) -> None:
    """If there are fewer blocks than multiprocessors, warps share the depth of sixteen pixels. Their rings have up to
    eight stages, and the depth wraps around the ring."""
    before = checked.lib.emulation_multiprocessors(132)
    try:
        for T, B, N, K in [(4, 9, 72, 288), (8, 33, 72, 288), (8, 17, 8, 1104), (21, 9, 40, 288)]:
            check(checked, T, B, N, K, dtype, seed=T)
            name, reads, passes = weights_read(checked, dtype, N, 64 if T == 4 else 32, OPERANDS[dtype])
            assert checked.traffic(name).bytes == (T + 15) // 16 * -(-B // 16) * reads * K
            assert checked.traffic("spikes").bytes == (T + 7) // 8 * passes * B * K
            check_banks(checked)
            check(checked, T, B, N - 3, K - 3, dtype, seed=T, offset=1)
        check(checked, 8, 5, 8, 1104, dtype, seed=0)  # up to eight pixels, where warps always share the depth
    finally:
        checked.lib.emulation_multiprocessors(before)


@pytest.mark.parametrize("conv", [LINEAR, Conv((3, 3), kernel=(3, 3), padding=(1, 1))])
def test_narrow_channels(checked: Emulator, conv: Conv) -> None:
    """A copy has sixteen spikes, or eight, four or one where the number of channels has no larger factor."""
    lanes = []
    for K, bytes_of_a_copy in [(48, 16), (40, 8), (36, 4), (37, 1)]:
        check(checked, 8, 9, 16, K, torch.float16, seed=1, conv=conv)
        spikes = checked.traffic("spikes")
        lanes.append(spikes.bytes / spikes.requests / bytes_of_a_copy)
    assert all(lane > 4 for lane in lanes), lanes  # of 32; edges of the image and tails have no copies


WINDOWS = [(1, 1, 1, LINEAR), (70, 72, 288, LINEAR), (9, 45, 715, LINEAR), (2, 24, 40, IMAGE), (1, 64, 64, IMAGE)]


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float32, torch.float32, torch.int8]  # by operand


def counts_and_weight(seed: int, most: int, B: int, N: int, C: int, conv: Conv, mode: int) -> tuple[Tensor, Tensor]:
    """Small integers, exact for every operand."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (1, B, *conv.size, C), generator=g, dtype=torch.uint8)
    return counts, torch.randint(-16, 17, (N, *conv.kernel, C), generator=g).to(DTYPES[mode])


@pytest.mark.parametrize("mode", range(6))
def test_window_product(checked: Emulator, mode: int) -> None:
    """Weights are read once for 64 pixels, counts once for 64 outputs."""
    for seed, (B, N, C, conv) in enumerate(WINDOWS):
        counts, weight = counts_and_weight(seed, 255, B, N, C, conv, mode)
        window_product(checked, conv, counts, weight, mode, seed, seed % 2)
        if conv is LINEAR and C % 16 == 0:
            name, reads, passes = weights_read(checked, weight.dtype, N, 64, mode)
            assert checked.traffic(name).bytes == -(-B // 64) * reads * C
            assert checked.traffic("spikes").bytes == passes * counts.numel()


@pytest.mark.parametrize("mode", range(6))
def test_windows_fire(checked: Emulator, mode: int) -> None:
    """Neurons fire on the product in registers: nothing of it is in memory."""
    for seed, (B, N, C, conv) in enumerate(WINDOWS):
        T = [8, 255, 1, 21][seed % 4]
        counts, weight = counts_and_weight(seed, T, B, N, C, conv, mode)
        residual = [None, "planes", "currents"][seed % 3]
        layer = random_window(seed, T, (B * conv.pixels, N), torch.float32, IMPULSE, residual)
        layer.scale = torch.rand(N) / weight[0].numel() ** 0.5 / 8
        layer.train = N % 8 == 0
        fired = fire(checked, conv, layer, counts, weight, mode, seed)["counts"]
        assert N < 16 or 0 < fired.count_nonzero() < fired.numel()


@pytest.mark.parametrize(("K", "most", "conv"), [
    (128, 57.6, LINEAR), (1024, 13.5, LINEAR), (4096, 8.8, LINEAR), (128, 14.1, Conv((8, 8), (3, 3), padding=(1, 1))),
])  # fmt: skip
def test_instructions_of_windows(plain: Emulator, K: int, most: float, conv: Conv) -> None:
    """Instructions in float16 for 64 pixels and outputs at T = 8, when neurons fire as often as they can."""
    counts, weight = counts_and_weight(0, 8, 64 // math.prod(conv.size), 64, K, conv, FLOAT16)
    layer = Layer(torch.zeros(64, 64), 8, IMPULSE, threshold=1e-3, window=True)
    layer.scale, layer.shift = torch.rand(2, 64).clone().unbind()
    fire(plain, conv, layer, counts, weight, FLOAT16)
    instructions, mma, _ = plain.counted("window_product")
    assert mma == 2 * K * math.prod(conv.kernel)
    assert instructions <= most * mma


def test_no_stage_is_empty(checked: Emulator) -> None:
    """Up to 128 depths are one stage of shared memory."""
    written = []
    for K in (16, 128, 144):
        check(checked, 8, 5, 16, K, torch.float16, seed=1)
        written.append(checked.traffic("shared dynamic shared memory", True).bytes)
    assert written[0] == written[1] < written[2]


def sums(emulator: Emulator, weight: Tensor, spikes: Tensor, mode: int) -> Tensor:
    """The sums [8, N] of truncating tensor cores at each step, for ``spikes`` [K]."""
    (N, K), steps = weight.shape, torch.eye(8)
    layer = Layer(torch.zeros(8, 8, N), 8, threshold=3e38)  # sample b has spikes in step b only, and nothing fires
    train = (steps.view(8, 8, 1) * spikes).view(8, 8, 1, 1, K)
    out = fire(emulator, LINEAR, layer, train, weight.view(N, 1, 1, K), mode, truncating=True, exact=False)
    return out["v"].view(8, N)


def test_float16_spikes_lose_no_bits(plain: Emulator) -> None:
    """A sum of seventeen bits, which tensor cores would truncate if spikes were subnormal numbers."""
    weight = torch.tensor([[1.0, (1 + 2.0**-10) * 2.0**-6]]).repeat(8, 1)
    assert torch.equal(sums(plain, weight.half(), torch.ones(2), FLOAT16), weight.sum(1).expand(8, 8))


@pytest.mark.parametrize(("mode", "dtype", "most"), [
    (FLOAT16, torch.float16, 3e-7), (BFLOAT16, torch.bfloat16, 3e-7), (FLOAT32, torch.float32, 1.2e-7),
    (FLOAT32_HIGH, torch.float32, 4e-6), (FLOAT32_MEDIUM, torch.float32, 2e-3),
])  # fmt: skip
def test_random_weights(plain: Emulator, mode: int, dtype: torch.dtype, most: float) -> None:
    """The root mean square error of sums of 1024 weights in truncating tensor cores."""
    g = torch.Generator().manual_seed(0)
    weight = (torch.randn(64, 1024, generator=g) / 32).to(dtype)
    spikes = (torch.rand(1024, generator=g) < 0.15).float()
    exact = weight.double() @ spikes.double()
    errors = sums(plain, weight, spikes, mode) - exact
    assert errors.square().mean(1).sqrt().max() < most


def products(emulator: Emulator, weight: Tensor, mode: int) -> Tensor:
    """The kernel's value of each weight: sample k has a spike of input k only, and nothing fires."""
    N, K = weight.shape
    layer, spikes = Layer(torch.zeros(1, K, N), 1, threshold=3e38), torch.eye(K).view(1, K, 1, 1, K)
    return fire(emulator, LINEAR, layer, spikes, weight.view(N, 1, 1, K), mode, exact=False)["v"].view(K, N).T


@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_convolution(plain: Emulator, dtype: torch.dtype) -> None:
    for i, (T, (C, N, conv)) in enumerate(itertools.product([4, 8, 16, 18], CONVS)):
        check(plain, T, 2, N, C, dtype, seed=i, offset=i % 2, conv=conv)


@pytest.mark.parametrize("dtype", OPERANDS, ids=str)
def test_convolution_accesses(checked: Emulator, dtype: torch.dtype) -> None:
    for i, (C, N, conv) in enumerate(CONVS):
        check(checked, [4, 8, 16, 18][i % 4], 1 + i % 2, N, C, dtype, seed=i, conv=conv)
        if C % 16 == 0 and conv.groups == 1:
            check_banks(checked)


def test_float32_weights(plain: Emulator) -> None:
    """Two bfloat16 keep 16 bits of a weight of any magnitude, one keeps 8; test_emulated_digits.py tests all bits."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 48, generator=g) * 2.0 ** torch.randint(-100, 100, (64, 1), generator=g)
    assert ((products(plain, weight, FLOAT32_HIGH) - weight).abs() <= weight.abs() * 2.0**-16).all()
    assert torch.equal(products(plain, weight, FLOAT32_MEDIUM), weight.bfloat16().float())


@pytest.mark.parametrize("mode", [FLOAT32_HIGH, FLOAT32_MEDIUM, BFLOAT16, FLOAT16])
def test_weights_that_are_not_finite(plain: Emulator, mode: int) -> None:
    """Weights that are not finite follow IEEE: infinities where there is a spike, NaN where there is none."""
    inf = float("inf")
    weight = torch.tensor([[inf, 1.0], [-inf, 1.0], [float("nan"), 1.0]]).repeat(3, 1)[:8]
    dtype, spikes = DTYPES[mode], torch.ones(1, 1, 1, 1, 2)
    layer = Layer(torch.zeros(1, 1, 8), 1, threshold=1e9)
    weight = weight.to(dtype).view(8, 1, 1, 2)
    out = fire(plain, LINEAR, layer, spikes, weight, mode, exact=False)
    assert torch.equal(out["planes"][0, 0] == 1, weight[:, 0, 0, 0] == inf)
    spikes[..., 0] = 0
    silent = fire(plain, LINEAR, layer, spikes, weight, mode, exact=False)
    assert silent["v"].isnan().all()
    assert out["bad"].isnan().all()
    assert silent["bad"].isnan().all()


def test_int8_weights(plain: Emulator) -> None:
    weight = torch.arange(-128, 128).view(16, 16).to(torch.int8)
    assert torch.equal(products(plain, weight, INT8), weight.float())
