"""Measures cases by interleaved timing, each in its own process.

In every round each candidate is sampled once, in random order, so that other load slows all of them. The result is the
median over rounds of the ratio of two candidates, with its quartiles. A sample has several calls if one is too short
for the clock. Untimed calls precede it: without them a candidate pays for the cache contents of the one before. Calls
rotate through several inputs, as in use.

Allocator and thread pool read their settings at the start of a process, and runs agree only with two settings. An
allocator that returns memory causes page faults in every training step: the same step takes 9 ms or 13. Threads that
spin while they wait occupy another core, and their waiting counts as process time.

A result has the fields machine, versions, commit, command, date, threads, quick and rows. A row has the fields of its
:class:`~tandem_snn.bench.cases.Case` and the values measured by :func:`work` (lists: one number per round).
"""

from __future__ import annotations

import fnmatch
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import check_name
from ..machine import PeakMemory
from .cases import CASES, COMPILED, Case, Quantity
from .rivals import Candidate, Output, available, values

Run = Callable[[int], object]  # its argument is the number of the call, which selects the input


@dataclass(frozen=True)
class Protocol:
    """The length of a measurement. Times in seconds."""

    rounds: int = 15
    least_rounds: int = 5
    sample: float = 0.004  # the least duration of a sample
    budget: float = 30.0  # no round begins after this time, except the first ``least_rounds``


QUICK = Protocol(rounds=5, least_rounds=3, sample=0.002, budget=4.0)


def spread(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """The median of the ratio of two rivals, round by round, and its quartiles "low" and "high"."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": median, "low": low, "high": high}


def interleave(
    candidates: Mapping[str, Run],
    protocol: Protocol,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Samples all candidates in turn. Returns the seconds of a call, one number per round, by candidate."""
    samplers = {name: _Sampler(run, protocol.sample, clock) for name, run in candidates.items()}
    order = list(samplers)
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        start = time.monotonic()
        for done in range(protocol.rounds):
            if done >= protocol.least_rounds and time.monotonic() - start > protocol.budget:
                break
            shuffle(order)
            for name in order:
                samplers[name].take()
    finally:
        gc.enable()
    return {name: sampler.seconds for name, sampler in samplers.items()}


class _Sampler:
    """Takes the samples of one candidate."""

    LONG = 0.02  # a call of this many seconds fills the caches itself: one untimed call is enough

    def __init__(self, run: Run, least: float, clock: Callable[[], float]) -> None:
        self.run = run
        self.clock = clock
        self.seconds: list[float] = []
        self._next = 0
        self._call(2)
        once = self._call(1)
        self.calls = max(1, round(least / max(once, 1e-7)))
        self.warm_up = 1 if once > self.LONG else self.calls + 2

    def take(self) -> None:
        self._call(self.warm_up)
        self.seconds.append(self._call(self.calls) / self.calls)

    def _call(self, times: int) -> float:
        first, self._next = self._next, self._next + times
        start = self.clock()
        for i in range(first, first + times):
            self.run(i)
        return self.clock() - start


def kept_for_backward(step: Callable[[], Output], parameters: Sequence[Tensor]) -> int:
    """Bytes saved for backward by a training step: each storage once, without the parameters and the result."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = values(step())
    for tensor in (*parameters, result):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def peak(call: Callable[[], object]) -> int:
    """The peak growth of the process during a call, in bytes, on Linux, with an allocator that returns freed memory."""
    call()
    with PeakMemory(torch.device("cpu")) as memory:
        call()
    assert memory.grown is not None
    return memory.grown


# Answers are compared with the first of these in a case, by timing: spikes depend on it.
REFERENCES = {"step": ("naive", "tandem"), "window": ("naive, windows", "windows")}


def choose(patterns: Iterable[str]) -> list[Case]:
    """The cases with these names, which may have wildcards; without names all cases."""
    patterns = list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            check_name("case", pattern, CASES)
    return [case for name, case in CASES.items() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


def measure(case: Case, threads: int, quick: bool) -> dict[str, Any]:
    """The row of a case. ``quick``: few samples, and no rivals that are compiled first."""
    rivals = [r for r in case.rivals if not (quick and COMPILED in r) and available(r)]
    measured: dict[str, Any] = {}
    for group in [[r] for r in rivals] if case.quantity == "peak" else [rivals]:
        request = {"case": case.name, "threads": threads, "quick": quick, "rivals": group}
        done = subprocess.run(
            [sys.executable, "-m", "tandem_snn.bench.measure", json.dumps(request)],
            env={**os.environ, **environment(threads, case.quantity)},
            stdout=subprocess.PIPE,
            check=True,
        )
        for name, value in json.loads(done.stdout).items():
            measured[name] = measured.get(name, {}) | value if isinstance(value, dict) else value
    return {"case": case.name, "title": case.title, "quantity": case.quantity, "base": case.base, **measured}


def ratio(row: dict[str, Any], name: str) -> dict[str, float]:
    """The ratio of a rival to the base, round by round."""
    return spread(row["values"][name], row["values"][row["base"]])


def environment(threads: int, quantity: Quantity) -> dict[str, str]:
    """Environment variables of a measuring process."""
    keep_memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(1 << 26)}
    return_memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 16), "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_ARENA_MAX": "1",
        **(return_memory if quantity == "peak" else keep_memory),
    }


def work(case: Case, rivals: list[str], threads: int, quick: bool) -> dict[str, Any]:
    """Measures the case's rivals, in the measuring process: seconds per call, one number per round; or bytes."""
    torch.set_num_threads(threads)
    workload = case.build()
    result: dict[str, Any] = {"rates": {name: list(rate) for name, rate in workload.rates.items()}}
    candidates = {name: make() for name, make in workload.candidates.items() if name in rivals}
    if case.quantity == "peak":
        return result | {"values": {name: [peak(partial(c.run, 0))] for name, c in candidates.items()}}
    result["answers"] = compare(candidates)
    if case.quantity == "kept":
        kept = {name: kept_for_backward(partial(c.run, 0), c.parameters) for name, c in candidates.items()}
        return result | {"values": {name: [total / workload.neurons] for name, total in kept.items()}}

    clock = time.process_time if threads == 1 else time.perf_counter
    runs = {name: candidate.run for name, candidate in candidates.items()}
    timings = interleave(runs, QUICK if quick else Protocol(), clock)
    return result | {"values": {name: [float(f"{s:.5g}") for s in seconds] for name, seconds in timings.items()}}


def compare(candidates: dict[str, Candidate]) -> dict[str, dict[str, float]]:
    """Differences between the answers and the reference's, if there is a reference.

    spikes: the fraction of counts, or logits, that differ. gradient: the largest difference of a gradient, relative to
    its largest entry.
    """
    found: dict[str, dict[str, float]] = {}
    for timing, references in REFERENCES.items():
        alike = {n: c.answer for n, c in candidates.items() if c.answer is not None and c.timing == timing}
        reference = next((name for name in references if name in alike), None)
        if reference is not None:
            expected = alike.pop(reference)(0)
            found |= {name: difference(answer(0), expected) for name, answer in alike.items()}
    return found


def difference(answer: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    result = {"spikes": (answer[0] != expected[0]).double().mean().item()}
    if len(answer) > 1:
        pairs = list(zip(answer[1:], expected[1:], strict=True))
        result["gradient"] = max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)
    return result


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(work(CASES[request.pop("case")], **request)))
