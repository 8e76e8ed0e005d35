"""Checks and times the CUDA kernels on a GPU, in less than eight minutes: `make gpu-check`.

    python tests/gpu/check.py [--library _C.so] [--wrappers wrappers.so] [--out docs/results] [--only STAGE ...]

On a machine without compilers copy this repository and the two libraries that `make gpu-libraries` makes elsewhere; a
CUDA torch from 2.10 on, under any Python from 3.10 on, is all it needs. Exit status: 0 all is well, 1 something is
wrong, 2 no GPU.

Stages: bits (the ops against the reference, bit for bit), wrappers (each instruction of ptx.cuh), device (more than
2^31 elements, CUDA graphs, streams), tests (the repository's own with --device cuda, where pytest and hypothesis are),
sanitizer (compute-sanitizer's four tools, where it is), timings.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("bits", "wrappers", "device", "tests", "sanitizer", "timings")
SECONDS = 480
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# On a GPU sums of random weights depend on the shape of the batch, as in any library.
NOT_ON_A_GPU = ("test_an_answer_does_not_depend_on_batch_mates",)
TESTS = (
    "if_scan",
    "spike_train",
    "golden",
    "linear_if",
    "conv_if",
    "int8_weights",
    "batch_norm",
    "gradients",
    "layers",
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="the extension's .so, if not the one in tandem_ext/")
    parser.add_argument("--wrappers", type=Path, default=ROOT / "build" / "wrappers.so", help="built from wrappers.cu")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of the JSON and the table")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument(
        "--build", action="store_true", help="build the wrappers, for another machine, and nothing else"
    )
    parser.add_argument("--device", default="cuda", help="cpu tries this program out, and shows nothing else")
    parser.add_argument("--small", action="store_true", help="few and small cases, as the sanitizer runs them")
    return parser.parse_args(arguments)


def failure_of(run: Callable[[], None]) -> Exception | None:
    try:
        run()
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return error
    return None


class Log:
    """Says what happens, and remembers what went wrong."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.results: dict[str, Any] = {}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begin:6.1f} s  {text}", flush=True)

    def stage(self, name: str, cases: Sequence[tuple[str, Callable[[], None]]]) -> None:
        """Runs every case, whatever becomes of the others."""
        failures = {}
        for case, run in cases:
            if error := failure_of(run):
                failures[case] = f"{type(error).__name__}: {error}"[:2000]
                self.say(f"{name}: {case} FAILS: {str(error)[:500]}")
        self.results[name] = {"passed": len(cases) - len(failures), "failures": failures}
        self.say(f"{name}: {len(cases) - len(failures)} of {len(cases)} pass")

    def skip(self, name: str, why: str) -> None:
        self.results[name] = {"skipped": why}
        self.say(f"{name}: skipped, {why}")

    @property
    def failed(self) -> bool:
        return any(result.get("failures") for result in self.results.values())


def build_wrappers(library: Path) -> str | None:
    """Compiles wrappers.cu where there is a compiler; why it is not there, otherwise."""
    nvcc = shutil.which("nvcc")
    if library.exists():
        return None
    if nvcc is None:
        return f"no {library} and no nvcc to build it"
    library.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / "wrappers.cu"
    code = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]
    command = [nvcc, "-std=c++17", "-O1", "-shared", "-Xcompiler=-fPIC", *code, "-o", library, source]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode == 0 else f"nvcc: {done.stderr.strip()[-500:]}"


def run_tests(log: Log) -> None:
    if find_spec("pytest") is None or find_spec("hypothesis") is None:
        return log.skip("tests", "no pytest or no hypothesis")
    files = [f"tests/test_{name}.py" for name in TESTS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "--device=cuda",
        *files,
    ]
    command += ["-k", " and ".join(f"not {name}" for name in NOT_ON_A_GPU)]

    def run() -> None:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]

    return log.stage("tests", [("pytest --device=cuda", run)])


