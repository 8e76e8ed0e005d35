"""Interleaved timing: reliable ratios of candidates on a machine that is not idle.

In every round each candidate is sampled once, in random order, so that other load slows all of them. The result is the
median over rounds of the ratio of two candidates, with its quartiles. A sample has several calls if one is too short
for the clock. Untimed calls precede it: without them a candidate pays for the cache contents of the one before. Calls
rotate through several inputs, as in use.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..memory import PeakMemory
from .rivals import Output, values

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
