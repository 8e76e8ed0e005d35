"""Weights as digits on the emulator: units, integers and bits of the CPU kernels, for any weights."""

import dataclasses

import pytest
import torch
from harness import AMPERE, Emulator, output
from neuron_layers import Layer
from products import LINEAR, MOST_DIGITS, WEIGHTS, Conv, check, fire, layer_of, prepare
from torch import Tensor

from tandem_ext.rule import fixed_point


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


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.parametrize("K", [1, 27, 48, 2500])
def test_digits(checked: Emulator, K: int, dtype: torch.dtype) -> None:
    """The numbers of the reference. There are only as many digits as the largest integer needs; no others are
    written."""
    for offset in (0, 1):
        checked.begin()
        weight = rows_of_every_kind(K)
        weight = (50 * weight).clamp(-128, 127).to(dtype) if dtype == torch.int8 else weight.to(dtype)
        weight = weight.where(weight.isfinite(), 0)
        prepared = prepare(checked, LINEAR, weight.view(-1, 1, 1, K), offset)
        N, row, most = len(weight), -(-K // 16) * 16, MOST_DIGITS[dtype]
        digits = prepared[: N * most * row].view(torch.int8).view(N, most, row)
        units, counts = prepared[N * most * row :].view(torch.float32).split(N)
        wanted = fixed_point(weight)
        for n, count in enumerate(counts.view(torch.int32).tolist()):
            got = sum(256**d * digits[n, d].long() for d in range(count)) * torch.ones(row, dtype=torch.int64)
            assert torch.equal(got[:K] * units[n].double(), wanted[n])
            assert not got[K:].any()
            assert count == (count_of(int(torch.where(got < 0, ~got, got).max())) if got.any() else 0)
            assert not got.any() or (got % 2).any()  # no unit is too small
            assert (digits[n, count:] == 0x55).all()


# Layers that tiles do not take: depthwise and narrow groups, on channels that are copied one by one or by four.
PLAIN = [
    (8, 2, 12, 12, Conv((5, 6), (3, 3), padding=(1, 1), groups=12)),
    (21, 1, 30, 10, Conv((1, 9), (1, 4), (1, 2), (0, 2), groups=10)),
    (4, 2, 24, 12, Conv((4, 3), (2, 2), dilation=(2, 1), groups=6)),
    (16, 3, 12, 24, Conv((4, 3), groups=3)),
    (3, 2, 9, 9, Conv((6, 6), (3, 2), (2, 1), (2, 1), groups=3)),
]


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("seed", range(len(PLAIN)))
def test_plain(checked: Emulator, seed: int, last: bool, window: bool) -> None:
    T, B, N, C, conv = PLAIN[seed]
    dtype = [*WEIGHTS, torch.float32][seed]
    check(checked, T, B, N, C, dtype, seed, conv=dataclasses.replace(conv, last=last), window=window)
    assert checked.counted("plain")[0] > 0


@pytest.mark.parametrize("seed", [1, 2, 9])
def test_plain_over_a_long_window(plain: Emulator, seed: int) -> None:
    assert check(plain, 300, 1, 12, 12, torch.float32, seed, conv=PLAIN[0][-1])["counts"].max() > 255


@AMPERE
@pytest.mark.parametrize(
    ("K", "bits", "digits", "most"), [(128, 0, 3, 11.8), (1024, 0, 3, 5), (4096, 0, 3, 4.3), (1024, 4, 1, 6.7)]
)
def test_instructions(plain: Emulator, K: int, bits: int, digits: int, most: float) -> None:
    """Instructions of a warp in the whole kernel, per mma, at T = 8. Few-bit weights have one digit."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 1, 1, K, generator=g) / K**0.5
    if bits:
        weight = (weight / weight.abs().max() * 2 ** (bits - 1)).round() / 2**bits
    spikes, neurons = torch.rand(8, 32, 1, 1, K, generator=g) < 0.2, torch.rand(2, 64, generator=g)
    layer = Layer(torch.zeros(8, 32, 64), 8, scale=neurons[0].clone(), shift=neurons[1].clone())
    fire(plain, LINEAR, layer, spikes, weight)
    instructions, mma, *_ = plain.counted("product_if")
    assert mma == digits * 8 * K // 2
    assert instructions <= most * mma, instructions / mma


def test_a_layer_that_is_not_prepared(plain: Emulator) -> None:
    plain.begin()
    layer = layer_of(plain, LINEAR, torch.zeros(1, 8, 1, 1, 16), torch.zeros(8, 1, 1, 16), {"T": 8, "timing": 1})
    layer.fields["prepared"] = None
    assert plain.call("window_product", layer, output(8, 8), plain.stream) != 0
