"""Fused linear and convolutional layers in CUDA on the emulation: the bits of the reference where no sum rounds."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from harness import INOUT, Emulator, pointer
from neuron_layers import IMPULSE, TRAIN, Layer, Outputs, check_outputs, pack, place_neurons, random_layer
from test_emulated_scan import random_window
from torch import Tensor

FLOAT16, BFLOAT16, FLOAT32, FLOAT32_HIGH, FLOAT32_MEDIUM, INT8 = range(6)  # cuda::Weights
WEIGHTS = {torch.float16: FLOAT16, torch.bfloat16: BFLOAT16, torch.float32: FLOAT32, torch.int8: INT8}


@dataclass(frozen=True)
class Conv:
    """A 2-d convolution; as it is, a linear layer: images of one pixel."""

    size: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __call__(self, images: Tensor, weight: Tensor) -> Tensor:
        """[T, B, height, width, C] and [N, kernel, C / groups] -> [T, pixels of all samples, N]."""
        x = images.flatten(0, 1).permute(0, 3, 1, 2).double()
        w = weight.double().permute(0, 3, 1, 2)
        y = torch.nn.functional.conv2d(x, w, None, self.stride, self.padding, self.dilation, self.groups)
        return y.permute(0, 2, 3, 1).float().unflatten(0, images.shape[:2]).flatten(1, 3)

    def sizes(self, images: Sequence[int], weight: Tensor, last: bool = True) -> Any:
        """What the entry points take of [B, height, width, C] and the weights, which are channels ``last``."""
        rest = *self.kernel, *self.stride, *self.padding, *self.dilation, last
        return (ctypes.c_int64 * 15)(*images, len(weight), self.groups, *rest)


LINEAR = Conv()


def prepare(emulator: Emulator, placed: Any, weight: Tensor, sizes: Any, mode: int) -> Tensor | None:
    """What is multiplied in place of float32 weights: digits, units, and the number of digits, of each output."""
    if mode != FLOAT32:
        return None
    emulator.lib.emulated_prepared_size.restype = ctypes.c_int64
    memory = torch.full((emulator.lib.emulated_prepared_size(sizes),), 0x55, dtype=torch.uint8)
    vectors = {"units": 4 * len(weight), "digit counts": 4 * len(weight)}
    parts = {"digits": len(memory) - 8 * len(weight)} | vectors
    prepared = emulator.place("prepared", memory, INOUT, parts=parts)
    assert emulator.lib.emulated_prepare(placed, sizes, pointer(prepared)) == 0, emulator.reports()
    return prepared


def dyadic_weight(g: torch.Generator, N: int, K: int, dtype: torch.dtype) -> Tensor:
    """Weights whose sums are exact in float32, with all the bits that their type allows for."""
    if dtype == torch.int8:
        return torch.randint(-128, 128, (N, K), dtype=dtype, generator=g)
    bits = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 15}[dtype]
    return (torch.randint(-(2**bits), 2**bits + 1, (N, K), generator=g) / 2.0 ** (bits + 1)).to(dtype)


def run(
    emulator: Emulator,
    conv: Conv,
    layer: Layer,
    spikes: Tensor,
    weight: Tensor,
    mode: int,
    seed: int = 0,
    offset: int = 0,
    truncating: bool = False,
    last: bool = True,
) -> Outputs:
    """The kernel's outputs; ``layer`` says all but the currents. With window timing ``spikes`` are counts, [1, ...].
    ``truncating``: as Hopper's tensor cores add. Weights are channels ``last``, as they are given, or first."""
    emulator.begin(seed % 3)
    emulator.lib.emulation_truncate(truncating)
    planes = pointer(emulator.place("spikes", spikes if layer.window else pack(spikes), offset=offset))
    stored = weight if last else weight.permute(0, 3, 1, 2).contiguous()
    placed = pointer(emulator.place("weight", stored, offset=offset))
    args, out = place_neurons(emulator, layer)
    sizes = conv.sizes(spikes.shape[1:], weight, last)
    prepared = prepare(emulator, placed, weight, sizes, mode)
    arguments = planes, placed, pointer(prepared), sizes, mode, ctypes.byref(args)
    status = emulator.lib.emulated_product_if(*arguments)
    reports = emulator.reports()
    assert status == 0, reports
    assert not reports
    return out


