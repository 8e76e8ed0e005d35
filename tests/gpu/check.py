"""Checks and times the CUDA kernels on a GPU, in about ten minutes: `make gpu-check`.

    python tests/gpu/check.py [--library _C.so] [--out FOLDER] [--only STAGE ...]

It takes a torch from 2.10 on that sees a GPU, neither pip nor a network, and compiles the kernels for that GPU first if
there is nvcc; without nvcc, give it what `make gpu-library` makes on another machine. Exit status: 0 the kernels are
right, 1 something is wrong, 2 there is no GPU. `--dry-run` rehearses it on the CPU, on tiny layers.

Every stage is a process with a time limit, so that one that ends the GPU's context ends no other. After each of them
result.json is written; at the end one archive holds it and all logs, and one line is to be pasted into an issue.

Stages: verdict (every op and type on small layers: the bits of the reference and the CPU), timings (beside
predictions.py), bits (many and large layers), device (more than 2^31 elements, graphs, streams), compile, nccl, tests
(the repository's, where pytest and hypothesis are), sanitizer (compute-sanitizer's four tools, where it is).
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
FOLDERS = [str(ROOT / name) for name in ("", "python", "python/experiments", "tests")]
sys.path[:0] = FOLDERS

from build_tools.decide import OLDEST_ARCH, Plan, decide  # noqa: E402
from gpu import report  # noqa: E402

LIMITS = {"verdict": 120, "timings": 150, "bits": 90, "device": 90, "compile": 90, "nccl": 60, "tests": 110,
          "sanitizer": 110}  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="the extension's .so, if not the one in tandem_ext/")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder of all results")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=tuple(LIMITS), metavar="STAGE")
    parser.add_argument("--dry-run", action="store_true", help="a rehearsal on the CPU; it shows nothing about a GPU")
    parser.add_argument("--seconds", type=float, default=600, help="when it has to end")
    parser.add_argument("--stage", choices=("preflight", *LIMITS), help="this stage alone, in this process")
    parser.add_argument("--result", type=Path, help="what --stage leaves")
    return parser.parse_args(arguments)


def output_of(command: Sequence[str]) -> str:
    """All that a command says; nothing if it cannot run."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    return ""


def make_plan(archs: str) -> Plan:
    """What this machine would build, with CUDA if it has nvcc, for these architectures."""
    env = os.environ | {"TORCH_CUDA_ARCH_LIST": archs, "TANDEM_CUDA": "auto"}
    return decide(env, shutil.which, output_of)


def supervise(command: Sequence[str], log: Path, seconds: float, env: dict[str, str] | None = None) -> str | None:
    """Runs a command with all its output in a file, and kills it and its children after so many seconds. None, or what
    went wrong with it; a status of 1 is for the command's own report."""
    with log.open("w") as output:
        how: dict[str, Any] = {"stderr": subprocess.STDOUT, "env": env, "start_new_session": True}
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, **how)
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


def sanitizer_command(sanitizer: str, tool: str) -> list[str]:
    """The verdict's cases under one of its tools, our kernels alone; but initcheck takes what other kernels wrote for
    uninitialised if it does not follow them."""
    own = ["--kernel-name", "kns=tandem"] if tool != "initcheck" else []
    torchs = ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch asks CUDA for what may not be there
    run = [sys.executable, __file__, "--stage", "verdict"]
    return [sanitizer, "--tool", tool, "--error-exitcode", "9", *own, *torchs, *run]


def code_for(archs: Sequence[str], capability: str) -> str | None:
    """How kernels built for ``archs`` get to run on a card; None: they do not."""
    if list(archs) == ["unknown"]:
        return "JIT unknown"
    card, newest = tuple(map(int, capability.split("."))), ""
    for arch in archs:
        number = arch.removesuffix("+PTX")
        own, others = tuple(map(int, number.rstrip("af").split("."))), number[-1].isdigit()  # else for one card alone
        if own == card or (others and own[0] == card[0] and own < card):
            return "no JIT"
        newest = number if arch != number and others and own < card else newest
    return f"JIT of the PTX for {newest}" if newest else None


