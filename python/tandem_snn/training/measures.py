"""Measures of trained networks besides the metric: costs, firing rates, mismatch, accuracy over time."""

from __future__ import annotations

import base64
import copy
import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Dataset
from ..frozen import freeze
from ..measure import energy, firing_rates, mismatch, synops
from ..measure.quality import Readouts, exits, readouts_of, total_over_time
from ..nn.hooks import evaluating
from .recipe import PREFIXES, Recipe
from .task import make_task

SAMPLES = 1000  # of the test split, on which spikes are counted
PICTURES = 8


def rounded(metric: str, value: float) -> float:
    """A metric as in a summary: an accuracy in per cent."""
    return round(100 * value, 4) if metric == "accuracy" else round(value, 7)


def measure(recipe: Recipe, data: Dataset, runs: Sequence[dict[str, nn.Module]]) -> dict[str, Any]:
    """Measures the networks of each seed, by kind, on the device where they and the data are.

    Returns:
        Entries of a summary, means over the seeds. Rates, operations, energy (picojoules per sample) and mismatch are
        of the first 1000 test samples. The mismatch, times of a training step, early exit and pictures (of regression
        on images) are of the first seed. A network that cannot stream has the reason, ``does_not_stream``, in the
        place of a metric over time and an early exit.
    """
    task, first = make_task(data.task), runs[0]
    spiking = [run["SNN"] for run in runs]
    found = measure_spikes(spiking, data)
    times = step_times(list(first.values()), *next(data.train.batches(recipe.batch_size)), task.loss)
    for kind, seconds in zip(first, times, strict=True):
        found[PREFIXES[kind] + "step_time_ms"] = 1e3 * median(seconds)
    if len(times) == 2:
        found["step_time_ratio"] = median(map(operator.truediv, *times))
    try:
        test = data.test.to("cpu")  # where streams run
        readouts: list[Readouts] = [readouts_of(freeze(net).cpu(), test.batches(500)) for net in spiking]
        if data.task == "classification":
            readouts[0] = list(readouts[0])  # used twice
        curves = [total_over_time(each, task.total) for each in readouts]
        means = map(fmean, zip(*curves, strict=True))
        found[f"test_{task.metric}_over_time"] = [rounded(task.metric, value) for value in means]
        if data.task == "classification":
            found["early_exit"] = [asdict(one) for one in exits(readouts[0])]
    except ValueError as reason:
        found["does_not_stream"] = str(reason)
    if data.task == "regression" and (pictures := _pictures(first, data)) is not None:
        found["pictures"] = pictures
    return found


def measure_spikes(nets: Sequence[nn.Module], data: Dataset) -> dict[str, Any]:
    """The entries of a summary that need only spiking networks and samples."""
    samples = next(data.test.batches(SAMPLES))[0]
    rates = [firing_rates(net, samples) for net in nets]
    operations = [synops(net, samples) for net in nets]
    energies = [energy(ops) for ops in operations]
    return {
        "synops_ratio": fmean(ops.ratio for ops in operations),
        "energy_pj": {"snn": fmean(e.snn for e in energies), "ann": fmean(e.ann for e in energies)},
        "firing_rates": {name: fmean(rate[name] for rate in rates) for name in rates[0]},
        "mismatch": {
            name: {key: None if math.isnan(value) else value for key, value in asdict(match).items()}
            for name, match in mismatch(nets[0], samples).items()
        },
    }


def _pictures(nets: dict[str, nn.Module], data: Dataset) -> dict[str, Any] | None:
    images, targets = next(data.test.batches(PICTURES))
    if images.shape[1:].numel() != targets.shape[1:].numel() or len(images.shape) != 4:
        return None
    made = {"original": targets}
    for kind, net in nets.items():
        with evaluating(net):
            made[kind] = net(images)
    levels = {name: (255 * values.float().clamp(0, 1)).round().byte().cpu() for name, values in made.items()}
    texts = {name: base64.b64encode(values.numpy().tobytes()).decode() for name, values in levels.items()}
    return {"shape": list(images.shape), **texts}


def step_times(
    nets: Sequence[nn.Module],
    inputs: Any,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    rounds: int = 30,
    warm_up: int = 5,
) -> list[list[float]]:
    """Seconds of a training step (forward, backward, Adam) of each network, on copies of the networks.

    Each round takes one step of each network, so that other load slows all of them: compare networks by the median of
    the ratios in a round.

    Args:
        nets: networks on one device.
        inputs, targets: a batch.
        loss: called with (outputs, targets), returns a 0-dim tensor.
        rounds, warm_up: the number of timed rounds, and of untimed rounds before them.

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


def _synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
