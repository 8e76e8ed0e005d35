"""Measures the tests of the CPU kernels: changes the kernels in one place at a time and counts the changes that no test
notices.

    python tests/cpp/mutate.py [--sample N] [--seed S] [--json FILE]

A change that survives is a gap in the tests or has no effect; only reading tells which. Not run by pytest. Each change
is tried with the C++ tests of its folder first and, if they pass, with the Python tests, for which the extension is
built again.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutation import KERNELS, Mutant, chosen, copy_sources, measure, run_script

# By folder: the C++ tests that have to notice a change, fast ones first; for files of other folders all.
TESTS = {
    "neuron": ["test_parallel", "test_if_scan"],
    "network": ["test_network"],
    "norm": ["test_parallel", "test_normalised_layer"],
    "planes": ["test_parallel", "test_planes"],
    "product": ["test_parallel", "test_plan", "test_window", "test_layer", "test_normalised_layer"],
}
ALL = [*dict.fromkeys(test for tests in TESTS.values() for test in tests)]
PYTHON = ["functional", "spike_train", "gradients", "limits", "frozen", "frozen_file", "determinism"]
SECONDS = 30  # of processor time for a C++ test, several times what it takes
MEMORY = 8 << 30


def run(folder: Path, *command: str, seconds: int = 600) -> bool:
    """Whether a command succeeds in ``folder``. It fails if it hangs or needs absurd memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    env = {**os.environ, "TANDEM_CUDA": "0", "PYTHONPATH": f"{folder}:{folder / 'python'}", "CXXFLAGS": "-O1"}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=1800, preexec_fn=limit)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def compiled(tree: Path) -> bytes:
    return (tree / "build" / "cmake-cpu" / "libtandem_kernels.a").read_bytes()


def outcome(programs: Iterable[str], tree: Path, unchanged: bytes = b"") -> str:
    """The result of the tests for the kernels in ``tree``, whose compiled code was ``unchanged`` before."""
    if not run(tree, "cmake", "--build", "--preset", "cpu", "--target", *programs):
        return "does not compile"
    if compiled(tree) == unchanged:
        return "changes no code"
    for program in programs:
        if not run(tree, "ctest", "--preset", "cpu", "--stop-on-failure", "-R", f"^{program}\\.", seconds=SECONDS):
            return program
    if not run(tree, sys.executable, "setup.py", "-q", "build_ext", "--inplace"):
        return "does not compile"
    tests = [f"tests/test_{name}.py" for name in PYTHON]
    if not run(tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests):
        return "the Python tests"
    return "SURVIVES"


def verdict(mutant: Mutant, tree: Path, unchanged: bytes) -> str:
    """The result for a mutant in ``tree``, a built copy of the repository."""
    kernels = tree / "csrc" / "kernels"
    before = (kernels / mutant.file).read_text()
    mutant.write(kernels)
    try:
        return outcome(TESTS.get(mutant.file.split("/")[0], ALL), tree, unchanged)
    finally:
        (kernels / mutant.file).write_text(before)


def figures(sample: int | None, seed: int) -> dict[str, Any]:
    sources = (path.relative_to(KERNELS) for path in KERNELS.rglob("*.*") if path.suffix in (".cpp", ".h"))
    files = [path.as_posix() for path in sources if path.parts[0] != "cuda"]
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_sources(tree)
        if not run(tree, "cmake", "--preset", "cpu", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG="):
            raise SystemExit("needs CMake and Ninja")
        if (said := outcome(ALL, tree)) != "SURVIVES":
            raise SystemExit(f"nothing was changed, and yet: {said}")
        tried, unchanged = chosen(sorted(files), sample, seed), compiled(tree)
        return measure(tried, lambda mutant: verdict(mutant, tree, unchanged))


if __name__ == "__main__":
    run_script(__doc__, figures)
