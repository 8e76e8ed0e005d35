"""The checker finds the mistake in the bad twin of each pair, under every schedule, and none in the good one."""

import ctypes
import re
from typing import Any

import pytest
import torch
from harness import AMPERE, INOUT, TURING, Buffer, Emulator, build, output

from build_tools.decide import Toolkit

# The pairs of twins.cu: text of the report, elements of the output; n, threads and blocks, if not 64, 64 and one.
TWINS: dict[str, tuple[Any, ...]] = {
    "tail": ("out of bounds", 100, 100, 64, 2), "vector_load": ("misaligned", 32, 32, 8),
    "write_once": ("written twice", 64), "write_all": ("not written everywhere", 64),
    "shared_uninitialised": ("uninitialised read", 64), "shared_reverse": ("race: read after write", 64),
    "shared_refill": ("race: write after read", 64), "warp_reverse": ("race: read after write", 64),
    "shared_overrun": ("out of bounds", 64), "between_blocks": ("race:|uninitialised read", 128, 64, 64, 2),
    "divergent_barrier": ("exit", 64), "exited_lane": ("names a lane that has exited", 64),
    "shuffle_outside": ("which takes no part", 64), "async_copy": ("cp.async in flight", 64),
    "async_copy_to_others": ("race: read after write|uninitialised read", 64),
    "unread_accumulator": ("a register is read that was never written", 64),
    "diverged_mma": ("names a lane that has exited", 64), "launch_bounds": ("CUDA error 701", 64),
    "fused": ("the machine does not know 'fma", 64), "much_shared": ("CUDA error 1$", 64),
    "stream": ("another stream", 64), "matrix_rows": ("out of bounds", 64),
}  # fmt: skip
ONLY = {"async_copy": AMPERE, "matrix_rows": TURING}


@pytest.fixture(scope="module")
def twins(toolkit: Toolkit) -> Emulator:
    return Emulator(build("twins", {"ptx": ["tests/cuda_host/twins.cu"]}, toolkit), checked=True)


def call(twins: Emulator, name: str, bad: bool, given: int, size: int, n: int, threads: int, blocks: int = 1) -> int:
    """Launches a twin that reads ``given`` numbers and writes ``size``; returns its status."""
    buffers = {"in": Buffer(torch.rand(given)), "out": output(size)}
    places = [ctypes.c_void_p(twins.place(key, buffer).data_ptr()) for key, buffer in buffers.items()]
    return int(twins.lib.twin(name.encode(), bad, *places, n, threads, blocks))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", [pytest.param(name, marks=ONLY.get(name, ())) for name in TWINS])
def test_twins(twins: Emulator, name: str, seed: int) -> None:
    expected, size, *given = TWINS[name]
    n, threads, blocks = (*given, *(64, 64, 1)[len(given) :])
    for bad in (False, True):
        twins.begin(seed)
        status = call(twins, name, bad, n + 4, size, n, threads, blocks)
        reports = twins.reports() + ([f"CUDA error {status}"] if status else [])
        assert bool(reports) == bad, reports
        if bad:
            assert any(re.search(expected, text) for text in reports), reports
            assert name != "tail" or "twins.cu:" in reports[0]  # names the source line


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32)])
def test_sectors(twins: Emulator, stride: int, sectors: int) -> None:
    twins.begin()
    assert call(twins, "column_read", False, 32 * stride, 32, stride, 32) == 0
    traffic = twins.traffic("in")
    assert (traffic.requests, traffic.bytes, traffic.sectors, traffic.least_sectors) == (1, 128, sectors, 4)


@pytest.mark.parametrize(("stride", "waves"), [(1, 1), (2, 2), (32, 32), (33, 1)])
def test_bank_conflicts(twins: Emulator, stride: int, waves: int) -> None:
    twins.begin()
    assert call(twins, "bank_conflict", False, 32, 32, stride, 32) == 0
    traffic = twins.traffic("shared tile", write=True)
    assert (traffic.requests, traffic.waves, traffic.least_waves) == (1, waves, 1)


def test_memory_of_a_freed_buffer(twins: Emulator) -> None:
    """The checker forgets a buffer when another is given its memory: later accesses belong to the new one."""
    twins.begin()
    out = twins.place("freed", output(64))
    twins.lib.emulation_buffer(b"out", ctypes.c_void_p(out.data_ptr()), ctypes.c_size_t(256), INOUT)
    given = twins.place("in", Buffer(torch.rand(68)))
    twins.lib.twin(b"write_once", False, *(ctypes.c_void_p(t.data_ptr()) for t in (given, out)), 64, 64, 1)
    assert not twins.lib.emulation_reports()
    assert twins.touches("out")[2:] == (1, 1)
