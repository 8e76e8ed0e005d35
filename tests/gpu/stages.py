"""The stages of a check, each run in a process of its own by check.py: what it runs, and what it leaves in a file."""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import tandem_ext as te

from . import correctness, golden, on_device, report, timing
from .check import nvidia_smi

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("spike_train", "reference", "functional", "gradients", "layers", "layers_shape")
CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw"  # now and at most


class Log:
    """Says what happens, and leaves what is known so far in a file."""

    def __init__(self, path: Path | None = None) -> None:
        self.begin, self.path = time.monotonic(), path
        self.results: dict[str, Any] = {}
        self.found: dict[str, Any] = {}  # beside the checks

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begin:6.1f} s  {text}", flush=True)

    def save(self) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps(report.finite(self.found | {"checks": self.results})))

    def stage(self, name: str, cases: Sequence[tuple[str, Callable[[], None]]]) -> None:
        """Runs every case, whatever becomes of the others."""
        failures: dict[str, str] = {}
        self.results[name] = {"passed": 0, "failures": failures}
        for case, run in cases:
            if error := failure_of(run):
                failures[case] = f"{type(error).__name__}: {error}"
                self.say(f"{name}: {case} FAILS: {error}")
            else:
                self.results[name]["passed"] += 1
            self.save()
        self.say(f"{name}: {len(cases) - len(failures)} of {len(cases)} pass")
        self.save()

    def skip(self, name: str, why: str) -> None:
        self.results[name] = {"skipped": why}
        self.say(f"{name}: skipped, {why}")
        self.save()

    @property
    def failed(self) -> bool:
        return any(result.get("failures") for result in self.results.values())


def failure_of(run: Callable[[], None]) -> Exception | None:
    try:
        run()
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return error
    return None


def bits(log: Log, options: argparse.Namespace, device: torch.device) -> None:
    cases = [(c.name, lambda c=c: c.run(device)) for c in correctness.cases(options.small)]
    log.stage(options.stage, cases)


def wrappers(log: Log, options: argparse.Namespace, device: torch.device) -> None:
    if not options.wrappers.exists():
        return log.skip("wrappers", f"no {options.wrappers}")
    if device.type != "cuda":
        return log.skip("wrappers", "no GPU")
    run = [(name, lambda n=name: golden.check(options.wrappers, n, device)) for name in golden.GOLDEN]
    return log.stage("wrappers", run)


def on_the_device(log: Log, options: argparse.Namespace, device: torch.device) -> None:
    if device.type != "cuda":
        cases = [on_device.same_every_time, on_device.frozen_graph]
        return log.stage("device", [(f.__name__.replace("_", " "), lambda f=f: f(device)) for f in cases])
    small = options.small or torch.cuda.mem_get_info(device)[0] < 24 * 2**30
    return log.stage("device", [(c.name, lambda c=c: c.run(device)) for c in on_device.cases(small)])


def tests(log: Log, options: argparse.Namespace, device: torch.device) -> None:
    if find_spec("pytest") is None or find_spec("hypothesis") is None:
        return log.skip("tests", "no pytest or no hypothesis")
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += [f"--device={device.type}", *(f"tests/test_{name}.py" for name in TESTS)]
    command += ["-k", "test_dtypes"] if options.small else []

    def run() -> None:
        done = subprocess.run(command, cwd=ROOT)
        assert done.returncode == 0, f"pytest ends with {done.returncode}; the log says why"

    return log.stage("tests", [(f"pytest --device={device.type}", run)])


def timings(log: Log, options: argparse.Namespace, device: torch.device) -> None:
    torch.backends.cudnn.allow_tf32 = True  # as torch has it
    found: dict[str, float] = {}
    rows: list[timing.Row] = []
    log.found |= {"peaks": found, "rows": []}

    def say(row: timing.Row) -> None:
        spread = f" [{1e6 * row.timing.low:.1f}, {1e6 * row.timing.high:.1f}]" if row.timing else ""
        log.say(f"{row.case}: {row.way}: {1e6 * row.seconds:.1f} us{spread} {row.note}")
        log.found["rows"].append(report.row_of(row, found))
        rows.append(row)
        log.save()

    def measure() -> None:
        bench = timing.Bench(device, options.small, until=log.begin + options.seconds - 10)
        log.found["clocks"] = [nvidia_smi(CLOCKS)]
        found.update(timing.peaks(bench))
        log.say("peaks: " + ", ".join(f"{name} {value:.3g}/s" for name, value in found.items()))
        timing.measure(bench, say)
        log.found["clocks"].append(nvidia_smi(CLOCKS))
        bad = [f"{r.case}: {r.note}" for r in rows if r.way.startswith("tandem") and ": " in r.note]
        assert not bad, "; ".join(bad)

    log.stage("timings", [("all", measure)])


RUN: dict[str, Callable[[Log, argparse.Namespace, torch.device], None]] = {
    "wrappers": wrappers, "small": bits, "bits": bits, "device": on_the_device, "tests": tests, "timings": timings,
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The stage that ``options`` names, in this process."""
    device = torch.device("cuda:0" if options.device == "cuda" else options.device)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # the CPU's exact sums are the measure; tests/conftest.py does the same
    log = Log(options.result)
    log.found = {"torch": torch.__version__, "cuda": torch.version.cuda, "build": te.build_info()}
    options.small |= options.stage == "small"
    RUN[options.stage](log, options, device)
    return 1 if log.failed else 0
