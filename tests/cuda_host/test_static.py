"""What the compiler makes of the kernels: no spills, no local memory, registers and 128-bit loads as designed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import kernel_sources

from build_tools.compile import ROOT
from build_tools.decide import Toolkit

ARCHS = ["80", "90"]
REGISTERS = {"if_scan": 64, "spike_bits": 48, "spike_linear": 128}  # by file


Compiled = dict[str, tuple[str, Path]]


@pytest.fixture(scope="module", params=ARCHS)
def compiled(request: pytest.FixtureRequest, toolkit: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """By file: what ptxas says, and the cubin. Any warning, spill or use of local memory fails."""
    folder = tmp_path_factory.mktemp(f"sm_{request.param}")
    out = {}
    for source in kernel_sources():
        cubin = folder / f"{source.stem}.cubin"
        command = [toolkit.nvcc, "-std=c++17", "-O3", "-fmad=false", "-Icsrc", "-cubin", "-o", cubin, source]
        command += [f"-gencode=arch=compute_{request.param},code=sm_{request.param}", "-Werror=all-warnings"]
        command += ["-Xptxas=-v,--warn-on-spills,--warn-on-local-memory-usage"]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        out[source.stem] = done.stderr, cubin
    return out


def test_registers(compiled: Compiled) -> None:
    for name, (log, _) in compiled.items():
        registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
        assert registers, f"{name}: no kernel"
        assert max(registers) <= REGISTERS[name], name


def test_loads(compiled: Compiled) -> None:
    """At T = 8 the scan of four float32 neurons loads its currents by eight 128-bit instructions, before any use."""
    sass = disassemble(compiled["if_scan"][1])
    name = next(name for name in sass if re.search(r"if_scan_kernelIfLb0ELb0ELi8ELi4", name))
    loads = [i for i, line in enumerate(sass[name]) if re.search(r"LDG\.E\.EF\.128", line)]
    assert len(loads) == 8
    first_use = next(i for i in range(loads[0], len(sass[name])) if "FMUL" in sass[name][i])
    assert loads[-1] < first_use
    for instructions in sass.values():
        assert not any(re.search(r"\b(LDL|STL|ATOM|RED)\b", line) for line in instructions)


def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The instructions of each kernel."""
    places = [Path(folder, "nvidia", name, "bin") for folder in sys.path for name in ("cu13", "cuda_nvdisasm")]
    tool = shutil.which("nvdisasm") or next((str(p / "nvdisasm") for p in places if (p / "nvdisasm").is_file()), None)
    if tool is None:
        pytest.skip("needs nvdisasm (pip install nvidia-cuda-nvdisasm)")
    text = subprocess.run([tool, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    kernels: dict[str, list[str]] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([^,]+),", line):
            instructions = kernels.setdefault(section[1], [])
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            instructions.append(line)
    return kernels
