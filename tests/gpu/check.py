"""Checks and times the CUDA kernels on a GPU, in less than eight minutes: `make gpu-check`.

    python tests/gpu/check.py [--library _C.so] [--wrappers wrappers.so] [--out docs/results] [--only STAGE ...]

On a machine without compilers copy this repository and the two libraries that `make gpu-libraries` makes elsewhere; a
CUDA torch from 2.10 on, under any Python from 3.10 on, is all it needs, and neither pip nor a network. Exit status: 0
all is well, 1 something is wrong, 2 no GPU. `--dry-run` goes through all of it on a machine without a GPU.

Every stage is a process of its own with a time limit, so that one that ends the GPU's context ends no other. What is
known is written after each of them; its whole output is beside the JSON, in a log.

Stages: wrappers (each instruction of ptx.cuh), small and bits (the ops against the reference, bit for bit), device
(more than 2^31 elements, CUDA graphs, streams), tests (the repository's own with --device cuda, where pytest and
hypothesis are), sanitizer (compute-sanitizer's four tools, where it is), timings.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 475
LIMITS = {"wrappers": 40, "small": 60, "bits": 80, "device": 90, "tests": 110, "sanitizer": 110, "timings": 220}
STAGES = tuple(LIMITS)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


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
    parser.add_argument("--dry-run", action="store_true", help="--device cpu --small")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="when it has to end")
    parser.add_argument("--stage", choices=STAGES, help="this stage alone, in this process")
    parser.add_argument("--result", type=Path, help="what --stage leaves")
    options = parser.parse_args(arguments)
    if options.dry_run:
        options.device, options.small = "cpu", True
    return options


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


def supervise(command: Sequence[str], log: Path, seconds: float, env: dict[str, str] | None = None) -> str | None:
    """Runs a command with all its output in a file, and kills it and its children after so many seconds. None, or what
    went wrong with it; a status of 1 is for the command's own report."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            status = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return f"killed after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return None if status in (0, 1) else f"ended with status {status}"


