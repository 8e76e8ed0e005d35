"""Measures cases, each in its own process, because allocator and thread pool read their settings at the start.

Runs agree only with two settings. An allocator that returns memory causes page faults in every training step: the same
step takes 9 ms or 13. Threads that spin while they wait occupy another core, and their waiting counts as process time.

A result has the fields machine, versions, commit, command, date, threads, quick and rows. A row has the fields of its
:class:`~tandem_snn.bench.cases.Case` and the values measured by :func:`work` (lists: one number per round).
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import check_name
from .cases import CASES, COMPILED, Case, Quantity
from .rivals import Candidate, available
from .timing import QUICK, Protocol, interleave, kept_for_backward, peak, spread

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
            [sys.executable, "-m", "tandem_snn.bench.run", json.dumps(request)],
            env={**os.environ, **environment(threads, case.quantity)},
            stdout=subprocess.PIPE,
            check=True,
        )
        for name, value in json.loads(done.stdout).items():
            measured[name] = measured.get(name, {}) | value if isinstance(value, dict) else value
    return {"case": case.name, "title": case.title, "quantity": case.quantity, "base": case.base, **measured}


def ratio(row: dict[str, Any], name: str) -> dict[str, float]:
    """The ratio of a rival to the base, round by round: see :func:`~tandem_snn.bench.timing.spread`."""
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
