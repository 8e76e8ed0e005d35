"""The compiled kernels: no spills, no local memory; registers, occupancy and loads as designed."""

import functools
import itertools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from build_tools.compile import ROOT, read_sources
from build_tools.decide import Toolkit

ARCHS = ("75", "80", "90", "120")
SHARED = {"75": [64], "80": [164, 100], "90": [228], "120": [100]}  # of a multiprocessor, in kB; 86 and 89 run 80
# By file: the most registers per thread, and the fewest warps per multiprocessor. In the product shared memory limits
# the number of blocks.
LIMITS = {
    "if_scan": (64, 32), "spike_bits": (48, 40), "product_if": (184, 11), "window_product": (255, 8),
    "batch_norm": (64, 32), "digits": (64, 32), "plain": (64, 32),
}  # fmt: skip
REGISTER_FILE = 64 * 1024

KERNELS = [path for name in read_sources()["cuda"] if "__global__" in (path := ROOT / name).read_text()]

Compiled = dict[str, tuple[str, Path]]  # by file: ptxas' output, and the cubin


@pytest.fixture(scope="module")
def compile_for(toolkit: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Compiles for an architecture, once. Any warning, spill or use of local memory fails."""
    folder = tmp_path_factory.mktemp("cubin")

    def compile_one(arch: str, source: Path) -> tuple[str, Path]:
        cubin = folder / f"{source.stem}_{arch}.cubin"
        command = [toolkit.nvcc, "-std=c++17", "-O3", "-fmad=false", "-Icsrc", "-cubin", "-o", cubin, source]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Werror=all-warnings"]
        command += ["-Xptxas=-v,--warn-on-spills,--warn-on-local-memory-usage"]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr, cubin

    @functools.cache
    def compiled(arch: str) -> Compiled:
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(functools.partial(compile_one, arch), KERNELS)
        return {source.stem: result for source, result in zip(KERNELS, results, strict=True)}

    return compiled


@pytest.fixture(params=[pytest.param(arch, marks=[] if arch == "90" else pytest.mark.slow) for arch in ARCHS])
def compiled(request: pytest.FixtureRequest, compile_for: Callable[[str], Compiled]) -> Compiled:
    return compile_for(request.param)


def test_registers_and_occupancy(compiled: Compiled, request: pytest.FixtureRequest) -> None:
    """The registers of a warp are allocated in units of 256. A multiprocessor of sm_75 holds 32 warps."""
    turing = request.node.callspec.params["compiled"] == "75"
    for name, (log, _) in compiled.items():
        registers = max(int(n) for n in re.findall(r"Used (\d+) registers", log))
        most, warps = LIMITS[name] if not turing else (max(LIMITS[name][0], 64), min(LIMITS[name][1], 32))
        assert registers <= most, name
        assert REGISTER_FILE // (-(-32 * registers // 256) * 256) >= warps, name


def tiles(log: str) -> dict[str, int]:
    """Registers by the tiles of a kernel."""
    kernel = re.compile(r"entry function '\S*9TileShapeI\S*?\d+([A-Z][a-z]+(?:\d+|Counts))E\S*'")
    found = {}
    for text in log.split("Compiling ")[1:]:
        if name := kernel.match(text):
            found[name[1]] = int(re.findall(r"Used (\d+) registers", text)[0])
    return found


# Outputs, pixels and steps of a block and of a warp; inputs of a stage, digits that it may have, warps along the depth;
# blocks of a multiprocessor with 64 kB of shared memory, and with 100 kB or more.
TILES = {
    "Narrow4": ((64, 8, 4), (64, 8, 4), (128, 1, 4), (3, 3)), "Deep4": ((64, 16, 4), (64, 8, 4), (128, 1, 4), (1, 1)),
    "Wide4": ((64, 64, 4), (32, 16, 4), (128, 1, 1), (1, 2)), "Narrow8": ((32, 8, 8), (32, 8, 8), (128, 1, 4), (3, 3)),
    "Deep8": ((32, 16, 8), (32, 8, 8), (128, 1, 4), (1, 1)), "Wide8": ((64, 32, 8), (64, 8, 4), (128, 1, 1), (1, 2)),
    "Narrow16": ((32, 8, 16), (32, 8, 8), (128, 1, 4), (1, 1)),
    "Deep16": ((32, 16, 16), (32, 8, 8), (128, 1, 2), (1, 1)),
    "Wide16": ((32, 16, 16), (32, 8, 8), (128, 1, 1), (2, 3)),
    "NarrowCounts": ((32, 64, 1), (32, 16, 1), (64, 4, 1), (2, 3)),
    "WideCounts": ((128, 128, 1), (32, 64, 1), (32, 4, 1), (1, 1)),
    "LargeCounts": ((128, 256, 1), (64, 64, 1), (32, 2, 1), (1, 1)),
}  # fmt: skip


def test_resident_blocks(compiled: Compiled, request: pytest.FixtureRequest) -> None:
    """As many blocks of a product share a multiprocessor as the launch bounds say, by registers and by shared memory,
    with the stages that TileShape::stages() chooses for the card."""
    arch = request.node.callspec.params["compiled"]
    found = tiles(compiled["product_if"][0]) | tiles(compiled["window_product"][0])
    assert found.keys() == TILES.keys()
    for name, registers in found.items():
        block, warp, (inputs, digits, depth), blocks = TILES[name]
        (outputs, pixels, steps), counted = block, name.endswith("Counts")
        threads = 32 * depth * math.prod(of_block // of_warp for of_block, of_warp in zip(block, warp, strict=True))
        items = outputs // 32 * pixels // 8
        sums = 4 * threads * warp[1] if counted else 512 * items * min(steps, 8) * depth
        state = 9 * 512 * items if steps == 16 else 0
        wanted = 1 if arch == "120" and name == "Wide4" else blocks[arch != "75"]
        assert REGISTER_FILE // (threads // 32 * (-(-32 * registers // 256) * 256)) >= wanted, name
        for shared, some in itertools.product(SHARED[arch], range(1, digits + 1)):
            room = shared * 1024 // blocks[arch != "75"] - (0 if arch == "75" else 1024)  # that the driver reserves
            stage = inputs * (some * outputs + pixels * (2 if steps == 16 else 1))
            assert max(2 * stage, sums) + state <= room, name


def test_loads(compiled: Compiled) -> None:
    """At T = 8 the scan of four float32 neurons loads its currents by eight 128-bit instructions, before any use."""
    kernels = disassemble(compiled["if_scan"][1])
    scan = next(lines for name, lines in kernels.items() if "if_scan_kernelIfLb0ELb0ELi8ELi4" in name)
    loads = [i for i, line in enumerate(scan) if "LDG.E.EF.128" in line]
    assert len(loads) == 8
    assert loads[-1] < next(i for i in range(loads[0], len(scan)) if "FMUL" in scan[i])


def test_no_local_memory_or_atomics(compiled: Compiled) -> None:
    for _, cubin in compiled.values():
        for name, lines in disassemble(cubin).items():
            assert not any(re.search(r"\b(LDL|STL|ATOM|RED)\b", line) for line in lines), name


def test_product_loop(compiled: Compiled, request: pytest.FixtureRequest) -> None:
    """From the first mma of a stage to its last one, few instructions are issued per mma. (Turing has four for one.)"""
    kernels = disassemble(compiled["product_if"][1])
    slots = {}
    for name, lines in kernels.items():
        wide = re.search(r"\dWide(\d+)E", name)
        if wide is None:
            continue  # with a shared depth the loop is unrolled into the loop over the stages
        places = [[i for i, line in enumerate(body) if "IMMA" in line] for body in loops(lines)]
        slots[int(wide[1])] = min((at[-1] - at[0]) / (len(at) - 1) for at in places if at)
    assert slots.keys() == {4, 8, 16}
    assert max(slots.values()) <= (8 if request.node.callspec.params["compiled"] != "75" else 4), slots


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The instructions of each kernel, and its labels."""
    places = [Path(folder, "nvidia", name, "bin") for folder in sys.path for name in ("cu13", "cuda_nvdisasm")]
    tool = shutil.which("nvdisasm") or next((str(p / "nvdisasm") for p in places if (p / "nvdisasm").is_file()), None)
    if tool is None:
        pytest.skip("needs nvdisasm (pip install nvidia-cuda-nvdisasm)")
    text = subprocess.run([tool, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    kernels: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([^,]+),", line):
            lines = kernels.setdefault(section[1], [])
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/|\.L_x_\d+:", line):
            lines.append(line)
    return kernels


def loops(lines: list[str]) -> list[list[str]]:
    """The instructions between each label and a branch back to it."""
    labels = {line.strip(": "): i for i, line in enumerate(lines) if line.startswith(".L_x_")}
    found = []
    for i, line in enumerate(lines):
        branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        if branch and labels.get(branch[1], i) < i:
            found.append([text for text in lines[labels[branch[1]] : i + 1] if not text.startswith(".L_x_")])
    return found
