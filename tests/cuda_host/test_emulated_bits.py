"""pack, unpack, counts and gate_grad in CUDA on the emulation."""

from __future__ import annotations

import ctypes

import pytest
import torch
from harness import DTYPES, Emulator, pointer
from neuron_layers import pack, pack_mask, unpack

SIZES = [1, 7, 32, 100, 1028]
OFFSETS = [(0, 0), (1, 1), (0, 1), (1, 0), (2, 2)]  # elements that input and output begin past an aligned address
DENSE = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float32, torch.bfloat16, torch.float16, torch.float64]


def once(emulator: Emulator, *names: str) -> None:
    """Each byte of these inputs is read once, and the checker has nothing to say."""
    assert not emulator.reports()
    for name in names:
        touches = emulator.touches(name)
        assert (touches.least_reads, touches.most_reads) == (1, 1), name


def one_of(dtype: torch.dtype) -> ctypes.c_uint64:
    """The bits of 1."""
    return ctypes.c_uint64(int.from_bytes(torch.ones(1, dtype=dtype).view(torch.uint8).numpy().tobytes(), "little"))


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("T", [1, 8, 13])
@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_pack_and_unpack(checked: Emulator, dtype: torch.dtype, T: int, N: int) -> None:
    g = torch.Generator().manual_seed(N + T)
    spikes = (torch.rand(T, N, generator=g) < 0.3).to(dtype)
    values = spikes.clone()
    if not dtype.is_floating_point and dtype != torch.bool:
        values[-1] *= torch.iinfo(dtype).min or 128  # the highest bit alone is a spike
    if dtype.is_floating_point:
        values[spikes == 0] = -0.0  # silent, as 0 is
        values[0, spikes[0] != 0] = float("nan")  # not zero: a spike
    for offset, to in OFFSETS:
        checked.begin()
        dense = checked.place("spikes", values, offset=offset)
        planes = checked.output("planes", [(T + 7) // 8, N], torch.uint8, to)
        size, is_float = dtype.itemsize, dtype.is_floating_point
        assert checked.lib.emulated_pack(pointer(dense), size, is_float, T, ctypes.c_int64(N), pointer(planes)) == 0
        once(checked, "spikes")
        assert torch.equal(planes, pack(spikes))

        checked.begin()
        planes = checked.place("planes", planes, offset=offset)
        out = checked.output("spikes", [T, N], dtype, to)
        arguments = pointer(planes), T, ctypes.c_int64(N), pointer(out), size, one_of(dtype)
        assert checked.lib.emulated_unpack(*arguments) == 0
        once(checked, "planes")
        assert torch.equal(out, spikes)


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("T", [1, 8, 13, 255])
def test_count_bytes_and_burst_planes(checked: Emulator, T: int, N: int) -> None:
    """A train of its first steps has its count; what is above T is cut off."""
    want = torch.randint(256, (N,), dtype=torch.uint8, generator=torch.Generator().manual_seed(N))
    bursts = pack(torch.arange(T).view(T, 1) < want)
    for offset, to in OFFSETS:
        checked.begin()
        counts = checked.place("counts", want, offset=offset)
        planes = checked.output("planes", bursts.shape, torch.uint8, to)
        assert checked.lib.emulated_burst_planes(pointer(counts), T, ctypes.c_int64(N), pointer(planes)) == 0
        once(checked)
        assert torch.equal(planes, bursts)

        checked.begin()
        planes = checked.place("planes", bursts, offset=offset)
        counts = checked.output("counts", [N], torch.uint8, to)
        arguments = pointer(planes), len(bursts), ctypes.c_int64(N), pointer(counts)
        assert checked.lib.emulated_count_bytes(*arguments) == 0
        once(checked, "planes")
        assert torch.equal(counts, want.clamp(max=T))


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("P", [1, 2, 32, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts(checked: Emulator, dtype: torch.dtype, P: int, N: int) -> None:
    planes = torch.randint(256, (P, N), dtype=torch.uint8, generator=torch.Generator().manual_seed(N))
    planes[:, 0] = 255
    for offset, to in OFFSETS:
        checked.begin()
        placed = checked.place("planes", planes, offset=offset)
        counts = checked.output("counts", [N], dtype, to)
        arguments = pointer(placed), P, ctypes.c_int64(N), pointer(counts), DTYPES[dtype]
        assert checked.lib.emulated_counts(*arguments) == 0
        once(checked, "planes")
        assert torch.equal(counts, unpack(planes, 8 * P).sum(0).to(dtype))


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_grad(checked: Emulator, dtype: torch.dtype, N: int) -> None:
    g = torch.Generator().manual_seed(N)
    grad = torch.randn(N, generator=g).to(dtype)
    open_ = torch.rand(N, generator=g) < 0.5
    grad[~open_] = float("nan")  # a closed gate lets nothing through
    mask = pack_mask(open_)
    for offset, to in OFFSETS:
        checked.begin()
        placed, bits = checked.place("grad", grad, offset=offset), checked.place("mask", mask, offset=offset)
        out = checked.output("grad_z", [N], dtype, to)
        arguments = pointer(placed), DTYPES[dtype], pointer(bits), ctypes.c_double(0.3), ctypes.c_int64(N), pointer(out)
        assert checked.lib.emulated_gate_grad(*arguments) == 0
        once(checked, "grad")
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        want = (grad.to(wide) / torch.tensor(0.3, dtype=wide)).to(dtype)
        assert torch.equal(out, torch.where(open_, want, torch.zeros_like(want)))


def test_four_neurons_to_a_thread(checked: Emulator) -> None:
    """Where they are aligned, in instructions as wide, and no thread is without."""
    T, N = 8, 2048
    size, warps = ctypes.c_int64(N), N // 128
    for dtype in DENSE:
        checked.begin()
        dense = checked.place("spikes", torch.zeros(T, N, dtype=dtype))
        planes = checked.output("planes", [1, N], torch.uint8)
        assert checked.lib.emulated_pack(pointer(dense), dtype.itemsize, False, T, size, pointer(planes)) == 0
        assert checked.traffic("planes", write=True).requests == checked.warps("pack") == warps
        out = checked.output("dense", [T, N], dtype)
        assert checked.lib.emulated_unpack(pointer(planes), T, size, pointer(out), dtype.itemsize, one_of(dtype)) == 0
        assert checked.traffic("planes").requests == checked.warps("unpack") == warps
    for dtype, code in DTYPES.items():
        checked.begin()
        planes, mask = pointer(checked.place("planes", torch.zeros(1, N).byte())), checked.place("mask", torch.zeros(N))
        counts, out = checked.output("counts", [N], dtype), checked.output("out", [N], dtype)
        assert checked.lib.emulated_counts(planes, 1, size, pointer(counts), code) == 0
        assert checked.traffic("planes").requests == checked.warps("counts") == warps
        arguments = pointer(counts), code, pointer(mask), ctypes.c_double(1), size, pointer(out)
        assert checked.lib.emulated_gate_grad(*arguments) == 0
        assert checked.traffic("mask").requests == checked.warps("gate_grad") == warps
        few = checked.output("few", [N], torch.uint8)
        assert checked.lib.emulated_count_bytes(planes, 1, size, pointer(few)) == 0
        assert checked.traffic("few", write=True).requests == checked.warps("count_bytes") == warps
        trains = checked.output("trains", [1, N], torch.uint8)
        assert checked.lib.emulated_burst_planes(pointer(few), 8, size, pointer(trains)) == 0
        assert checked.warps("burst") == 4 * warps


def test_empty(plain: Emulator) -> None:
    nothing, N = ctypes.c_void_p(None), ctypes.c_int64(0)
    assert plain.lib.emulated_pack(nothing, 4, True, 8, N, nothing) == 0
    assert plain.lib.emulated_unpack(nothing, 8, N, nothing, 4, ctypes.c_uint64(1)) == 0
    assert plain.lib.emulated_counts(nothing, 1, N, nothing, 0) == 0
    assert plain.lib.emulated_gate_grad(nothing, 0, nothing, ctypes.c_double(1.0), N, nothing) == 0
