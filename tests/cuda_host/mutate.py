"""Measures the tests: changes the kernels in one place at a time and counts the changes that no test notices.

    python tests/cuda_host/mutate.py [--sample N] [--seed S]

A survivor is a gap in the tests or a change without effect; which, only reading tells. Not run by pytest.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import HERE, LINK, ROOT, WATCHED, build, emulated, find_toolkit, library_parts

KERNELS = ROOT / "csrc" / "kernels"
# By file: the sources that contain it, the tests that have to notice.
FILES = {
    "cuda/if_scan.cu": (["if_scan"], ["scan"]),
    "cuda/spike_bits.cu": (["spike_bits"], ["bits"]),
    "cuda/product_if.cu": (["product_if"], ["product"]),
    "cuda/product_tile.cuh": (["product_if"], ["product"]),
    "cuda/spike_operands.cuh": (["product_if"], ["product"]),
    "cuda/neurons.cuh": (["if_scan", "product_if"], ["scan", "product"]),
    "cuda/vec.cuh": (["if_scan", "spike_bits", "product_if"], ["scan", "bits", "product"]),
    "if_neuron.h": (["if_scan", "product_if"], ["scan", "product"]),
}
BUILDS: dict[str, list[str]] = {"plain": [], "checked": WATCHED}
SWAPS = {
    r" < ": " <= ", r" <= ": " < ", r" > ": " >= ", r" >= ": " > ", r" == ": " != ", r" != ": " == ",
    r" \+ ": " - ", r" - ": " + ", r" \* ": " + ", r" / ": " * ", r" % ": " / ", r" & ": " | ", r" \| ": " & ",
    r" << ": " >> ", r" >> ": " << ", r" && ": " || ", r" \|\| ": " && ", r" \+= ": " = ", r" \|= ": " = ",
    r"__syncthreads\(\);": "", r"cp_async_wait<.*?>\(\);": "", r"cp_async_commit\(\);": "",
    r"\b1u\b": "2u", r"\b0\.0f\b": "1.0f", r"\b1\.0f\b": "0.0f",
}  # fmt: skip
UNTOUCHED = re.compile(r"^\s*(//|#|template|static_assert)|__launch_bounds__|__CUDA_ARCH__|TANDEM_LAUNCH")


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    text: str


def mutants() -> list[Mutant]:
    found = []
    for file in FILES:
        for number, line in enumerate((KERNELS / file).read_text().splitlines()):
            if UNTOUCHED.search(line):
                continue
            code = line.split("//")[0]
            for pattern, swap in SWAPS.items():
                places = re.finditer(pattern, code)
                found += [Mutant(file, number, line[: m.start()] + swap + line[m.end() :]) for m in places]
    return found


def verdict(mutant: Mutant, include: Path, folder: Path) -> str:
    """What becomes of a mutant: it does not compile, a test notices it, or it survives."""
    shutil.copytree(KERNELS, folder / "csrc" / "kernels")
    path = folder / "csrc" / "kernels" / mutant.file
    lines = path.read_text().splitlines()
    lines[mutant.line] = mutant.text
    path.write_text("\n".join(lines) + "\n")
    changed, tests = FILES[mutant.file]
    for name, flags in BUILDS.items():
        parts = library_parts(name == "checked")
        objects = [to for _, source, to in parts if Path(source).stem not in changed or source.endswith(".cpp")]
        for stem in changed:
            objects.append(folder / f"{name}_{stem}.o")
            source = folder / "csrc" / "kernels" / "cuda" / f"{stem}.cu"
            command = [*emulated(include), *flags, "-x", "c++", "-c", source, "-o", objects[-1]]
            if subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True).returncode != 0:
                return "does not compile"
        subprocess.run(["g++", *map(str, objects), *LINK, "-o", str(folder / f"{name}.so")], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += [str(HERE / f"test_emulated_{test}.py") for test in tests]
    env = {**os.environ, "TANDEM_EMULATED": str(folder)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return "SURVIVES"
    failed = re.search(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else "crashes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="try only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    toolkit = find_toolkit()
    if toolkit is None:
        raise SystemExit("needs a CUDA toolkit")
    chosen = mutants()
    if options.sample is not None:
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    for name in BUILDS:
        build(name, library_parts(name == "checked"), toolkit.include)
    survivors = tried = 0
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            result = verdict(mutant, toolkit.include, Path(folder))
        tried += result != "does not compile"
        survivors += result == "SURVIVES"
        print(f"{mutant.file}:{mutant.line + 1}: {mutant.text.strip()}\n    {result}", flush=True)
    print(f"{tried} changes, {tried - survivors} noticed, {survivors} survive")


if __name__ == "__main__":
    main()