class Check:
    """The stages one after the other, and what is known of them so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begin = options, time.monotonic()
        commit = output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
        driver = output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()
        known = {"commit": commit if len(commit) == 40 else "unknown", "driver": "".join(driver[:1])}
        empty = {"preflight": {}, "checks": {}, "peaks": {}, "rows": []}
        self.result: dict[str, Any] = {"rehearsal": options.dry_run, **known, **empty}
        options.out.mkdir(parents=True, exist_ok=True)
        self.logs: set[Path] = set()

    def say(self, text: str) -> None:
        rehearsal = "rehearsal: " * self.options.dry_run
        for line in text.splitlines():
            print(f"{time.monotonic() - self.begin:6.1f} s  {rehearsal}{line}", flush=True)

    def log_of(self, stage: str) -> Path:
        self.logs.add(log := self.options.out / f"{stage}.log")
        return log

    def write(self) -> None:
        self.result["seconds"] = time.monotonic() - self.begin
        report.write(self.result, self.options.out)

    def process(self, stage: str, limit: float) -> tuple[dict[str, Any], str | None]:
        """What a stage leaves, and what is wrong with how it ended."""
        given = self.options
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "result.json")
            command = [sys.executable, __file__, "--stage", stage, "--result", str(file), "--seconds", str(limit)]
            command += ["--dry-run"] * given.dry_run
            wrong = supervise(command, self.log_of(stage), limit)
            return json.loads(file.read_text()) if file.exists() else {}, wrong

    def preflight(self) -> int:
        """Says on one line what there is, and compiles what is missing. The exit status if nothing can be checked."""
        found = self.look()
        if self.options.dry_run:
            self.say(f"torch {found.get('torch')}, {self.options.library or 'the kernels of the CPU'}")
            return 0
        capability = found.get("capability", "0.0")
        if tuple(map(int, capability.split("."))) < OLDEST_ARCH:
            old = f"{found.get('card')} has compute capability {capability}, and 7.5 is the oldest that has kernels"
            smi = (output_of(["nvidia-smi", "-L"]).strip() or "not there").splitlines()[0]
            self.say(f"no GPU was checked: {found.get('why', old)}. nvidia-smi: {smi}")
            return 2
        if self.options.library is None:
            self.build(found.get("archs") or [], capability)
            found = self.look()
        archs = found.get("archs") or []
        how = code_for(archs, capability)
        if how is None:
            none = f"no kernels for compute capability {capability}, only for {archs or 'CPUs'}: put nvcc on PATH, or "
            none += "give --library what `make gpu-library` makes where there is nvcc"
            self.say(found.get("module") or none)
            return 1
        self.say(
            f"{found['card']} ({capability}), driver {self.result['driver']}, torch {found['torch']} for CUDA "
            f"{found['cuda']}, kernels for {' '.join(archs)}: {how}, commit {self.result['commit'][:8]}"
        )
        for note in found["notes"]:
            self.say(f"note: {note}")
        return 0

    def look(self) -> dict[str, Any]:
        found, wrong = self.process("preflight", 120)
        found = found or {"why": f"{sys.executable} says nothing, {wrong}; see {self.log_of('preflight')}"}
        self.result["preflight"] = found
        return found

    def build(self, archs: list[str], capability: str) -> None:
        """Brings the extension up to date, if there is nvcc; for this card alone, if it is new."""
        plan = make_plan(";".join(archs) if code_for(archs, capability) else capability)
        if plan.toolkit is None:
            return self.say(f"not compiled: {plan.note}")
        self.say(plan.summary())
        env = os.environ | {"TANDEM_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ";".join(plan.archs)}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        with self.log_of("build").open("w") as log:
            done = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            said = Path(log.name).read_text().splitlines()[-1:]
            self.say(f"not compiled: {' '.join(said)} ({log.name})")
        self.begin = time.monotonic()  # ten minutes without the compiler's

    def run(self, stage: str) -> None:
        """A stage, however it ends, if there is time for it."""
        checks = self.result["checks"]
        if self.options.seconds - (time.monotonic() - self.begin) < LIMITS[stage]:
            checks[stage] = {"unfinished": "no time for it"}
        elif stage == "sanitizer":
            checks[stage] = self.sanitize()
        else:
            self.merge(stage, *self.process(stage, LIMITS[stage]))
        found = checks[stage]
        for case, why in found.get("failures", {}).items():
            self.say(f"{stage}: {case} FAILS: {why.splitlines()[0][:300]}")
        self.say(f"{stage}: {report.state(found)}")
        if stage == "verdict":
            self.say(report.verdict(self.result))
        if stage == "timings":
            self.say(report.table(self.result))
        self.write()

    def merge(self, stage: str, found: dict[str, Any], wrong: str | None) -> None:
        checks = found.pop("checks", {}).get(stage)
        if wrong is not None or checks is None:
            checks = {"failures": {}} | (checks or {})
            checks["failures"]["process"] = wrong or "it left no result"
        self.result |= found
        self.result["checks"][stage] = checks

    def sanitize(self) -> dict[str, Any]:
        home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
        tool = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ["PATH"], f"{home}/bin"]))
        if self.options.dry_run or not tool:
            return {"skipped": "no GPU" if self.options.dry_run else f"no compute-sanitizer on PATH or in {home}"}
        # Without torch's pool every tensor is an allocation whose ends the tool knows.
        env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        logs = {name: self.log_of(f"sanitizer-{name}") for name in ("memcheck", "racecheck", "initcheck", "synccheck")}

        def run(name: str) -> str | None:
            wrong = supervise(sanitizer_command(tool, name), logs[name], LIMITS["sanitizer"], env)
            return wrong or ("a case fails" if " FAILS: " in logs[name].read_text() else None)

        with ThreadPoolExecutor(len(logs)) as pool:  # each takes a minute, most of it on the host
            wrong = {name: why for name, why in zip(logs, pool.map(run, logs), strict=True) if why}
        slow = [name for name, why in wrong.items() if why.startswith("killed")]
        failures = {name: f"{why}; {logs[name].name}" for name, why in wrong.items() if name not in slow}
        found: dict[str, Any] = {"passed": len(logs) - len(wrong), "failures": failures}
        return found | ({"unfinished": f"no time for {', '.join(slow)}"} if slow else {})


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.library is not None:
        os.environ["TANDEM_LIBRARY"] = str(options.library.resolve())
    os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")])
    if options.stage == "preflight":
        from gpu import preflight

        return preflight.run(options)
    if options.stage is not None:
        from gpu import stages

        return stages.run(options)
    check = Check(options)
    if status := check.preflight():
        return status
    for stage in options.only:
        check.run(stage)
    archive = report.archive(check.result, options.out, check.logs)
    check.say(f"paste this into an issue and attach {archive}:")
    check.say(report.line(check.result))
    return 0 if report.right(check.result) else 1


if __name__ == "__main__":
    sys.exit(main())
