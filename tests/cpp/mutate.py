"""Measures the tests of the CPU kernels: changes them in one place at a time and counts what no test notices.

    python tests/cpp/mutate.py [--sample N] [--seed S] [--json FILE]

A survivor is a gap in the tests or a change without effect; which, only reading tells. Not run by pytest. A change is
tried on the C++ tests of its file first and, where those pass, on the Python tests, with the extension built anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutation import KERNELS, Mutant, chosen, copy_sources, measure, options

# By family: the Python tests. The names of the C++ tests contain the family's.
TESTS = {
    "bits": ["spike_train", "gradients"], "scan": ["if_scan"], "norm": ["batch_norm"], "rule": ["linear_if"],
    "product": ["linear_if", "conv_if", "determinism", "frozen"],
}  # fmt: skip
# By the beginning of a file's path: the families that have to notice. All, for files that are not here.
FAMILIES = {
    "cpu/spike_bits": ["bits"], "cpu/gate": ["bits", "norm"], "cpu/if_scan": ["scan"], "if_scan": ["scan"],
    "batch_norm": ["norm"], "cpu/batch_norm": ["norm"], "cpu/spike_norm": ["norm"],
    "cpu/spike_": ["rule", "product", "norm"], "spike_product": ["rule", "product", "norm"],
}  # fmt: skip


def run(folder: Path, *command: str) -> bool:
    """Whether a command succeeds in ``folder``; one that hangs does not."""
    env = {**os.environ, "TANDEM_CUDA": "0", "PYTHONPATH": f"{folder}:{folder / 'python'}", "CXXFLAGS": "-O1"}
    try:
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=900).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def verdict(mutant: Mutant, tree: Path) -> str:
    """What becomes of a mutant in ``tree``, a copy of the repository that is built."""
    families = next((names for path, names in FAMILIES.items() if mutant.file.startswith(path)), list(TESTS))
    mutant.write(tree / "csrc" / "kernels")
    try:
        if not run(tree, "cmake", "--build", "--preset", "cpu"):
            return "does not compile"
        if not run(tree, "ctest", "--preset", "cpu", "--stop-on-failure", "--tests-regex", "|".join(families)):
            return "the C++ tests"
        if not run(tree, sys.executable, "setup.py", "-q", "build_ext", "--inplace"):
            return "does not compile"
        tests = {f"tests/test_{name}.py": None for family in families for name in TESTS[family]}
        if not run(tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests):
            return "the Python tests"
        return "SURVIVES"
    finally:
        shutil.copy(KERNELS / mutant.file, tree / "csrc" / "kernels" / mutant.file)


def main() -> None:
    arguments = options(__doc__)
    files = [path.relative_to(KERNELS).as_posix() for path in [*KERNELS.glob("cpu/*"), *KERNELS.glob("*.h")]]
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_sources(tree)
        if not (run(tree, "cmake", "--preset", "cpu", "-DCMAKE_BUILD_TYPE=Debug") and run(tree, "ninja", "--version")):
            raise SystemExit("needs CMake and Ninja")
        figures = measure(chosen(sorted(files), arguments.sample, arguments.seed), lambda m: verdict(m, tree))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
