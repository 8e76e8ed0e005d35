"""Interleaved measurement: every way through a case is sampled in turn, in a process that has nothing else to do.

In every round each way is sampled once, in random order, so that other load slows all of them. A sample has several
calls if one is too short for the clock. Untimed calls precede it: without them a way pays for the cache contents of the
one before. Calls rotate through several inputs, as in use.

Allocator and thread pool read their settings at the start of a process, and runs agree only with two settings. An
allocator that returns memory causes page faults in every training step: the same step takes 9 ms or 13. Threads that
spin while they wait occupy another core, and their waiting counts as process time.
"""

import argparse
import ctypes
import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from competitors import COMPETITORS, OURS, values
from table import CASES, Call, Case, Quantity
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
# What our library and torch's may use at most.
CAPABILITIES: dict[str | None, dict[str, str]] = {
    "v3": {"TANDEM_CPU_CAPABILITY": "v3", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
           "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}  # fmt: skip


class Settings(NamedTuple):
    """rounds: so many samples of each way. sample: their least duration. No round begins after ``budget`` seconds,
    except the first five. threads: with 1, process CPU time is measured, with more, wall time. capability: the highest
    instruction set, None for the machine's.
    """

    rounds: int = 40
    sample: float = 0.004
    budget: float = 30.0
    threads: int = 1
    capability: str | None = None


QUICK = Settings(rounds=5, sample=0.002, budget=4.0)


class Ratio(NamedTuple):
    """Of the fastest tenths of two lists of samples, with its 95 % interval, and of their medians."""

    fast: float
    low: float
    high: float
    median: float


def ratio(new: Sequence[float], old: Sequence[float]) -> Ratio:
    """new/old. The interval: the rounds, each with a sample of both, are drawn again a thousand times (bootstrap)."""
    pair = np.array([new, old])
    drawn = np.random.default_rng(0).integers(0, pair.shape[1], (1000, pair.shape[1]))

    def fastest(samples: Any) -> Any:
        return np.divide(*np.quantile(samples, 0.1, axis=-1))

    low, high = np.quantile(fastest(pair[:, drawn]), [0.025, 0.975])
    return Ratio(*map(float, (fastest(pair), low, high, np.divide(*np.median(pair, axis=-1)))))


def fastest(values: list[float]) -> float:
    return float(np.quantile(values, 0.1))


def amount(value: float, quantity: str) -> str:
    if quantity == "kept":
        return f"{value:.3g} B"
    if quantity == "peak":
        return f"{value / 2**20:.2f} MiB"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"


def interleave(takes: Mapping[Any, Callable[[], float]], settings: Settings) -> dict[Any, list[float]]:
    """Takes samples in turn: one of each in every round."""
    order, shuffle = list(takes), random.Random(0).shuffle
    samples: dict[Any, list[float]] = {name: [] for name in order}
    start = time.monotonic()
    for done in range(settings.rounds):
        if done >= 5 and time.monotonic() - start > settings.budget:
            break
        shuffle(order)
        for name in order:
            samples[name].append(takes[name]())
    return samples


class Process(subprocess.Popen):  # type: ignore[type-arg]
    """A process that has built ways through a case, and samples one of them when it is told to; else it waits.

    tree: a checkout with the extension built, whose packages it imports. facts: what it says before the first sample.
    """

    def __init__(self, case: Case, ways: Sequence[str], settings: Settings, tree: Path = ROOT) -> None:
        if not any(tree.glob("tandem_ext/*.so")):
            raise ValueError(f"{tree}: expected a checkout in which the extension is built")
        request = {"case": case.name, "ways": ways, "sample": settings.sample, "threads": settings.threads}
        super().__init__(
            [sys.executable, __file__, json.dumps(request)],
            env={**os.environ, **environment(case.quantity, settings, tree)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.facts = self._answer()

    def take(self, way: str) -> float:
        """Seconds, bytes per neuron or bytes of a call, by the case's quantity."""
        print(way, file=self.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> Any:
        if line := self.stdout.readline():  # type: ignore[union-attr]
            return json.loads(line)
        raise RuntimeError(f"measuring {self.args[-1]} failed with status {self.wait()}, see above")


def environment(quantity: Quantity, settings: Settings, tree: Path) -> dict[str, str]:
    keep_memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(1 << 26)}
    return_memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 16), "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    return {
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'python'}", "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads),
        **(return_memory if quantity == "peak" else keep_memory), **CAPABILITIES.get(settings.capability, {}),
    }  # fmt: skip


