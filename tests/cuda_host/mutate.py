"""Measures the tests: changes the kernels in one place at a time and counts the changes that no test notices.

    python tests/cuda_host/mutate.py [--sample N] [--seed S] [--json FILE]

A survivor is a gap in the tests or a change without effect; which, only reading tells. Not run by pytest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import HERE, LINK, ROOT, WATCHED, build, emulated, find_toolkit, library_parts
from mutation import KERNELS, Mutant, chosen, measure, options

# By file: the sources that contain it, the tests that have to notice.
FILES = {
    "cuda/if_scan.cu": (["if_scan"], ["scan"]),
    "cuda/spike_bits.cu": (["spike_bits"], ["bits"]),
    "cuda/product_if.cu": (["product_if"], ["product"]),
    "cuda/product_tile.cuh": (["product_if"], ["product"]),
    "cuda/spike_operands.cuh": (["product_if"], ["product"]),
    "cuda/batch_norm.cu": (["batch_norm"], ["batch_norm"]),
    "batch_norm.h": (["batch_norm"], ["batch_norm"]),
    "cuda/neurons.cuh": (["if_scan", "product_if"], ["scan", "product"]),
    "cuda/vec.cuh": (["if_scan", "spike_bits", "product_if"], ["scan", "bits", "product"]),
    "if_neuron.h": (["if_scan", "product_if"], ["scan", "product"]),
}
BUILDS: dict[str, list[str]] = {"plain": [], "checked": WATCHED}
LIMIT = 100  # seconds for one test; the slowest takes five


def compiles(library: Path, flags: list[str], changed: list[str], include: Path) -> bool:
    """Builds ``library`` with the kernels beside it in the place of the repository's ``changed`` ones."""
    parts = library_parts(bool(flags))
    objects = [to for _, source, to in parts if Path(source).stem not in changed or source.endswith(".cpp")]
    for stem in changed:
        objects.append(library.with_name(f"{library.stem}_{stem}.o"))
        source = library.parent / "csrc" / "kernels" / "cuda" / f"{stem}.cu"
        command = [*emulated(include), *flags, "-x", "c++", "-c", source, "-o", objects[-1]]
        if subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True).returncode != 0:
            return False
    subprocess.run(["g++", *map(str, objects), *LINK, "-o", str(library)], cwd=ROOT, check=True)
    return True


def failure(libraries: Path, tests: list[str]) -> str | None:
    """What notices the change: a test, a time limit or a crash. Tests of a build that is not there are skipped."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["-o", f"faulthandler_timeout={LIMIT}", "-o", "faulthandler_exit_on_timeout=true"]
    command += [str(HERE / f"test_emulated_{test}.py") for test in tests]
    env = {**os.environ, "TANDEM_EMULATED": str(libraries)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if "Timeout (" in done.stderr:
        return "hangs"
    failed = re.search(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else "crashes"


def verdict(mutant: Mutant, include: Path, folder: Path) -> str:
    """What becomes of a mutant: it does not compile, a test notices it, or it survives."""
    shutil.copytree(KERNELS, folder / "csrc" / "kernels")
    mutant.write(folder / "csrc" / "kernels")
    changed, tests = FILES[mutant.file]
    for name, flags in BUILDS.items():
        library = folder / f"{name}.so"
        if not compiles(library, flags, changed, include):
            return "does not compile"
        if found := failure(folder, tests):
            return found
        library.unlink()
    return "SURVIVES"


def main() -> None:
    arguments = options(__doc__)
    toolkit = find_toolkit()
    if toolkit is None:
        raise SystemExit("needs a CUDA toolkit")
    for name in BUILDS:
        build(name, library_parts(name == "checked"), toolkit.include)

    def judge(mutant: Mutant) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return verdict(mutant, toolkit.include, Path(folder))

    figures = measure(chosen(FILES, arguments.sample, arguments.seed), judge)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
