"""float32 weights as digits on the emulation: units, integers and bits of the CPU's kernels, on any weights."""

from __future__ import annotations

import math

import pytest
import torch
from harness import OUTPUT, Emulator, pointer
from neuron_layers import GATES, IMPULSE, Layer, Outputs, pack, random_layer
from test_emulated_product import CONVS, FLOAT32, LINEAR, Conv, prepare, run
from test_emulated_scan import random_window
from torch import Tensor

import tandem_ext  # noqa: F401  (the CPU's ops)

INF, NAN = math.inf, math.nan


def integers(row: list[float]) -> tuple[list[int], int]:
    """An output's weights in its unit, and the exponent of that (csrc/kernels/product/unit.h)."""
    largest = max(map(abs, row))
    scale = max(math.frexp(largest)[1], -30) if largest else -30
    total = sum(int(math.ldexp(abs(w), 20 - scale)) for w in row) + len(row)
    exponent = max((total | 1).bit_length() - 20 + scale, -30) - 30
    for spare in range(3):
        if math.ldexp(largest, -exponent - spare) <= 0x7F7F7F:
            exponent += spare
            break
    return [int(math.copysign(math.floor(math.ldexp(abs(w), -exponent) + 0.5), w)) for w in row], exponent


def count_of(size: int) -> int:
    return next(n for n, most in enumerate((0x7F, 0x7F7F, 0x7F7F7F, 2**31), 1) if size <= most)


def rows_of_every_kind(K: int) -> Tensor:
    g = torch.Generator().manual_seed(K)
    normal = torch.randn(9, K, generator=g)
    few = torch.randint(-127, 128, (K,), generator=g) / 2.0**20
    rows = [normal[0], normal[1] / 1000, few, 300 * few, torch.zeros(K), 1e-30 * normal[2], 1e37 * normal[3]]
    spread = normal[4] * 2.0 ** torch.randint(-40, 4, (K,), generator=g)
    alone = torch.zeros(K)
    alone[-1] = -0.7
    return torch.stack([*rows, spread, alone, -few * 128 / few.abs().max()])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("K", [1, 27, 48, 2500])