def check(
    emulator: Emulator,
    T: int,
    B: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    seed: int,
    offset: int = 0,
    conv: Conv = LINEAR,
) -> None:
    """K channels in, N out."""
    g = torch.Generator().manual_seed(seed)
    taps = conv.kernel[0] * conv.kernel[1]
    weight = dyadic_weight(g, N, taps * K // conv.groups, dtype).view(N, *conv.kernel, K // conv.groups)
    spikes = torch.rand(T, B, *conv.size, K, generator=g) < 0.2
    currents = conv(spikes, weight)
    layer = random_layer(seed, T, currents.shape[1:], torch.float32, TRAIN, [None, "planes", "currents"][seed % 3])
    layer.currents = currents
    if dtype == torch.int8:
        layer.scale = torch.rand(N, generator=g) / 64
    layer.train = N // conv.groups % 8 == 0  # the mask is by the byte
    check_outputs(layer, run(emulator, conv, layer, spikes, weight, WEIGHTS[dtype], seed, offset))


def weights_read(
    emulator: Emulator, dtype: torch.dtype, N: int, outputs: int, mode: int | None = None
) -> tuple[str, int, int]:
    """The buffer that the products of N outputs, so many to a block, have read; the bytes of it for each input; and how
    often they have gone through the inputs: once for each digit that an output of the block has."""
    if (WEIGHTS[dtype] if mode is None else mode) != FLOAT32:
        return "weight", N * dtype.itemsize, -(-N // outputs)
    counts = emulator.buffers["prepared"][1][-4 * N :].view(torch.int32)
    return "digits", int(counts.sum()), sum(int(block.max()) for block in counts.split(outputs))


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_bits(plain: Emulator, dtype: torch.dtype) -> None:
    """Tails in every direction; one to three rounds of steps; few and many samples."""
    shapes = [(1, 1, 1), (3, 8, 16), (8, 40, 130), (9, 70, 144), (33, 65, 400)]
    for i, (T, (B, N, K)) in enumerate(itertools.product([1, 4, 7, 8, 16, 21, 40], shapes)):
        check(plain, T, B, N, K, dtype, seed=i, offset=i % 2)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_long_windows(plain: Emulator, dtype: torch.dtype) -> None:
    """More spikes than a byte counts."""
    for T, seed in itertools.product([256, 300], range(3)):
        check(plain, T, 3, 16, 32, dtype, seed=seed)


@pytest.mark.parametrize("T", [4, 8, 16, 21])
@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_accesses(checked: Emulator, dtype: torch.dtype, T: int) -> None:
    """Weights are read once for 32 samples (8 if there are no more), spikes once for the outputs of a block, both by
    whole sectors; no bank of shared memory is hit out of turn."""
    N, K, rounds = 72, 288, (T + 15) // 16
    steps = 4 if T <= 4 else 8 if T <= 8 else 16  # of a round
    for B in (5, 8, 33) if T == 8 else (5, 33):
        outputs = {4: 64, 8: 64, 16: 32}[steps] if B > 8 else 256 // steps
        check(checked, T, B, N, K, dtype, seed=T)
        name, reads, passes = weights_read(checked, dtype, N, outputs)
        weight, spikes = checked.traffic(name), checked.traffic("spikes")
        assert weight.bytes == rounds * -(-B // 32) * reads * K
        assert spikes.bytes == (T + 7) // 8 * passes * B * K
        for traffic in (weight, spikes):
            assert traffic.sectors == traffic.least_sectors
        for write in (False, True):
            shared = checked.traffic("shared dynamic shared memory", write)
            assert shared.waves == shared.least_waves
        check(checked, T, B, N - 3, K - 3, dtype, seed=T, offset=1)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_the_ring_wraps_around(checked: Emulator, dtype: torch.dtype) -> None:
    """More stages than the ring of shared memory holds."""
    for T in (4, 8, 16):
        check(checked, T, 9, 24, 700, dtype, seed=T)


IMAGE = Conv((8, 4), kernel=(3, 3), padding=(1, 1))


@pytest.mark.parametrize(
    ("K", "most", "conv"),
    [
        (128, 11.9, LINEAR),
        (256, 7.7, LINEAR),
        (512, 5.5, LINEAR),
        (1024, 4.4, LINEAR),
        (2048, 3.9, LINEAR),
        (4096, 3.6, LINEAR),
        (128, 4.6, IMAGE),
    ],
)
def test_instructions(plain: Emulator, K: int, most: float, conv: Conv) -> None:
    """Of a warp, the whole kernel's, for each mma in float16 at T = 8: docs/cuda.md has the table."""
    check(plain, 8, 1 if conv is IMAGE else 32, 64, K, torch.float16, seed=0, conv=conv)
    instructions, mma = plain.counted("product_if")
    # Sixteen depths by eight samples by sixteen outputs each, at every step.
    assert mma == 8 * K * conv.kernel[0] * conv.kernel[1]
    assert instructions <= most * mma


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_small_grids(checked: Emulator, dtype: torch.dtype) -> None:
    """Where there are fewer blocks than multiprocessors, warps share the depth of sixteen pixels. Their rings have up
    to eight stages, which the last depth wraps around."""
    before = checked.lib.emulation_multiprocessors(132)
    try:
        for T, B, N, K in [(4, 9, 72, 288), (8, 33, 72, 288), (8, 17, 8, 1104), (21, 9, 40, 288)]:
            check(checked, T, B, N, K, dtype, seed=T)
            name, reads, passes = weights_read(checked, dtype, N, 64 if T == 4 else 32)
            assert checked.traffic(name).bytes == (T + 15) // 16 * -(-B // 16) * reads * K
            assert checked.traffic("spikes").bytes == (T + 7) // 8 * passes * B * K
            for write in (False, True):
                shared = checked.traffic("shared dynamic shared memory", write)
                assert shared.waves == shared.least_waves
            check(checked, T, B, N - 3, K - 3, dtype, seed=T, offset=1)
        check(checked, 8, 5, 8, 1104, dtype, seed=0)  # up to eight pixels anyway
    finally:
        checked.lib.emulation_multiprocessors(before)


@pytest.mark.parametrize("conv", [LINEAR, Conv((3, 3), kernel=(3, 3), padding=(1, 1))])
def test_narrow_channels(checked: Emulator, conv: Conv) -> None:
    """Sixteen spikes, eight, four or one to a copy, as their number has them for a factor."""
    lanes = []
    for K, bytes_of_a_copy in [(48, 16), (40, 8), (36, 4), (37, 1)]:
        check(checked, 8, 9, 16, K, torch.float16, seed=1, conv=conv)
        spikes = checked.traffic("spikes")
        lanes.append(spikes.bytes / spikes.requests / bytes_of_a_copy)
    assert all(lane > 4 for lane in lanes), lanes  # of the 32 of a warp, windows' edges and tails left out


WINDOWS = [(1, 1, 1, LINEAR), (70, 72, 288, LINEAR), (9, 45, 715, LINEAR), (2, 24, 40, IMAGE), (1, 64, 64, IMAGE)]


@pytest.mark.parametrize("mode", [FLOAT16, BFLOAT16, FLOAT32, FLOAT32_HIGH, FLOAT32_MEDIUM, INT8])
def test_window_product(checked: Emulator, mode: int) -> None:
    """The product of counts of a byte, in float32; weights are read once for 64 pixels, counts for 64 outputs."""
    dtype = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16, INT8: torch.int8}.get(mode, torch.float32)
    for seed, (B, N, C, conv) in enumerate(WINDOWS):
        g = torch.Generator().manual_seed(seed)
        counts = torch.randint(0, 256, (1, B, *conv.size, C), generator=g, dtype=torch.uint8)
        taps = conv.kernel[0] * conv.kernel[1]
        weight = torch.randint(-16, 17, (N, taps * C), generator=g).to(dtype).view(N, *conv.kernel, C)
        checked.begin(seed % 3)
        placed = pointer(checked.place("counts", counts, offset=seed % 2)), pointer(checked.place("weight", weight))
        want = conv(counts, weight)[0]
        u = checked.output("u", want.shape, torch.float32, seed % 2)
        sizes = conv.sizes(counts.shape[1:], weight)
        prepared = prepare(checked, placed[1], weight, sizes, mode)
        status = checked.lib.emulated_window_product(*placed, pointer(prepared), sizes, mode, pointer(u))
        assert status == 0, checked.reports()
        assert not checked.reports()
        assert torch.equal(u, want), f"{B} {N} {C}: {(u != want).sum()}"
        if conv is LINEAR and C % 16 == 0:
            name, reads, passes = weights_read(checked, dtype, N, 64, mode)
            assert checked.traffic(name).bytes == -(-B // 64) * reads * C
            assert checked.traffic("counts").bytes == passes * counts.numel()


@pytest.mark.parametrize("mode", range(6))
def test_windows_fire(checked: Emulator, mode: int) -> None:
    """Where the product of the counts is: nothing of it is in memory."""
    dtype = next((dtype for dtype, number in WEIGHTS.items() if number == mode), torch.float32)
    for seed, (B, N, C, conv) in enumerate(WINDOWS):
        g = torch.Generator().manual_seed(seed)
        T = [8, 255, 1, 21][seed % 4]
        counts = torch.randint(0, T + 1, (1, B, *conv.size, C), generator=g, dtype=torch.uint8)
        K = conv.kernel[0] * conv.kernel[1] * C
        weight = torch.randint(-16, 17, (N, K), generator=g).to(dtype).view(N, *conv.kernel, C)
        currents = conv(counts, weight)[0]
        layer = random_window(seed, T, currents.shape, torch.float32, IMPULSE, [None, "planes", "currents"][seed % 3])
        layer.currents, layer.scale = currents, torch.rand(N, generator=g) / K**0.5 / 8
        layer.train = N % 8 == 0
        out = run(checked, conv, layer, counts, weight, mode, seed)
        assert N < 16 or 0 < out["counts"].count_nonzero() < currents.numel()
        check_outputs(layer, out)


@pytest.mark.parametrize(
    ("K", "most", "conv"),
    [(128, 57.6, LINEAR), (1024, 13.5, LINEAR), (4096, 8.8, LINEAR), (128, 14.1, Conv((8, 8), (3, 3), padding=(1, 1)))],
)
def test_instructions_of_windows(plain: Emulator, K: int, most: float, conv: Conv) -> None:
    """In float16, of 64 pixels and outputs, at T = 8: neurons fire as often as they may."""
    g = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (1, 64 // math.prod(conv.size), *conv.size, K), generator=g, dtype=torch.uint8)
    weight = torch.randint(-16, 17, (64, *conv.kernel, K), generator=g).half()
    layer = Layer(conv(counts, weight)[0], 8, IMPULSE, threshold=1e-3, window=True)
    layer.scale, layer.shift = torch.rand(2, 64, generator=g).clone().unbind()
    run(plain, conv, layer, counts, weight, FLOAT16)
    instructions, mma = plain.counted("window_product")
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
    """What truncating tensor cores make of the sums of each step: [8, N], of ``spikes`` [K]."""
    (N, K), steps = weight.shape, torch.eye(8)
    layer = Layer(torch.zeros(8, 8, N), 8, threshold=3e38)  # sample b has spikes in step b alone, and nothing fires
    train = (steps.view(8, 8, 1) * spikes).view(8, 8, 1, 1, K)
    return run(emulator, LINEAR, layer, train, weight.view(N, 1, 1, K), mode, truncating=True)["v"]


def test_float16_spikes_lose_no_bits(plain: Emulator) -> None:
    """A sum of seventeen bits, which tensor cores would cut if a spike were a subnormal number."""
    weight = torch.tensor([[1.0, (1 + 2.0**-10) * 2.0**-6]]).repeat(8, 1)
    assert torch.equal(sums(plain, weight.half(), torch.ones(2), FLOAT16), weight.sum(1).expand(8, 8))


@pytest.mark.parametrize(
    ("mode", "dtype", "most"),
    [
        (FLOAT16, torch.float16, 3e-7),
        (BFLOAT16, torch.bfloat16, 3e-7),
        (FLOAT32, torch.float32, 1.2e-7),
        (FLOAT32_HIGH, torch.float32, 4e-6),
        (FLOAT32_MEDIUM, torch.float32, 2e-3),
    ],
)
def test_random_weights(plain: Emulator, mode: int, dtype: torch.dtype, most: float) -> None:
    """The root mean square error of sums of 1024 weights, where the tensor cores truncate."""
    g = torch.Generator().manual_seed(0)
    weight = (torch.randn(64, 1024, generator=g) / 32).to(dtype)
    spikes = (torch.rand(1024, generator=g) < 0.15).float()
    exact = weight.double() @ spikes.double()
    errors = sums(plain, weight, spikes, mode) - exact
    assert errors.square().mean(1).sqrt().max() < most


def products(emulator: Emulator, weight: Tensor, mode: int) -> Tensor:
    """What the kernel makes of each weight alone: sample k has no spike but that of input k, and nothing fires."""
    N, K = weight.shape
    layer = Layer(torch.zeros(1, K, N), 1, threshold=3e38)
    return run(emulator, LINEAR, layer, torch.eye(K).view(1, K, 1, 1, K), weight, mode)["v"].T


CONVS = [
    (16, 24, Conv((5, 6), kernel=(3, 3), padding=(1, 1))),
    (16, 8, Conv((9, 7), kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))),
    (32, 16, Conv((1, 11), kernel=(1, 5), stride=(1, 2), padding=(0, 2))),
    (3, 40, Conv((6, 6), kernel=(3, 3), padding=(2, 2))),  # channels that are no multiple of sixteen
    (32, 32, Conv((4, 4), kernel=(3, 3), groups=2)),
    (24, 16, Conv((4, 4), kernel=(3, 3))),  # copied by eight
    (12, 9, Conv((4, 3), kernel=(2, 2), groups=3)),
    (144, 70, Conv((3, 3))),
]


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_convolution(plain: Emulator, dtype: torch.dtype) -> None:
    for i, (T, (C, N, conv)) in enumerate(itertools.product([4, 8, 16, 18], CONVS)):
        check(plain, T, 2, N, C, dtype, seed=i, offset=i % 2, conv=conv)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_convolution_accesses(checked: Emulator, dtype: torch.dtype) -> None:
    for i, (C, N, conv) in enumerate(CONVS):
        check(checked, [4, 8, 16, 18][i % 4], 1 + i % 2, N, C, dtype, seed=i, conv=conv)
        if C % 16 == 0 and conv.groups == 1:
            for write in (False, True):
                shared = checked.traffic("shared dynamic shared memory", write)
                assert shared.waves == shared.least_waves


def test_float32_weights(plain: Emulator) -> None:
    """Two bfloat16 hold 16 bits of a weight of any size, one what bfloat16 is; test_emulated_digits.py has all."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 48, generator=g) * 2.0 ** torch.randint(-100, 100, (64, 1), generator=g)
    assert ((products(plain, weight, FLOAT32_HIGH) - weight).abs() <= weight.abs() * 2.0**-16).all()
    assert torch.equal(products(plain, weight, FLOAT32_MEDIUM), weight.bfloat16().float())


@pytest.mark.parametrize("mode", [FLOAT32_HIGH, FLOAT32_MEDIUM, BFLOAT16, FLOAT16])
def test_weights_that_are_not_finite(plain: Emulator, mode: int) -> None:
    """They do what IEEE says: infinities where there is a spike, NaN where there is none."""
    inf = float("inf")
    weight = torch.tensor([[inf, 1.0], [-inf, 1.0], [float("nan"), 1.0]]).repeat(3, 1)[:8]
    dtype = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}.get(mode, torch.float32)
    spikes = torch.ones(1, 1, 1, 1, 2)
    layer = Layer(torch.zeros(1, 1, 8), 1, threshold=1e9)
    out = run(plain, LINEAR, layer, spikes, weight.to(dtype).view(8, 1, 1, 2), mode)
    assert torch.equal(out["planes"][0, 0] == 1, weight[:, 0] == inf)
    spikes[..., 0] = 0
    silent = run(plain, LINEAR, layer, spikes, weight.to(dtype).view(8, 1, 1, 2), mode)
    assert silent["v"].isnan().all()
    assert out["bad"].isnan().all()
    assert silent["bad"].isnan().all()


def test_int8_weights(plain: Emulator) -> None:
    weight = torch.arange(-128, 128).view(16, 16).to(torch.int8)
    assert torch.equal(products(plain, weight, WEIGHTS[torch.int8]), weight.float())
