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
import zlib
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

from . import check, correctness, on_device, report, smoke, timing
from .clock import OUT_OF_TIME, Bench, Clocks, noted
from .correctness import Case

TESTS = ("ops/test_spike_train", "ops/test_reference", "ops/test_functional", "ops/test_gradients",
         "layers/test_layers", "layers/test_layers_shape")  # fmt: skip


LOST = 3  # how a process ends whose GPU answers no more


class Log:
    """Says what happens, and leaves what is known so far in a file. Begins no case when most of the time is gone."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begin = options, time.monotonic()
        self.until = self.begin + 0.85 * options.seconds if options.result else math.inf
        self.checks: dict[str, Any] = {"passed": 0, "failures": {}}
        self.found: dict[str, Any] = {"checks": {options.stage: self.checks}}

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begin:6.1f} s  {'rehearsal: ' * self.options.dry_run}{text}", flush=True)
        self.write()

    def write(self) -> None:
        if (result := self.options.result) is not None:  # whole, whenever this process is killed
            (part := result.with_suffix(".part")).write_text(json.dumps(self.found))
            part.replace(result)

    def run(self, cases: list[Case]) -> bool:
        """Every case, whatever becomes of the others. False: behind one of them the GPU answers no more."""
        device = torch.device("cpu" if self.options.dry_run else "cuda:0")
        for i, case in enumerate(cases):
            if time.monotonic() > self.until:
                self.checks["unfinished"] = f"no time for {len(cases) - i} of {len(cases)}"
                break
            self.found["running"] = case.name
            self.write()
            if error := failure_of(case, device):
                self.checks["failures"][case.name] = error
            self.say(f"{case.name} FAILS: {error}" if error else case.name)
            if error and is_lost(device):
                return False
            self.checks["passed"] += error is None
        self.found.pop("running", None)
        return True


def failure_of(case: Case, device: torch.device) -> str | None:
    """How a case fails. Its random numbers depend on its name alone."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    try:
        case.run(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def is_lost(device: torch.device) -> bool:
    """Whether an error stays: every later call on the GPU fails too."""
    try:
        return device.type == "cuda" and bool(torch.zeros(1, device=device).item())
    except RuntimeError:
        return True


def chosen(cases: list[Case], options: argparse.Namespace) -> list[Case]:
    """Those that the options ask for: one, those behind one, or all."""
    names = [case.name for case in cases]
    for name in (options.case, options.after):
        if name is not None and name not in names:
            raise SystemExit(f"{options.stage} has no case {name!r}, but: {'; '.join(names)}")
    if options.case is not None:
        return [cases[names.index(options.case)]]
    return cases[0 if options.after is None else names.index(options.after) + 1 :]


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
    torch.backends.cudnn.allow_tf32 = True  # as torch has it
    found: dict[str, Any] = {"peaks": {}, "rows": [], "clocks": {}}
    log.found |= found
    bench: list[Bench] = []

    def run(name: str, device: torch.device) -> None:
        if not bench:
            bench.append(Bench(device, log.options.dry_run, until=log.until))
            found["peaks"] |= bench[0].measure_peaks()
        rows, clocks = [], Clocks()
        for row in timing.CASES[name](bench[0]):
            rows.append(row)
            found["rows"].append(row)
            log.say(f"{row['case']}: {row['way']}: {row.get('note') or report.number(row, 'us') + ' µs'}")
        found["clocks"][name] = clocks.stop()
        late = sum(row.get("note") == OUT_OF_TIME for row in found["rows"])
        log.checks |= {"unfinished": f"no time for {late} rows"} if late else {}
        bad = [
            f"{r['case']}: {r['note']}" for r in rows if ": " in r.get("note", "") and r["way"].startswith(timing.OWN)
        ]
        assert not bad, "; ".join(bad)

    return [Case(name, partial(run, name)) for name in timing.CASES]


def profiles(log: Log) -> list[Case]:
    """Of each call the kernels by time, ours and torch's; of the smoke, whether it ran the tiles that its cases name. A
    profiler that does not work here is no failure."""
    rows = log.found["kernels"] = []

    def run(name: str, make: Callable[[Bench], Callable[[], Any]], calls: int, device: torch.device) -> None:
        bench = Bench(device, log.options.dry_run)
        call = make(bench)
        try:
            rows.extend(bench.kernels(name, call, calls))
        except RuntimeError as error:
            rows.append({"case": name, "kernel": f"no profile, {noted(error)}", "calls": 0, "us": 0.0})

    def run_smoke(device: torch.device) -> None:
        every = smoke.cases()[:: 50 if log.options.dry_run else 1]
        run("smoke", lambda _: lambda: [case.run(device) for case in every], 1, device)
        ran = " ".join(row["kernel"] for row in rows if row["case"] == "smoke")
        forced = {tile for case in every if (tile := smoke.tile_of(case.name))}
        missing = sorted(tile for tile in forced if tile not in ran)
        assert "product_if_kernel" not in ran or not missing, f"not run: {', '.join(missing)}"

    found = [Case(name, partial(run, name, make, 5)) for name, make in timing.PROFILED.items()]
    return [*found, Case("smoke", run_smoke)]


CASES: dict[str, Callable[[Log], list[Case] | str]] = {  # or why there are none
    "smoke": lambda _: smoke.cases(), "verdict": lambda _: correctness.cases(small=True), "timings": timings,
    "profile": profiles, "bits": lambda log: correctness.cases(small=log.options.dry_run),
    "device": lambda log: on_device.cases(log.options.dry_run), "compile": compiled, "nccl": nccl, "tests": tests,
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The stage that ``options`` names, in this process."""
    # The CPU's exact sums are the measure of products of real numbers too, on dyadic numbers: no TF32, no reduction in
    # half types, and none of cuDNN's, whose Winograd rounds where nothing has to.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.enabled = options.stage not in ("smoke", "verdict", "bits")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    # The gradients of libraries' convolutions too: without it, two runs may differ.
    torch.use_deterministic_algorithms(options.stage == "device", warn_only=True)
    log = Log(options)
    cases = CASES[options.stage](log)
    if isinstance(cases, str):
        log.found["checks"][options.stage] = {"skipped": cases}
    elif not log.run(chosen(cases, options)):
        log.write()
        return LOST
    log.say(f"{options.stage}: {report.state(log.found['checks'][options.stage])}")
    return 1 if log.checks["failures"] else 0
