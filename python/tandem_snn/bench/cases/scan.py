"""The IF scan alone: from currents to spikes."""

from __future__ import annotations

import torch

import tandem_ext as te

from ..case import Case, Workload, at_most
from ..rivals import Candidate
from ..rivals.plain import Loop, if_loop
from ..spikes import rate_of

T, B, N = 8, 256, 4096
RIVALS = ("tandem", "copy", "naive", "naive, loop compiled")


def scan(currents: torch.Tensor) -> te.SpikeTrain:
    train = te.functional.if_scan(currents)
    assert isinstance(train, te.SpikeTrain)
    return train


def build() -> Workload:
    g = torch.Generator().manual_seed(0)
    currents = [(torch.randn(T, B, N, generator=g) * 0.5 * 1024).round() / 1024 for _ in range(3)]
    target = torch.empty_like(currents[0])

    def tandem() -> Candidate:
        def run(i: int) -> te.SpikeTrain:
            with torch.inference_mode():
                return scan(currents[i % 3])

        return Candidate(run, lambda i: [run(i).counts])

    def copy() -> Candidate:
        return Candidate(lambda i: target.copy_(currents[i % 3]))

    def naive(loop: Loop) -> Candidate:
        def run(i: int) -> torch.Tensor:
            with torch.inference_mode():
                return loop(currents[i % 3])[1]

        return Candidate(run, lambda i: [run(i)])

    makers = {
        "tandem": tandem,
        "copy": copy,
        "naive": lambda: naive(if_loop),
        "naive, loop compiled": lambda: naive(torch.compile(if_loop, dynamic=False)),
    }
    return Workload(makers, {"layer 1": rate_of(scan(currents[0]))}, B * N)


CASES = [
    Case("scan", "IF scan of float32 currents [8, 1M]", build, RIVALS, (at_most(1.0, "copy"),), base="copy"),
]
