"""The compiled kernels: no spills, no local memory; registers, occupancy and loads as designed."""

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import kernel_sources

from build_tools.compile import ROOT
from build_tools.decide import Toolkit

ARCHS = {"80": "80", "90": "90", "120": "90"}  # for newer GPUs the driver compiles the PTX for 90
# By file: the most registers per thread, and the fewest warps per multiprocessor. In the product shared memory limits
# the number of blocks.
LIMITS = {
    "if_scan": (64, 32), "spike_bits": (48, 40), "product_if": (168, 12), "window_product": (168, 12),
    "batch_norm": (64, 32), "digits": (64, 32), "plain": (64, 32),
}  # fmt: skip
REGISTER_FILE = 64 * 1024

KERNELS = [path for path in kernel_sources() if "__global__" in path.read_text()]

Compiled = dict[str, tuple[str, Path]]  # by file: ptxas' output, and the cubin


@pytest.fixture(scope="module")
def compile_for(toolkit: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Compiles for an architecture, once. Any warning, spill or use of local memory fails."""
    folder = tmp_path_factory.mktemp("cubin")

    def compile_one(arch: str, source: Path) -> tuple[str, Path]:
        cubin = folder / f"{source.stem}_{arch}.cubin"
        command = [toolkit.nvcc, "-std=c++17", "-O3", "-fmad=false", "-Icsrc", "-cubin", "-o", cubin, source]
        command += [f"-gencode=arch=compute_{ARCHS[arch]},code=sm_{arch}", "-Werror=all-warnings"]
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


def test_registers_and_occupancy(compiled: Compiled) -> None:
    """The registers of a warp are allocated in units of 256."""
    for name, (log, _) in compiled.items():
        registers = max(int(n) for n in re.findall(r"Used (\d+) registers", log))
        most, warps = LIMITS[name]
        assert registers <= most, name
        assert REGISTER_FILE // (-(-32 * registers // 256) * 256) >= warps, name


def test_two_blocks_of_the_product(compiled: Compiled) -> None:
    """Two blocks of eight warps share a multiprocessor if a weight is one operand."""
    log, _ = compiled["product_if"]
    kernel = re.compile(r"entry function '\S*ShapeINS0_\d+(\w+Weights(?:ILi1EE)?)ELi(\d+)ELi(\d)ELi(\d)ELi(\d)E\S*'")
    found = {}
    for text in log.split("Compiling ")[1:]:
        shape = kernel.match(text)
        if shape and int(shape[3]) * int(shape[4]) * int(shape[5]) == 8:
            found[shape.groups()] = int(re.findall(r"Used (\d+) registers", text)[0])
    assert len(found) == 25  # five operands at three numbers of steps, in grids large and small; four warps at T <= 4
    assert max(found.values()) <= 128, found


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


@pytest.mark.parametrize(("arch", "float16"), [
    pytest.param("80", 3, marks=pytest.mark.slow), ("90", 3), pytest.param("120", 3.5, marks=pytest.mark.slow),
])  # fmt: skip
def test_product_loop(compile_for: Callable[[str], Compiled], arch: str, float16: float) -> None:
    """The inner loop of the fused product issues at most eight instructions per mma, three at T = 8 in float16."""
    kernels = disassemble(compile_for(arch)["product_if"][1])
    slots = {}
    for name, lines in kernels.items():
        shape = re.search(r"ShapeINS0_\d+(\w+?Weights(?:ILi\dEE)?)ELi(\d+)ELi\d+ELi4ELi1EE", name)
        if shape is None:
            continue  # with a shared depth the loop is unrolled into the loop over the stages
        operands, steps = shape.groups()
        mma = "IMMA" if operands in ("Int8Weights", "DigitWeights") else "HMMA"
        bodies = [body for body in loops(lines) if any(mma in line for line in body)]
        slots[operands, int(steps)] = min(len(body) / sum(mma in line for line in body) for body in bodies)
    assert len(slots) == 18
    assert max(slots.values()) <= 8, slots
    assert slots["Float16Weights", 8] <= float16, slots


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
