"""The instructions of ptx.cuh on the machine: the results that `make gpu-check` asks of the hardware."""

from __future__ import annotations

import ctypes
import re
import shutil
from pathlib import Path

import pytest
import torch
from gpu import check, golden
from harness import ROOT, build, machine_parts

from build_tools.decide import Toolkit


@pytest.fixture(scope="module")
def library(toolkit: Toolkit) -> Path:
    return build("wrappers", machine_parts([ROOT / "tests" / "gpu" / "wrappers.cu"]), toolkit)


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_golden(library: Path, name: str) -> None:
    stream = ctypes.CDLL(str(library)).emulation_stream
    stream.restype = ctypes.c_void_p
    golden.check(library, name, torch.device("cpu"), stream())


@pytest.mark.parametrize("name", ["mma_f16", "mma_bf16"])
def test_truncation(library: Path, name: str) -> None:
    """In truncating mode the machine has the bits of MMA-Sim's model of Hopper, also for subnormal numbers and
    zeros."""
    mmasim = pytest.importorskip("mmasim.nv_ptx", reason="needs mmasim")
    lib = ctypes.CDLL(str(library))
    lib.emulation_stream.restype = ctypes.c_void_p
    dtype = {"mma_f16": torch.float16, "mma_bf16": torch.bfloat16}[name]
    word = {"mma_f16": "f16", "mma_bf16": "bf16"}[name]
    model = mmasim.MMA("Hopper", f"m16n8k16.f32.{word}.{word}.f32")
    g = torch.Generator().manual_seed(0)
    for spread in (0, 4, 12):
        A, B, C = (
            torch.randn(shape, generator=g) * 2.0 ** torch.randint(-spread, spread + 1, shape, generator=g)
            for shape in [(16, 16), (8, 16), (16, 8)]
        )
        A[A.abs() < 0.05] = 0
        B[0] *= 2.0**-20  # subnormal in float16
        a, b, d = A.to(dtype), B.to(dtype), C.clone()
        lib.emulation_truncate(True)
        stream = ctypes.c_void_p(lib.emulation_stream())
        assert getattr(lib, f"wrapper_{name}")(*(ctypes.c_void_p(t.data_ptr()) for t in (a, b, d)), stream) == 0
        lib.emulation_truncate(False)
        assert torch.equal(d, model(a, b.T, C))


def test_every_wrapper_has_one() -> None:
    text = (ROOT / "csrc" / "kernels" / "cuda" / "ptx.cuh").read_text()
    for name in ("cp_async", "ldmatrix_x4", "mma_f16", "mma_bf16", "mma_s8_u8", "fire"):
        assert f" {name}(" in text
    assert len(re.findall(r"\basm\b", text)) == 9  # four of them are cp.async
    copies = ["cp_async_16", "cp_async_4", "cp_async_8"]
    assert sorted(golden.GOLDEN) == [*copies, "fire", "ldmatrix", "mma_bf16", "mma_f16", "mma_s8_u8"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_they_compile_for_gpus(tmp_path: Path) -> None:
    assert check.build_wrappers(tmp_path / "wrappers.so") is None
