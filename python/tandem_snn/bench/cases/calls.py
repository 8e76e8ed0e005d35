"""What a call costs by itself: one sample, 16 neurons with 16 inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import tandem_ext as te

from ..case import Case, Limit, Workload, at_most
from ..rivals import Candidate
from ..spikes import rate_of

T, N = 8, 16
Layer = Callable[[te.SpikeTrain, Tensor], "Tensor | te.SpikeTrain"]


def spiking(x: te.SpikeTrain, weight: Tensor) -> te.SpikeTrain:
    train = te.functional.linear_if(x, weight)
    assert isinstance(train, te.SpikeTrain)
    return train


def ann(x: te.SpikeTrain, weight: Tensor) -> Tensor:
    return torch.relu(F.linear(x.counts, weight))


def problem() -> tuple[te.SpikeTrain, Tensor]:
    g = torch.Generator().manual_seed(0)
    dense = (torch.rand(T, 1, N, generator=g) < 0.3).float()
    train = te.SpikeTrain.from_dense(dense)
    train = te.SpikeTrain(train.planes, T, train.counts)
    return train, torch.randint(-32, 33, (N, N), generator=g) / 64


def inference() -> Workload:
    train, weight = problem()

    def candidate(layer: Layer) -> Candidate:
        def run(i: int) -> Tensor | te.SpikeTrain:
            with torch.no_grad():
                return layer(train, weight)

        return Candidate(run)

    makers = {"tandem": partial(candidate, spiking), "ANN": partial(candidate, ann)}
    return Workload(makers, {"input": rate_of(train)}, N)


def training() -> Workload:
    train, weight = problem()
    grad = torch.randn(1, N, generator=torch.Generator().manual_seed(1))

    def candidate(layer: Layer) -> Candidate:
        w, counts = weight.clone().requires_grad_(), train.counts.clone().requires_grad_()
        x = te.SpikeTrain(train.planes, T, counts)

        def run(i: int) -> Tensor:
            w.grad = counts.grad = None
            output = layer(x, w)
            activity = output.counts if isinstance(output, te.SpikeTrain) else output
            activity.backward(grad)
            return activity

        return Candidate(run)

    makers = {"tandem": partial(candidate, spiking), "ANN": partial(candidate, ann)}
    return Workload(makers, {"input": rate_of(train)}, N)


RIVALS = ("tandem", "ANN")
CASES = [
    Case("call", "linear_if 16×16, T=8, B=1", inference, RIVALS, (Limit(12e-6, None, "≤ 12 µs"),)),
    Case("call-train", "linear_if 16×16, T=8, B=1, forward and backward", training, RIVALS, (at_most(3.0),)),
]