def measure(
    case: Case, ways: Sequence[str], settings: Settings, trees: Sequence[Path] = (ROOT,), starts: int = 1
) -> list[dict[str, Any]]:
    """A row for each tree: case, title, quantity, base, the facts of its process, and by way one value per round.

    The trees take turns. ``starts``: the processes are started anew so many times, and share the rounds.
    """
    timed, ways = case.quantity == "time", list(ways)
    about = {"case": case.name, "title": case.title, "quantity": case.quantity, "base": case.base}
    rows = [about | {"answers": {}, "digests": {}, "values": {way: [] for way in ways}} for _ in trees]
    # A way's peak hides in memory that another has left, so that each has a process of its own.
    groups = [[way] for way in ways] if case.quantity == "peak" else [ways]
    for group in groups * (starts if timed else 1):
        with ExitStack() as stack:
            processes = [stack.enter_context(Process(case, group, settings, tree)) for tree in trees]
            takes = {(i, way): partial(p.take, way) for i, p in enumerate(processes) for way in group}
            samples = interleave(takes, settings._replace(rounds=settings.rounds // starts if timed else 1))
        for i, process in enumerate(processes):
            rows[i]["rates"] = process.facts["rates"]
            for key in "answers", "digests":
                rows[i][key] |= process.facts[key]
        for (i, way), taken in samples.items():
            rows[i]["values"][way] += [float(f"{value:.5g}") for value in taken]
    return rows


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every command of the harness takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[], help=f"names, wildcards are allowed: {', '.join(CASES)}")
    parser.add_argument("--threads", type=int, default=1, help="1: process CPU time; 2 or more: wall time")
    parser.add_argument("--capability", choices=CAPABILITIES, help="the highest instruction set")
    parser.add_argument("--out", type=Path, help="the samples as JSON")
    return parser


# --- in the measuring process -----------------------------------------------------------------------------------------


class Sampler:
    """Takes the samples of one way."""

    LONG = 0.02  # a call of this many seconds fills the caches itself: one untimed call is enough

    def __init__(self, run: Callable[[int], object], least: float, clock: Callable[[], float]) -> None:
        self._run, self._clock, self._next = run, clock, 0
        self._call(2)
        once = self._call(1)
        self._calls = max(1, round(least / max(once, 1e-7)))
        self._warm_up = 1 if once > self.LONG else self._calls + 2

    def take(self) -> float:
        """Seconds of a call."""
        self._call(self._warm_up)
        return self._call(self._calls) / self._calls

    def _call(self, times: int) -> float:
        first, self._next = self._next, self._next + times
        start = self._clock()
        for i in range(first, first + times):
            self._run(i)
        return self._clock() - start


def kept(call: Call) -> int:
    """Bytes saved for backward: each storage once, without the parameters and the result."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = values(call.run(0))
    for tensor in (*call.parameters, result):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def peak(call: Call) -> int:
    """The peak growth of the process during a call, in bytes, on Linux, with an allocator that returns freed memory.

    It includes the gradients: nothing hides in the memory of those from the call before.
    """

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

    call.run(0)
    for parameter in call.parameters:
        parameter.grad = None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # growth into freed memory would not be visible
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    call.run(0)
    return resident("VmHWM") - before


REFERENCES = {"step": ("naive", "tandem"), "window": ("naive, windows", "windows")}


def compare(calls: Mapping[str, Call]) -> dict[str, dict[str, float]]:
    """Differences between each answer and the reference's: the first of these that is there, by timing."""
    found: dict[str, dict[str, float]] = {}
    for timing, references in REFERENCES.items():
        alike = {n: c.answer for n, c in calls.items() if c.answer is not None and COMPETITORS[n].timing == timing}
        for reference in [name for name in references if name in alike][:1]:
            expected = alike.pop(reference)(0)
            found |= {name: difference(answer(0), expected) for name, answer in alike.items()}
    return found


def difference(answer: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """spikes: the fraction of counts, or logits, that differ. gradient: the largest difference of a gradient, relative
    to its largest entry.
    """
    result = {"spikes": (answer[0] != expected[0]).double().mean().item()}
    pairs = zip(answer[1:], expected[1:], strict=True) if len(answer) > 1 else ()
    gradients = [((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs]
    return result | ({"gradient": max(gradients)} if gradients else {})


def serve(case: str, ways: Sequence[str], sample: float, threads: int) -> None:
    """Builds the case, says what it is, and answers each line, the name of a way, with a sample of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    torch.set_num_threads(threads)
    quantity, workload = CASES[case].quantity, CASES[case].workload()
    calls = {way: workload.calls[way]() for way in ways}
    digests = {way: hashlib.sha256(values(calls[way].run(0)).detach().numpy().tobytes()).hexdigest()
               for way in ways if way in OURS}  # fmt: skip
    facts = {
        "rates": {name: list(rate) for name, rate in workload.rates.items()},
        "answers": compare(calls), "digests": digests,
    }  # fmt: skip
    print(json.dumps(facts), file=answers, flush=True)
    clock = time.process_time if threads == 1 else time.perf_counter
    takes: dict[str, Callable[[], float]]
    if quantity == "time":
        takes = {way: Sampler(call.run, sample, clock).take for way, call in calls.items()}
    else:
        scale = workload.neurons if quantity == "kept" else 1
        takes = {way: lambda call=call: globals()[quantity](call) / scale for way, call in calls.items()}
    gc.collect()
    gc.disable()
    for line in sys.stdin:
        print(takes[line.strip()](), file=answers, flush=True)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