def sanitizer_command(sanitizer: str, tool: str, options: str) -> list[str]:
    """The small cases under one of its tools, our kernels alone; ``options`` is what it says of its options."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    # An initcheck that does not follow what kernels it leaves out write takes their output for uninitialised.
    if tool != "initcheck" or "--initcheck-track-filtered-global-memory" in options:
        command += ["--kernel-name", "kns=tandem"]
    if tool == "memcheck":  # torch asks CUDA for what may not be there
        command += ["--report-api-errors", "no"]
    return [*command, sys.executable, __file__, "--small", "--only", "bits"]


def run_sanitizer(log: Log) -> None:
    tool = shutil.which("compute-sanitizer")
    home = os.environ.get("CUDA_HOME")
    if tool is None and home and Path(home, "bin", "compute-sanitizer").exists():
        tool = str(Path(home, "bin", "compute-sanitizer"))
    if tool is None:
        return log.skip("sanitizer", "no compute-sanitizer on PATH or in CUDA_HOME")

    options = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout

    def run(name: str) -> None:
        # Without torch's pool every tensor is an allocation whose ends the tool knows.
        env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        command = sanitizer_command(tool, name, options)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]

    with ThreadPoolExecutor(len(TOOLS)) as pool:  # each takes a minute, most of it on the host
        running = {name: pool.submit(run, name) for name in TOOLS}
        return log.stage("sanitizer", [(name, done.result) for name, done in running.items()])


def commit() -> str:
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    return "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.build:
        why = build_wrappers(options.wrappers)
        print(f"gpu-check: {why or options.wrappers}")
        return 1 if why else 0
    if options.library is not None:
        os.environ["TANDEM_LIBRARY"] = str(options.library.resolve())
    folders = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests")]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    try:
        import torch
    except ImportError:
        print(f"gpu-check: {sys.executable} has no torch")
        return 2
    device = torch.device("cuda:0" if options.device == "cuda" else options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} sees no CUDA GPU on this machine; nothing was checked")
        return 2
    import tandem_ext as te

    if device.type == "cuda" and te.build_info()["cuda_archs"] is None:
        print("gpu-check: this build of tandem_ext has no CUDA kernels; build it with TANDEM_CUDA=1")
        return 1
    from gpu import correctness, golden, on_device, report, timing

    # The CPU's exact sums are the measure: no TensorFloat-32. tests/conftest.py does the same for the tests.
    torch.backends.cudnn.allow_tf32 = False
    log = Log()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    log.say(f"{card}, driver {driver()}, torch {torch.__version__}, commit {commit()[:8]}")
    if "bits" in options.only:
        log.stage("bits", [(c.name, lambda c=c: c.run(device)) for c in correctness.cases(options.small)])
    if "wrappers" in options.only:
        if why := build_wrappers(options.wrappers):
            log.skip("wrappers", why)
        else:
            wrappers = [(n, lambda n=n: golden.check(options.wrappers, n, device)) for n in golden.GOLDEN]
            log.stage("wrappers", wrappers)
    if "device" in options.only:
        small = options.small or torch.cuda.mem_get_info(device)[0] < 24 * 2**30
        log.stage("device", [(c.name, lambda c=c: c.run(device)) for c in on_device.cases(small)])
        with contextlib.suppress(RuntimeError):  # what a kernel did wrong is reported already
            torch.cuda.empty_cache()
    if "tests" in options.only:
        run_tests(log)
    if "sanitizer" in options.only:
        run_sanitizer(log)
    if "timings" in options.only:
        torch.backends.cudnn.allow_tf32 = True  # as torch has it
        found: dict[str, float] = {}
        rows: list[timing.Row] = []

        def measure() -> None:
            bench = timing.Bench(device, options.small, until=log.begin + SECONDS - 20)
            found.update(timing.peaks(bench))
            log.say("peaks: " + ", ".join(f"{name} {value:.3g}/s" for name, value in found.items()))
            rows.extend(
                timing.measure(bench, lambda r: log.say(f"{r.case}: {r.way}: {1e6 * r.seconds:.1f} us {r.note}"))
            )
            bad = [f"{r.case}: {r.note}" for r in rows if r.way.startswith("tandem") and ": " in r.note]
            assert not bad, "; ".join(bad)

        log.stage("timings", [("all", measure)])
        as_json = [report.row_of(row, found) for row in rows]
        result = {
            "card": card, "driver": driver(), "torch": torch.__version__, "cuda": torch.version.cuda,
            "commit": commit(), "build": te.build_info(), "peaks": found, "checks": log.results,
            "seconds": time.monotonic() - log.begin, "targets": report.targets(as_json), "rows": as_json,
        }  # fmt: skip
        path = report.write(result, options.out)
        print(report.table(result))
        log.say(f"written: {path}")
    return 1 if log.failed else 0


if __name__ == "__main__":
    sys.exit(main())
