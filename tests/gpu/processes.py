"""Stages in processes of their own: so that a case that ends its process, or leaves a GPU that answers no more, costs
that case alone, and is run again where it tells most.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Found = dict[str, Any]
SLOW = ("timings", "profile", "compile", "nccl", "tests")  # by compilers and hosts: that they take long proves nothing


def output_of(command: Sequence[str]) -> str:
    """All that a command says; nothing if it cannot run."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    return ""


def find_tool(name: str) -> str | None:
    """One of the CUDA toolkit; triton, which comes with torch, has some too."""
    homes = (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda")
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    spec = importlib.util.find_spec("triton")
    places += [f"{folder}/backends/nvidia/bin" for folder in (spec and spec.submodule_search_locations) or ()]
    return shutil.which(name, path=os.pathsep.join(places))


def under(tool: str) -> list[str]:
    """What runs a command under one of compute-sanitizer's tools, our kernels alone; but initcheck takes what other
    kernels wrote for uninitialised if it does not follow them. Nothing where there is no sanitizer."""
    sanitizer = find_tool("compute-sanitizer")
    own = ["--kernel-name", "kns=tandem"] if tool != "initcheck" else []
    torchs = ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch asks CUDA for what may not be there
    return [sanitizer, "--tool", tool, "--error-exitcode", "9", *own, *torchs] if sanitizer else []


def first_report(log: Path) -> str | None:
    """The first thing that compute-sanitizer found: two of its lines, on one."""
    said = [line[9:].strip() for line in log.read_text().splitlines() if line.startswith("=" * 9)]
    said = [line for line in said if line and not line.startswith("COMPUTE-SANITIZER") and "SUMMARY: 0 " not in line]
    return ", ".join(said[:2]) or None


def supervise(command: Sequence[str], log: Path, seconds: float, env: dict[str, str] | None = None) -> str | None:
    """Runs a command with all its output in a file, and kills it and its children after so many seconds. None, or what
    went wrong with it; a status of 1 is for the command's own report."""
    with log.open("a") as output:
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


def joined(first: Any, second: Any) -> Any:
    """What two processes of a stage found: numbers of cases add up, lists follow each other, else the second counts."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first | {key: joined(first[key], value) if key in first else value for key, value in second.items()}
    add = (isinstance(first, list) and isinstance(second, list)) or (type(first) is int and type(second) is int)
    return first + second if add else second


class Runner:
    """Runs cases and keeps their logs. ``script`` runs a stage: check.py."""

    def __init__(self, options: argparse.Namespace, script: str) -> None:
        self.options, self.script, self.logs = options, script, dict[str, Path]()
        options.out.mkdir(parents=True, exist_ok=True)

    def log(self, name: str) -> Path:
        """A file of the archive, which is empty at first."""
        if name not in self.logs:
            self.logs[name] = self.options.out / f"{name}.log"
            self.logs[name].write_text("")
        return self.logs[name]

    def process(
        self, stage: str, seconds: float, log: str, tool: Sequence[str] = (), **options: str | None
    ) -> tuple[Found, str | None]:
        """What a stage leaves, and what is wrong with how it ended."""
        # Without torch's pool every tensor is an allocation whose ends a tool knows.
        env = {**os.environ, **({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool else {})}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "result.json")
            command = [*tool, sys.executable, self.script, "--stage", stage, "--result", str(file)]
            command += ["--seconds", str(seconds), *["--dry-run"] * self.options.dry_run]
            command += [f"--{name}={value}" for name, value in options.items() if value is not None]
            wrong = supervise(command, self.log(log), seconds, env)
            return json.loads(file.read_text()) if file.exists() else {}, wrong

    def stage(self, stage: str, seconds: float) -> Found:
        """All cases of a stage, in as many processes as that takes."""
        until, after = time.monotonic() + seconds, None
        whole: Found = {"checks": {stage: {}}}
        while True:
            found, wrong = self.process(stage, until - time.monotonic(), stage, after=after)
            if wrong is None and stage not in found.get("checks", {}):
                wrong = "it left no result"
            after, whole = found.pop("running", None), joined(whole, found)
            checks = whole["checks"][stage]
            if wrong is None:
                return whole
            failures = checks.setdefault("failures", {})
            if wrong.startswith("killed") and stage in SLOW:
                checks["unfinished"] = f"{wrong}, in {after!r}"
                return whole
            if after is None:  # it came to no case, or ended behind the last
                failures["process"] = wrong
                return whole
            failures[after] = "; ".join([failures.get(after, wrong), *self.alone(stage, after, until)])
            if until - time.monotonic() < 5:
                checks["unfinished"] = f"no time for the cases behind {after!r}"
                return whole

    def alone(self, stage: str, case: str, until: float) -> list[str]:
        """What becomes of a case alone, with blocking launches, then under memcheck."""
        said, number = [], sum(name.startswith(f"{stage}-") for name in self.logs) + 1
        for how, tool in (("alone", []), ("memcheck", under("memcheck"))):
            log, seconds = f"{stage}-{number}-{how}", min(60, until - time.monotonic())
            if seconds < 5:
                said.append(f"{how}: no time")
            elif how == "memcheck" and not tool:
                said.append(f"{how}: no compute-sanitizer")
            else:
                found, wrong = self.process(stage, seconds, log, tool, case=case)
                failure = found.get("checks", {}).get(stage, {}).get("failures", {}).get(case)
                said.append(f"{how}: {first_report(self.log(log)) or failure or wrong or 'right'} ({log}.log)")
        return said

    def sanitize(self, tool: str, seconds: float) -> Found:
        """The smoke under a tool of compute-sanitizer."""
        command = under(tool)
        if self.options.dry_run or not command:
            why = "no GPU" if self.options.dry_run else "no compute-sanitizer on PATH or in CUDA_HOME"
            return {"checks": {tool: {"skipped": why}}}
        found, wrong = self.process("smoke", seconds, tool, command)
        checks = found.get("checks", {}).get("smoke", {"passed": 0, "failures": {}})
        reported = first_report(self.log(tool))
        if reported is None and wrong is not None and wrong.startswith("killed"):
            checks["unfinished"] = f"{wrong}, in {found.get('running')!r}"
        elif tool == "initcheck" and (reported or wrong):  # it may be about torch's kernels
            checks["unfinished"] = f"look at {tool}.log: {reported or wrong}"
        elif reported or wrong:
            checks["failures"][tool] = f"{reported or wrong} ({tool}.log)"
        return {"checks": {tool: checks}}
