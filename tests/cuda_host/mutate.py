"""Measures the tests: changes the kernels in one place at a time and counts the changes of code that no test notices.

    python tests/cuda_host/mutate.py [--sample N] [--seed S] [--json FILE]

A change that survives is a gap in the tests or has no effect; only reading tells which. Not run by pytest.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import HERE, LINK, ROOT, Toolkit, build, find_toolkit, library_parts, machine_rules
from mutation import KERNELS, NOT_TRIED, Mutant, chosen, measure, run_script

# By file: the sources that include it, and the tests that have to notice a change.
FILES = {
    "cuda/if_scan.cu": (["if_scan"], ["scan", "offsets"]),
    "cuda/spike_bits.cu": (["spike_bits"], ["bits", "offsets"]),
    "cuda/product_if.cu": (["product_if"], ["launch", "product", "digits"]),
    "cuda/window_product.cu": (["window_product"], ["product", "digits"]),
    "cuda/digits.cu": (["digits"], ["digits"]),
    "cuda/plain.cu": (["plain"], ["digits"]),
    "cuda/window_ends.cuh": (["window_product", "plain"], ["product", "digits"]),
    "cuda/digits.h": (["digits", "product_if", "window_product"], ["digits"]),
    "product/unit.h": (["digits", "plain"], ["digits"]),
    "cuda/ptx.cuh": (["product_if", "window_product"], ["product", "digits"]),
    "cuda/product_fill.cuh": (["product_if", "window_product"], ["product", "digits"]),
    "cuda/product_launch.cuh": (["product_if", "window_product"], ["launch", "product", "digits"]),
    "cuda/product_tile.cuh": (["product_if", "window_product"], ["product", "digits"]),
    "cuda/spike_operands.cuh": (["product_if", "window_product"], ["product", "digits"]),
    "cuda/batch_norm.cu": (["batch_norm"], ["batch_norm"]),
    "norm/batch_norm.h": (["batch_norm"], ["batch_norm"]),
    "cuda/neurons.cuh": (["if_scan", "product_if"], ["scan", "product", "offsets"]),
    "cuda/vec.cuh": (["if_scan", "spike_bits", "product_if"], ["scan", "bits", "product"]),
    "neuron/if_neuron.h": (["if_scan", "product_if"], ["scan", "product", "offsets"]),
}
LIMIT = 100  # seconds for one test; the slowest takes five
NAMES = re.compile(r"_GLOBAL__N__\w{8}_\d+_\w+?_cu_\w{8}|^\.(?:loc|file).*$|^//.*$", re.MULTILINE)


def code_of(source: Path, to: Path, toolkit: Toolkit) -> tuple[str, bytes] | None:
    """Compiles a kernel file. Returns its PTX without names and lines, and the host's code; None if it does not
    compile."""
    command = [*machine_rules(toolkit)["ptx"], "-keep", f"-keep-dir={to.parent}", "-c", source, "-o", to]
    if subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True).returncode != 0:
        return None
    text = (to.parent / f"{source.stem}.ptx").read_text().split(".section")[0]
    host = to.with_suffix(".text")
    subprocess.run(["objcopy", "-O", "binary", "--only-section=.text*", str(to), str(host)], check=True)
    return NAMES.sub("", text.replace("\t", "")), host.read_bytes()


def failure(library: Path, tests: list[str]) -> str | None:
    """What notices the change: a test, a time limit or a crash; None if nothing does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["-o", f"faulthandler_timeout={LIMIT}", "-o", "faulthandler_exit_on_timeout=true"]
    command += [str(HERE / f"test_emulated_{test}.py") for test in tests]
    env = {**os.environ, "TANDEM_EMULATED": str(library)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if "Timeout (" in done.stderr:
        return "hangs"
    failed = re.search(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else "crashes"


Code = dict[str, tuple[str, bytes]]  # by file: the result of code_of()


@functools.cache
def originals(toolkit: Toolkit) -> Code:
    """The code of the unchanged files."""
    build("kernels", library_parts(), toolkit)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(KERNELS, Path(folder, "csrc", "kernels"))
        stems = {stem for changed, _ in FILES.values() for stem in changed}
        sources = {stem: Path(folder, "csrc", "kernels", "cuda", f"{stem}.cu") for stem in stems}
        found = {stem: code_of(source, Path(folder, f"{stem}.o"), toolkit) for stem, source in sources.items()}
    return {stem: code for stem, code in found.items() if code is not None}


def verdict(mutant: Mutant, toolkit: Toolkit, folder: Path, original: Code, tests: list[str] | None = None) -> str:
    """The result for a mutant: why it was not tried, what notices it, or that it survives."""
    shutil.copytree(KERNELS, folder / "csrc" / "kernels")
    mutant.write(folder / "csrc" / "kernels")
    changed, all_tests = FILES[mutant.file]
    objects = [to for _, source, to in library_parts() if Path(source).stem not in changed or source.endswith(".cpp")]
    differs = False
    for stem in changed:
        objects.append(folder / f"{stem}.o")
        code = code_of(folder / "csrc" / "kernels" / "cuda" / f"{stem}.cu", objects[-1], toolkit)
        if code is None:
            return NOT_TRIED[0]
        differs |= code != original[stem]
    if not differs:
        return NOT_TRIED[1]
    library = folder / "kernels.so"
    subprocess.run(["g++", *map(str, objects), *LINK, "-o", str(library)], cwd=ROOT, check=True)
    return failure(library, tests or all_tests) or "SURVIVES"


def figures(sample: int | None, seed: int) -> dict[str, Any]:
    toolkit = find_toolkit()
    if toolkit is None:
        raise SystemExit("needs a CUDA toolkit")

    def judge(mutant: Mutant) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return verdict(mutant, toolkit, Path(folder), originals(toolkit))

    return measure(chosen(FILES, sample, seed), judge)


if __name__ == "__main__":
    run_script(__doc__, figures)
