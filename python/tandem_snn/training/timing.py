"""What a training step costs, for several networks measured fairly."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def step_times(
    nets: Sequence[nn.Module],
    inputs: Any,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    rounds: int = 30,
    warm_up: int = 5,
) -> list[list[float]]:
    """Seconds of a training step (forward, backward, Adam) of each network, on copies of the networks.

    Each round takes one step of each, so that whatever slows the machine down meets all of them: compare networks
    by the median of the rounds' ratios.

    Args:
        nets: networks on one device.
        inputs, targets: a batch of what they take, and what ``loss(output, targets)`` takes.
        loss: of a batch, 0-dim.
        rounds, warm_up: how many rounds are timed, and how many go before them.

    Returns:
        For each network the seconds of ``rounds`` steps.

    >>> nets = [torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)]
    >>> times = step_times(nets, torch.rand(8, 64), torch.zeros(8, dtype=torch.int64), rounds=3)
    >>> [len(seconds) for seconds in times]
    [3, 3]
    """
    copies = [copy.deepcopy(net).train() for net in nets]
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-4, fused=True) for net in copies]
    times: list[list[float]] = [[] for _ in nets]
    for r in range(warm_up + rounds):
        for net, optimizer, record in zip(copies, optimizers, times, strict=True):
            _synchronize(targets)
            start = time.perf_counter()
            optimizer.zero_grad()
            loss(net(inputs), targets).backward()
            optimizer.step()
            _synchronize(targets)
            if r >= warm_up:
                record.append(time.perf_counter() - start)
    return times


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median over rounds of a / b."""
    return median(x / y for x, y in zip(a, b, strict=True))


def _synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
