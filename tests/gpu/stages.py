"""The stages of a check, each run in a process of its own by check.py: its cases, and what it leaves in a file."""

import argparse
import copy
import json
import math
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from cases import train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tandem_ext as te
import tandem_snn.nn as tnn

from . import check, correctness, on_device, report, timing
from .clock import Bench
from .correctness import Case

TESTS = ("ops/test_spike_train", "ops/test_reference", "ops/test_functional", "ops/test_gradients",
         "layers/test_layers", "layers/test_layers_shape")  # fmt: skip
CLOCKS = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw", "--format=csv"]


class Log:
    """Says what happens, and leaves what is known so far in a file. Begins no case when most of the time is gone."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begin = options, time.monotonic()
        self.until = self.begin + 0.85 * options.seconds if options.result else math.inf
        self.checks: dict[str, Any] = {"passed": 0, "failures": {}}
        self.found: dict[str, Any] = {"checks": {options.stage: self.checks}}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begin:6.1f} s  {'rehearsal: ' * self.options.dry_run}{text}", flush=True)
        if (result := self.options.result) is not None:  # whole, whenever this process is killed
            (part := result.with_suffix(".part")).write_text(json.dumps(self.found))
            part.replace(result)

    def run(self, cases: list[Case]) -> None:
        """Every case, whatever becomes of the others."""
        device = torch.device("cpu" if self.options.dry_run else "cuda:0")
        for i, (case, run) in enumerate(cases):
            if time.monotonic() > self.until:
                self.checks["unfinished"] = f"no time for {len(cases) - i} of {len(cases)}"
                break
            if error := failure_of(partial(run, device)):
                self.checks["failures"][case] = error
            self.checks["passed"] += error is None
            self.say(f"{case} FAILS: {error}" if error else case)


def failure_of(run: Callable[[], object]) -> str | None:
    try:
        run()
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def compiled(log: Log) -> list[Case]:
    """A network compiled as users do gives the eager one's answers and gradients, for inputs it has not seen."""
    how = {"backend": "aot_eager"} if log.options.dry_run else {"mode": "reduce-overhead"}

    def run(timing: str, mixed: bool, device: torch.device) -> None:
        net = on_device.layers(timing).to(device)
        fast = torch.compile(net, fullgraph=True, **how)
        for _ in range(4):  # graphs are recorded from the second call on
            x, results = train(8, 4, 8, 16, 16).to(device), []
            for function in (fast, net):
                with torch.autocast(device.type, on_device.half_type(device), enabled=mixed):
                    answer = function(x)
                grads = torch.autograd.grad(answer.float().square().mean(), list(net.parameters()))
                results.append([t.detach().clone() for t in (answer, *grads)])
            rtol, atol = (0.1, 0.05) if mixed else (1e-3, 1e-4)
            torch.testing.assert_close(*results, rtol=rtol, atol=atol)
        log.say(f"graphs skipped: {torch._dynamo.utils.counters['inductor']['cudagraph_skips']}")

    of = [("step", False), ("window", False), ("step", True)]
    return [Case(f"{timing}{', autocast' * mixed}", partial(run, timing, mixed)) for timing, mixed in of]


def rank_of_two(rank: int, kind: str, port: int) -> None:
    """Two processes with half a batch each have the gradients of one with all of it."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    backend, address = "nccl" if kind == "cuda" else "gloo", f"tcp://localhost:{port}"
    torch.distributed.init_process_group(backend, address, rank=rank, world_size=2)
    torch.manual_seed(0)
    planes = train(8, 12, 20).planes
    alone = nn.Sequential(tnn.Linear(20, 48), tnn.Linear(48, 24, timing="window"), tnn.Readout(24, 4))
    together = DistributedDataParallel(copy.deepcopy(alone).to(device))
    for net, part in ((together, planes[:, rank::2].to(device)), (alone, planes)):
        net(te.SpikeTrain(part, 8)).square().mean().backward()
    for ours, theirs in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-6)
    torch.distributed.destroy_process_group()


def nccl(log: Log) -> list[Case] | str:
    if not log.options.dry_run and torch.cuda.device_count() < 2:
        return "one GPU"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [Case("two processes", lambda d: torch.multiprocessing.spawn(rank_of_two, (d.type, port), 2))]


def tests(log: Log) -> list[Case] | str:
    if find_spec("pytest") is None or find_spec("hypothesis") is None:
        return "no pytest or no hypothesis"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile=emulated"]  # ten examples of each property
    command += [f"tests/{name}.py" for name in TESTS[: 1 if log.options.dry_run else None]]

    def run(device: torch.device) -> None:
        try:
            left = log.until - time.monotonic()
            done = subprocess.run([*command, f"--device={device.type}"], cwd=check.ROOT, timeout=left)
        except subprocess.TimeoutExpired:
            log.checks["unfinished"] = "no time for all of pytest; the log has what passed"
        else:
            assert done.returncode == 0, f"pytest ends with {done.returncode}; the log says why"

    return [Case("pytest", run)]


def timings(log: Log) -> list[Case]:
    """A row that has no time is no failure, but a layer of ours that raises is one."""

    def run(device: torch.device) -> None:
        torch.backends.cudnn.allow_tf32 = True  # as torch has it
        bench, rows = Bench(device, log.options.dry_run, until=log.until), []
        log.found |= {"peaks": bench.peaks, "rows": rows, "clocks": [check.output_of(CLOCKS)]}
        for row in timing.measure(bench):
            rows.append(row)
            log.say(f"{row['case']}: {row['way']}: {row.get('note') or report.number(row, 'us') + ' µs'}")
        log.found["clocks"].append(check.output_of(CLOCKS))
        late = sum(row.get("note") == "out of time" for row in rows)
        log.checks |= {"unfinished": f"no time for {late} rows"} if late else {}
        bad = [
            f"{r['case']}: {r['note']}" for r in rows if r["way"].startswith(timing.OWN) and ": " in r.get("note", "")
        ]
        assert not bad, "; ".join(bad)

    return [Case("all rows", run)]


CASES: dict[str, Callable[[Log], list[Case] | str]] = {  # or why there are none
    "verdict": lambda _: correctness.cases(small=True), "timings": timings,
    "bits": lambda log: correctness.cases(small=log.options.dry_run),
    "device": lambda log: on_device.cases(log.options.dry_run), "compile": compiled, "nccl": nccl, "tests": tests,
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The stage that ``options`` names, in this process."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # the CPU's exact sums are the measure; tests/conftest.py does the same
    # The gradients of libraries' convolutions too: without it, two runs may differ.
    torch.use_deterministic_algorithms(options.stage == "device", warn_only=True)
    log = Log(options)
    cases = CASES[options.stage](log)
    if isinstance(cases, str):
        log.found["checks"][options.stage] = {"skipped": cases}
    else:
        log.run(cases)
    log.say(f"{options.stage}: {report.state(log.found['checks'][options.stage])}")
    return 1 if log.checks["failures"] else 0
