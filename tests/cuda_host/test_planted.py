"""Mistakes that show only in nvcc's PTX or at run time: the kernels' tests notice each."""

from pathlib import Path

import pytest
from mutate import ROOT, SURVIVES, Cuda, Mutant, copy_sources

from build_tools.decide import Toolkit

# By name: the file, the correct text, the mistake, and the tests that have to notice it.
PLANTED = {
    "an accumulator that is not read": ("cuda/ptx.cuh", '"+r"(d[0])', '"=r"(d[0])', "product"),
    "operands swapped": ("cuda/ptx.cuh", '"r"(a[0]), "r"(a[1])', '"r"(a[1]), "r"(a[0])', "product"),
    "signs swapped": ("cuda/ptx.cuh", "s32.s8.u8.s32", "s32.u8.s8.s32", "product"),
    "no barrier": ("cuda/product_fill.cuh", "__syncthreads();  // this stage", "// this stage", "product"),
    "copies waited for too late": ("cuda/product_fill.cuh", "? ahead - 1 : 0", "? ahead : 0", "product"),
    "shared memory not asked for": ("cuda/product_launch.cuh", "MemorySize, bytes)", "MemorySize, 0)", "product"),
    "sixteen bytes too few": ("cuda/product_launch.cuh", "Size, bytes)", "Size, bytes - 16)", "product"),
    "another stream": (
        "cuda/product_launch.cuh",
        "bytes, static_cast<cudaStream_t>(stream)>>>",
        "bytes, nullptr>>>",
        "product",
    ),
    "launch bounds below the block": ("cuda/product_if.cu", "(S::kThreads, S::k", "(S::kThreads / 2, S::k", "product"),
    "an offset of 32 bits": ("cuda/if_scan.cu", "const int64_t n = (", "const int n = (", "offsets"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_it_is_noticed(name: str, toolkit: Toolkit, tmp_path: Path) -> None:
    file, old, new, tests = PLANTED[name]
    file = f"csrc/kernels/{file}"
    lines = (ROOT / file).read_text().splitlines()
    (line, *_) = [number for number, text in enumerate(lines) if old in text]
    copy_sources(tmp_path)
    Mutant(file, line, lines[line].replace(old, new)).write(tmp_path)
    kernels = Cuda(tmp_path)
    assert kernels.build(file) is None
    assert kernels.test(file, [tests]) != SURVIVES