def test_digits(checked: Emulator, K: int, offset: int) -> None:
    """No more of them than the largest integer needs; what is not needed is not written."""
    checked.begin()
    weight = rows_of_every_kind(K)
    placed = pointer(checked.place("weight", weight, offset=offset))
    sizes = LINEAR.sizes((1, 1, 1, K), weight)
    prepared = prepare(checked, placed, weight, sizes, FLOAT32)
    assert prepared is not None
    assert not checked.reports()
    N, row = len(weight), -(-K // 16) * 16
    digits = prepared[: N * 4 * row].view(torch.int8).view(N, 4, row)
    units, counts = prepared[N * 4 * row :].view(torch.float32).split(N)
    for n, count in enumerate(counts.view(torch.int32).tolist()):
        wanted, exponent = integers(weight[n].tolist())
        together = math.gcd(*wanted)
        shift = (together & -together).bit_length() - 1 if together else 0
        assert units[n] == 2.0 ** (exponent + shift)
        sizes_ = [w >> shift if w >= 0 else ~(w >> shift) for w in wanted]
        assert count == (count_of(max(sizes_)) if together else 0)
        got = sum(256**d * digits[n, d].long() for d in range(count)) * torch.ones(row, dtype=torch.int64)
        assert got[:K].tolist() == [w >> shift for w in wanted]
        assert not got[K:].any()
        assert (digits[n, count:] == 0x55).all()


@pytest.mark.parametrize(("C", "kernel"), [(5, (3, 3)), (16, (1, 3)), (1, (3, 3))])
def test_the_order_of_a_kernel(checked: Emulator, C: int, kernel: tuple[int, int]) -> None:
    """Channels are innermost in a row of digits, wherever they are in the weights."""
    weight = torch.randn(9, *kernel, C, generator=torch.Generator().manual_seed(0))
    conv, made = Conv((4, 4), kernel), []
    for last, stored in ((True, weight), (False, weight.permute(0, 3, 1, 2).contiguous())):
        checked.begin()
        placed = pointer(checked.place("weight", stored))
        prepared = prepare(checked, placed, weight, conv.sizes((1, 4, 4, C), weight, last), FLOAT32)
        assert not checked.reports()
        made.append(prepared)
    assert torch.equal(*made)


def on_the_cpu(conv: Conv, layer: Layer, spikes: Tensor, weight: Tensor) -> Outputs:
    """What the CPU's kernels make of the layer, in rows of pixels."""
    T, B = layer.T, spikes.shape[1]
    planes = (spikes if layer.window else pack(spikes)).permute(0, 1, 4, 2, 3)
    w = weight.permute(0, 3, 1, 2)
    space = () if conv is LINEAR else (conv.stride, conv.padding, conv.dilation, conv.groups)
    op = torch.ops.tandem.conv_if if space else torch.ops.tandem.linear_if
    planes, w = (planes, w) if space else (planes.flatten(2), w.flatten(1))
    neurons = layer.residual, layer.residual_scale, layer.v_init, layer.steps or T, layer.threshold, layer.leak
    rest = layer.gate, True, True, "window" if layer.window else "step"
    out = op(planes, T, w, "highest", *space, layer.scale, layer.shift, *neurons, *rest)
    rows = {"planes": out[0], "counts": out[1], "v": out[3]}
    found = {name: t.movedim(-3, -1) if space else t for name, t in rows.items()}
    found = {name: t.reshape(*t.shape[: -4 if space else -2], -1, len(weight)) for name, t in found.items()}
    bad = out[4].repeat_interleave(len(found["v"]) // B)
    return found | {"mask": out[2], "bad": bad}


def random_weight(g: torch.Generator, *shape: int) -> Tensor:
    """Of no grid, of several sizes; some outputs have few bits."""
    weight = torch.randn(shape, generator=g) * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=g)
    weight[::5] = (8 * weight[::5]).round() / 8
    return weight


def compare(
    emulator: Emulator,
    T: int,
    B: int,
    N: int,
    C: int,
    conv: Conv,
    seed: int,
    window: bool,
    train: bool,
    last: bool = True,
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    weight = random_weight(g, N, *conv.kernel, C // conv.groups)
    spikes = torch.rand(T, B, *conv.size, C, generator=g) < 0.3
    spikes = spikes.sum(0, dtype=torch.uint8).unsqueeze(0) if window else spikes
    pixels = len(conv(spikes, weight)[0])
    residual = [None, "planes", "currents"][seed % 3] if conv is LINEAR else None
    layer = (random_window if window else random_layer)(seed, T, (pixels, N), torch.float32, IMPULSE, residual)
    if conv is not LINEAR:
        layer.v_init = None
    layer.gate, layer.train = GATES[seed % (2 if window else 3)], train
    got, want = (
        run(emulator, conv, layer, spikes, weight, FLOAT32, seed, last=last),
        on_the_cpu(conv, layer, spikes, weight),
    )
    for name, tensor in got.items():
        assert torch.equal(tensor, want[name]), f"{name}: {(tensor != want[name]).sum()} of {tensor.numel()} differ"
    return want


SHAPES = [(4, 1, 8, 1), (8, 9, 40, 130), (8, 33, 65, 400), (21, 9, 24, 700), (8, 3, 80, 3000)]


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_linear(plain: Emulator, seed: int, window: bool) -> None:
    T, B, N, K = SHAPES[seed]
    compare(plain, T, B, N, K, LINEAR, seed, window, N % 8 == 0)


@pytest.mark.parametrize(("seed", "window"), [*((seed, False) for seed in range(len(CONVS))), (0, True), (4, True)])
def test_convolution(plain: Emulator, seed: int, window: bool) -> None:
    C, N, conv = CONVS[seed]
    compare(plain, [8, 4, 18][seed % 3], 2, N, C, conv, seed, window, N // conv.groups % 8 == 0)


# By what tiles are not for: depthwise, narrow groups, a mask that is not by the byte.
PLAIN = [
    (8, 2, 12, 12, Conv((5, 6), (3, 3), padding=(1, 1), groups=12)),
    (21, 1, 30, 10, Conv((1, 9), (1, 4), (1, 2), (0, 2), groups=10)),
    (4, 2, 24, 12, Conv((4, 3), (2, 2), dilation=(2, 1), groups=6)),
    (16, 3, 65, 40, LINEAR),
    (3, 2, 9, 3, Conv((6, 6), (3, 2), (2, 1), (2, 1))),
]


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("seed", range(len(PLAIN)))
def test_plain(checked: Emulator, seed: int, last: bool, window: bool) -> None:
    T, B, N, C, conv = PLAIN[seed]
    compare(checked, T, B, N, C, conv, seed, window, True, last)
    assert checked.counted("plain")[0] > 0


@pytest.mark.parametrize("seed", [1, 2, 9])
def test_plain_over_a_long_window(plain: Emulator, seed: int) -> None:
    want = compare(plain, 300, 1, 12, 12, PLAIN[0][-1], seed, False, True)
    assert want["counts"].max() > 255


@pytest.mark.parametrize(("B", "N", "K"), [(2, 2, 65_800), (1, 1, 1), (70, 72, 288), (9, 45, 1715)])
def test_window_product(checked: Emulator, B: int, N: int, K: int) -> None:
    """Sums of counts have up to eight bits more than an int32 holds."""
    g = torch.Generator().manual_seed(B)
    counts = torch.randint(0, 256, (1, B, 1, 1, K), generator=g, dtype=torch.uint8)
    counts[:, 0] = 255
    weight = random_weight(g, N, 1, 1, K)
    weight[-1].abs_()
    checked.begin(B % 3)
    placed = pointer(checked.place("counts", counts)), pointer(checked.place("weight", weight))
    sizes = LINEAR.sizes(counts.shape[1:], weight)
    prepared = prepare(checked, placed[1], weight, sizes, FLOAT32)
    u = checked.output("u", (B, N), torch.float32)
    status = checked.lib.emulated_window_product(*placed, pointer(prepared), sizes, FLOAT32, pointer(u))
    assert status == 0
    assert not checked.reports()
    want = torch.ops.tandem.window_product(counts.flatten(2), 255, weight.flatten(1), "highest", [], [], [], 1, True)
    assert torch.equal(u, want)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_weights_that_are_not_finite(plain: Emulator, value: float) -> None:
    """Outputs with one are NaN, with and without a spike at it; they do not fire, and the others do not notice."""
    weight = torch.ones(8, 1, 1, 2)
    weight[3, 0, 0, 1] = value
    spikes = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).view(1, 2, 1, 1, 2)
    layer = Layer(torch.zeros(1, 2, 8), 1, threshold=0.5)
    out = run(plain, LINEAR, layer, spikes, weight, FLOAT32)
    assert torch.equal(out["v"].isnan(), torch.arange(8).expand(2, 8) == 3)
    assert torch.equal(out["planes"][0] == 0, torch.arange(8).expand(2, 8) == 3)
    assert out["bad"].isnan().all()


@pytest.mark.parametrize(
    ("K", "bits", "digits", "most"), [(128, 0, 3, 12.3), (1024, 0, 3, 5.6), (4096, 0, 3, 4.9), (1024, 4, 1, 7.4)]
)
def test_instructions(plain: Emulator, K: int, bits: int, digits: int, most: float) -> None:
    """Of a warp, the whole kernel's, for each mma at T = 8: docs/cuda.md has the table. Few bits take one digit."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 1, 1, K, generator=g) / K**0.5
    if bits:
        weight = (weight / weight.abs().max() * 2 ** (bits - 1)).round() / 2**bits
    spikes, neurons = torch.rand(8, 32, 1, 1, K, generator=g) < 0.2, torch.rand(2, 64, generator=g)
    layer = Layer(LINEAR(spikes, weight), 8, scale=neurons[0].clone(), shift=neurons[1].clone())
    run(plain, LINEAR, layer, spikes, weight, FLOAT32)
    instructions, mma = plain.counted("product_if")
    assert mma == digits * 8 * K // 2
    assert instructions <= most * mma


def test_a_layer_that_is_not_prepared(plain: Emulator) -> None:
    plain.begin()
    u = plain.place("u", torch.zeros(8, 8), OUTPUT)
    sizes = LINEAR.sizes((8, 1, 1, 16), torch.zeros(8, 1, 1, 16))
    assert plain.lib.emulated_window_product(None, None, None, sizes, FLOAT32, pointer(u)) != 0