def sanitizer_command(sanitizer: str, tool: str, options: str) -> list[str]:
    """The small cases under one of its tools, our kernels alone; ``options`` is what it says of its options."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    # An initcheck that does not follow what kernels it leaves out write takes their output for uninitialised.
    if tool != "initcheck" or "--initcheck-track-filtered-global-memory" in options:
        command += ["--kernel-name", "kns=tandem"]
    if tool == "memcheck":  # torch asks CUDA for what may not be there
        command += ["--report-api-errors", "no"]
    return [*command, sys.executable, __file__, "--stage", "small"]


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME")
    tool = shutil.which("compute-sanitizer")
    return tool or (shutil.which("compute-sanitizer", path=f"{home}/bin") if home else None)


def first_line(*command: str) -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    return "unknown"


def commit() -> str:
    return first_line("git", "-C", str(ROOT), "rev-parse", "HEAD")


def nvidia_smi(fields: str) -> str:
    """What it says of the first GPU."""
    return first_line("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


class Check:
    """The stages one after the other, and what is known of them so far."""

    def __init__(self, options: argparse.Namespace, card: str) -> None:
        self.options, self.begin = options, time.monotonic()
        self.result: dict[str, Any] = {
            "card": card, "driver": nvidia_smi("driver_version"), "commit": commit(), "torch": "",
            "cuda": "", "peaks": {}, "checks": {}, "targets": [], "rows": [],
        }  # fmt: skip

    def left(self) -> float:
        return self.options.seconds - (time.monotonic() - self.begin)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begin:6.1f} s  {text}", flush=True)

    def log_of(self, stage: str) -> Path:
        return self.write().with_suffix(f".{stage}.log")

    def write(self) -> Path:
        from gpu import report

        self.result["seconds"] = time.monotonic() - self.begin
        self.result["targets"] = report.targets(self.result["rows"])
        return report.write(self.result, self.options.out)

    def run(self, stage: str) -> None:
        """A stage, however it ends."""
        if self.left() < 10:
            self.result["checks"][stage] = {"failures": {stage: "out of time"}}
        elif stage == "sanitizer":
            self.sanitize()
        else:
            self.run_in_a_process(stage)
        found = self.result["checks"][stage]
        for case, why in found.get("failures", {}).items():
            self.say(f"{stage}: {case} FAILS: {why[:500]}")
        passed = f", {found['passed']} pass" if "passed" in found else ""
        self.say(f"{stage}: {found.get('skipped') or 'done'}{passed}")
        self.write()

    def run_in_a_process(self, stage: str) -> None:
        given = self.options
        with tempfile.TemporaryDirectory() as folder:
            file, limit = Path(folder, "result.json"), min(LIMITS[stage], self.left())
            command = [sys.executable, __file__, "--stage", stage, "--result", str(file), "--device", given.device]
            command += ["--wrappers", str(given.wrappers), "--seconds", str(limit), *["--small"] * given.small]
            wrong = supervise(command, self.log_of(stage), limit)
            found = json.loads(file.read_text()) if file.exists() else {}
        self.merge(stage, found, wrong)

    def merge(self, stage: str, found: dict[str, Any], wrong: str | None) -> None:
        checks = found.pop("checks", {}).get(stage, {"passed": 0, "failures": {}})
        if wrong is not None or not (found or "skipped" in checks):
            checks.setdefault("failures", {})["process"] = wrong or "it left no result"
        self.result |= found
        self.result["checks"][stage] = checks

    def sanitize(self) -> None:
        tool = find_sanitizer()
        if tool is None:
            self.result["checks"]["sanitizer"] = {"skipped": "no compute-sanitizer on PATH or in CUDA_HOME"}
            return
        options = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
        # Without torch's pool every tensor is an allocation whose ends the tool knows.
        env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        limit = min(LIMITS["sanitizer"], self.left())
        logs = {name: self.log_of(f"sanitizer-{name}") for name in TOOLS}

        def run(name: str) -> str | None:
            wrong = supervise(sanitizer_command(tool, name, options), logs[name], limit, env)
            return wrong or ("a case fails" if " FAILS: " in logs[name].read_text() else None)

        with ThreadPoolExecutor(len(TOOLS)) as pool:  # each takes a minute, most of it on the host
            results = zip(TOOLS, pool.map(run, TOOLS), strict=True)
        failures = {name: f"{wrong}; see {logs[name].name}" for name, wrong in results if wrong is not None}
        self.result["checks"]["sanitizer"] = {"passed": len(TOOLS) - len(failures), "failures": failures}

    @property
    def failed(self) -> bool:
        return any(result.get("failures") for result in self.result["checks"].values())


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.build:
        why = build_wrappers(options.wrappers)
        print(f"gpu-check: {why or options.wrappers}")
        return 1 if why else 0
    if options.library is not None:
        os.environ["TANDEM_LIBRARY"] = str(options.library.resolve())
    names = ("", "python", "python/experiments", "tests", "tests/benchmarks")
    folders = [str(ROOT / name) for name in names]
    sys.path[:0] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    try:
        import torch
    except ImportError:
        print(f"gpu-check: {sys.executable} has no torch")
        return 2
    if options.stage is not None:
        from gpu import stages

        return stages.run(options)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} sees no CUDA GPU on this machine; nothing was checked")
        return 2
    import tandem_ext as te

    if on_gpu and te.build_info()["cuda_archs"] is None:
        print("gpu-check: this build of tandem_ext has no CUDA kernels; build it with TANDEM_CUDA=1")
        return 1
    if on_gpu and (why := build_wrappers(options.wrappers)):
        print(f"gpu-check: {why}")
    from gpu import report

    check = Check(options, torch.cuda.get_device_name() if on_gpu else options.device)
    found = check.result
    check.say(f"{found['card']}, driver {found['driver']}, torch {torch.__version__}, commit {found['commit'][:8]}")
    for stage in STAGES:
        if stage in options.only:
            check.run(stage)
    path = check.write()
    print(report.table(check.result))
    check.say(f"written: {path}")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
