"""The measuring process: ``python -m tandem_snn.bench.worker REQUEST`` prints the values of one case as JSON."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import memory
from .case import REFERENCES, Case
from .cases import CASES
from .measure import QUICK, Protocol, QuietWait, interleave
from .rivals import Candidate


def work(case: Case, rivals: list[str], threads: int, quick: bool) -> dict[str, Any]:
    """Values of the case's rivals: seconds per call, one number per round; or bytes."""
    torch.set_num_threads(threads)
    workload = case.build()
    result: dict[str, Any] = {"rates": {name: list(rate) for name, rate in workload.rates.items()}}
    candidates = {name: make() for name, make in workload.candidates.items() if name in rivals}
    if case.quantity == "peak":
        return result | {"values": {name: [memory.peak(partial(c.run, 0))] for name, c in candidates.items()}}
    result["answers"] = compare(candidates)
    if case.quantity == "kept":
        kept = {name: memory.kept_for_backward(partial(c.run, 0), c.parameters) for name, c in candidates.items()}
        return result | {"values": {name: [total / workload.neurons] for name, total in kept.items()}}

    settle = QuietWait() if threads > 1 else None
    clock = time.process_time if threads == 1 else time.perf_counter
    runs = {name: candidate.run for name, candidate in candidates.items()}
    timings = interleave(runs, QUICK if quick else Protocol(), clock, settle or (lambda: None))
    return result | {
        "values": {name: [float(f"{s:.5g}") for s in timing.seconds] for name, timing in timings.items()},
        "faults": {name: sorted(timing.faults)[len(timing.faults) // 2] for name, timing in timings.items()},
        "disturbed": settle.disturbed if settle else 0.0,
    }


def compare(candidates: dict[str, Candidate]) -> dict[str, dict[str, float]]:
    """How the answers differ from the reference's, where there is one.

    spikes: the fraction of counts, or logits, that are not equal. gradient: the largest difference of a gradient, as a
    fraction of that gradient's largest entry.
    """
    reference = next((name for name in REFERENCES if name in candidates), None)
    answer = None if reference is None else candidates[reference].answer
    if answer is None:
        return {}
    expected = answer(0)
    return {
        name: difference(candidate.answer(0), expected)
        for name, candidate in candidates.items()
        if candidate.answer is not None and name != reference
    }


def difference(answer: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    result = {"spikes": (answer[0] != expected[0]).double().mean().item()}
    if len(answer) > 1:
        pairs = list(zip(answer[1:], expected[1:], strict=True))
        result["gradient"] = max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)
    return result


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(work(CASES[request["case"]], request["rivals"], request["threads"], request["quick"])))
