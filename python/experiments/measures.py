"""What a finished run is measured by: costs, firing rates, mismatch, accuracy over time; and its tables."""

import base64
import copy
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import permutations
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from rich.table import Table
from scipy.stats import binomtest
from scipy.stats import t as student
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn as ts
from data import Data
from recipe import Recipe
from training import Task

SAMPLES = 1000  # of the test split, on which spikes are counted
CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
CAPTION = (
    "Accuracies: difference in points, [95 % interval over seeds], McNemar's p of each seed. Time: on this machine. "
    "Memory: growth in training. Operations: one per spike and synapse it reaches / the twin's multiply-accumulates. "
    "Energy of their arithmetic: an estimate for event-driven hardware."
)


def measure(recipe: Recipe, data: Data, runs: Sequence[dict[str, nn.Module]]) -> dict[str, Any]:
    """Measures the networks of each seed, by kind: "SNN" and, if it was trained, "ANN".

    Returns:
        Entries of summary.json, means over the seeds. Rates, operations, energy (picojoules per sample) and mismatch
        are of the first 1000 test samples. Mismatch, times of a training step and early exit are of the first seed.
    """
    nets = [run["SNN"] for run in runs]
    samples = next(data.test.batches(SAMPLES))[0]
    rates = [ts.measure.firing_rates(net, samples) for net in nets]
    operations = [ts.measure.synops(net, samples) for net in nets]
    energies = [ts.measure.energy(ops) for ops in operations]
    found: dict[str, Any] = {
        "synops_ratio": fmean(ops.ratio for ops in operations),
        "energy_pj": {"snn": fmean(e.snn for e in energies), "ann": fmean(e.ann for e in energies)},
        "firing_rates": {name: fmean(rate[name] for rate in rates) for name in rates[0]},
        "mismatch": {
            name: {key: None if value != value else value for key, value in asdict(match).items() if key != "note"}
            for name, match in ts.measure.mismatch(nets[0], samples).items()
        },
    }
    batch = next(data.train.epoch(0, min(recipe.batch_size, len(data.train))))
    kinds = [kind for kind in ("SNN", "ANN") if kind in runs[0]]
    times = step_times([runs[0][kind] for kind in kinds], *batch, Task(recipe).loss)
    for prefix, seconds in zip(("", "ann_"), times, strict=False):
        found[prefix + "step_time_ms"] = 1e3 * median(seconds)
    if len(times) == 2:
        found["step_time_ratio"] = median(map(operator.truediv, *times))
    return found | over_time(recipe, data, nets)


def over_time(recipe: Recipe, data: Data, nets: Sequence[nn.Module]) -> dict[str, Any]:
    """The test metric after each step, mean over the networks; of the first one the early exit and, with window timing,
    how its neurons follow: steps and most_steps, mean and largest number of them until nothing of a sample moves, and
    synops_ratio, operations / those of the whole window.
    """
    task, test, window = Task(recipe), data.test.to("cpu"), recipe.timing == "window"
    curves: list[list[float]] = []
    found: dict[str, Any] = {}
    for net in nets:
        example = next(test.batches(1))[0].to(next(net.parameters()).device)
        frozen = ts.freeze(net, example=example).cpu()
        batches = [(x, y, *streamed(frozen, x, window)) for x, y in test.batches(500)]
        most = max(len(r) for *_, r, _ in batches)  # with window timing a batch ends at rest
        readouts = torch.cat([torch.cat([r, r[-1:].expand(most - len(r), -1, -1)]) for *_, r, _ in batches], 1)
        targets = torch.cat([y for _, y, *_ in batches])
        # With step timing the readout after t steps is about t/T of a whole window's.
        answers = [one if window else one * (most / t) for t, one in enumerate(readouts, 1)]
        curves.append([task.values(one, targets).mean().item() for one in answers])
        if net is nets[0] and task.classifies:
            found["early_exit"] = early_exit(readouts, targets)
        if net is nets[0] and window:
            steps = torch.cat([last for *_, last in batches])
            spent = sum(ts.measure.synops(frozen, shown(x)).sum().item() for x, *_ in batches)
            whole = sum(ts.measure.synops(net, x.to(example.device)).snn * len(x) for x, *_ in batches)
            found["following"] = {"steps": steps.mean().item(), "most_steps": int(steps.max())}
            found["following"]["synops_ratio"] = spent / whole
    longest = max(map(len, curves))
    curves = [[*curve, *curve[-1:] * (longest - len(curve))] for curve in curves]
    means = [rounded(task.metric, fmean(values)) for values in zip(*curves, strict=True)]
    return {f"test_{task.metric}_over_time": means} | found


def shown(x: te.SpikeTrain | Tensor) -> Tensor:
    """What a stream sees: an image, or the steps of a recording, one at each step."""
    return x.to_dense(torch.float32) if isinstance(x, te.SpikeTrain) else x.unsqueeze(0)


def streamed(frozen: ts.FrozenNetwork, x: te.SpikeTrain | Tensor, window: bool) -> tuple[Tensor, Tensor]:
    """The readouts [steps, B, outputs] from silence, and the last step [B] in which anything of a sample moved."""
    if not window:
        readouts = frozen.readouts(x)
        return readouts, torch.full((len(x),), float(len(readouts)))
    frozen.reset()
    frames, last = shown(x), torch.ones(len(x))
    answers: list[Tensor] = []
    while True:
        answer = frozen.step(frames[len(answers)] if len(answers) < len(frames) else None)
        if len(answers) >= len(frames) and not bool(frozen.moved.any()):
            return torch.stack(answers), last
        answers.append(answer)
        last[frozen.moved > 0] = len(answers)


def early_exit(readouts: Tensor, targets: Tensor) -> list[dict[str, float]]:
    """Accuracy and mean number of steps if each sample stops when the softmax of its readout reaches a confidence.

    >>> early_exit(torch.tensor([[[0.0, 0.0]], [[0.0, 9.0]]]), torch.tensor([1]))[-1]
    {'confidence': 1.0, 'accuracy': 1.0, 'steps': 2.0}
    """
    highest, right = readouts.softmax(2).amax(2), readouts.argmax(2) == targets
    found = []
    for confidence in CONFIDENCES:
        sure = highest >= confidence
        sure[-1] = True
        last = sure.int().argmax(0, keepdim=True)  # the first such step
        accuracy, steps = right.gather(0, last).double().mean().item(), (last + 1).double().mean().item()
        found.append({"confidence": confidence, "accuracy": accuracy, "steps": steps})
    return found


def step_times(
    nets: Sequence[nn.Module], inputs: Any, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], rounds: int = 30
) -> list[list[float]]:
    """Seconds of a training step of a copy of each network, with a step of each in every round, so that other load
    slows all of them: compare networks by the median of the ratios in a round.
    """
    copies = [copy.deepcopy(net).train() for net in nets]
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-4, fused=True) for net in copies]
    times: list[list[float]] = [[] for _ in nets]
    for _ in range(5 + rounds):
        for net, optimizer, seconds in zip(copies, optimizers, times, strict=True):
            start = time.perf_counter()
            optimizer.zero_grad()
            loss(net(inputs), targets).backward()
            optimizer.step()
            if targets.is_cuda:
                torch.cuda.synchronize(targets.device)
            seconds.append(time.perf_counter() - start)
    return [seconds[5:] for seconds in times]


def rounded(metric: str, value: float) -> float:
    """A metric as in a summary: an accuracy in per cent."""
    return round(100 * value, 4) if metric == "accuracy" else round(value, 7)


def packed(right: Tensor) -> str:
    """Which test samples are right, as bits in base64.

    >>> packed(torch.tensor([1.0, 0.0, 1.0])), unpacked("oA==")
    ('oA==', array([1, 0, 1, 0, 0, 0, 0, 0], dtype=uint8))
    """
    return base64.b64encode(np.packbits(right.bool().cpu().numpy()).tobytes()).decode()


def unpacked(text: str) -> Any:
    """The bits of :func:`packed`, with zeros up to a whole byte."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))


def compared(per_seed: Sequence[dict[str, Any]], prefix: str = "ann_") -> str:
    """An accuracy beside that of the network with this prefix: the difference in points, of several seeds with the 95 %
    interval of its mean over seeds (Student's t, paired); and, where it is stored which samples are right, McNemar's
    exact p of each seed, how likely two networks that are equally often right differ so much on these test samples.

    >>> compared([{"test_accuracy": 91.0, "ann_test_accuracy": 90.0, "right": "/wA=", "ann_right": "AAA="}])
    '+1.00, p = 0.0078'
    """
    own, other = ([one[name] for one in per_seed] for name in ("test_accuracy", f"{prefix}test_accuracy"))
    apart = list(map(operator.sub, own, other))
    text = f"{fmean(apart):+.2f}"
    if len(apart) > 1:
        half = student.ppf(0.975, len(apart) - 1) * stdev(apart) / math.sqrt(len(apart))
        text += f" [{fmean(apart) - half:+.2f}, {fmean(apart) + half:+.2f}]"
    tests = []
    for one in per_seed if f"{prefix}right" in per_seed[0] else ():
        better, worse = (
            int((unpacked(one[a]) > unpacked(one[b])).sum()) for a, b in permutations(("right", f"{prefix}right"))
        )
        tests.append(f"{binomtest(better, better + worse).pvalue if better + worse else 1:.2g}")
    return text + f", p = {', '.join(tests)}" * bool(tests)


def tables(summary: dict[str, Any]) -> Iterator[Table]:
    """The tables of a run, from its summary.json."""
    recipe, seeds = summary["recipe"], len(summary["seeds"])
    title = f"{recipe['data']}, {recipe['model']}, T={recipe['T']}, mean of {seeds} seed{'s' * (seeds > 1)}"
    yield _table(title, ("", "SNN", "ANN twin", "SNN / ANN"), _networks(summary), CAPTION)
    rows: list[tuple[str, ...]] = []
    for name, rate in summary["firing_rates"].items():
        match = summary["mismatch"].get(name)  # average pooling has none
        cells = (f"{match['cosine']:.3f}", f"{100 * match['exact']:.1f} %") if match else ("", "")
        rows.append((name, f"{100 * rate:.1f} %", *cells))
    caption = "c: spike counts; a: the activations of the ANN branch; expected: ⌊a + v_init⌋ within 0 to T."
    yield _table("layers", ("layer", "firing rate", "cosine of c and a", "c as expected"), rows, caption)
    if exits := summary.get("early_exit"):
        rows = [(f"{one['confidence']}", f"{100 * one['accuracy']:.2f} %", f"{one['steps']:.2f}") for one in exits]
        yield _table("early exit, first seed", ("confidence", "test accuracy", "mean steps"), rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption, caption_justify="left")
    for i, column in enumerate(head):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _networks(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    metric = "accuracy" if "test_accuracy" in summary else "mse"
    value = summary[f"test_{metric}"]
    form = "{:.2f} %" if metric == "accuracy" else "{:.5f}"
    rows = []
    for label, prefix in ((f"test {metric}", "ann_"), ("the twin, trained on", "ann_continued_")):
        own = form.format(value) if prefix == "ann_" else ""
        if (twin := summary.get(f"{prefix}test_{metric}")) is None:
            rows += [(label, own, "", "")] * bool(own)
            continue
        beside = compared(summary["per_seed"], prefix) if metric == "accuracy" else f"{value / twin:.3f}"
        rows.append((label, own, form.format(twin), beside))
    for label, key, unit, form in (
        ("time per training step", "step_time_ms", 1.0, "{:.2f} ms"),
        ("time per epoch", "seconds_per_epoch", 1.0, "{:.2f} s"),
        ("peak memory", "peak_memory", 2**-20, "{:.0f} MiB"),
    ):
        snn, ann = summary.get(key), summary.get("ann_" + key)
        ratio = summary.get("step_time_ratio") if key == "step_time_ms" else snn / ann if snn and ann else None
        if snn or ann:
            cells = [form.format(one * unit) if one else "" for one in (snn, ann)]
            rows.append((label, cells[0], cells[1], f"{ratio:.2f}" if ratio else ""))
    snn, ann = summary["energy_pj"]["snn"], summary["energy_pj"]["ann"]
    rows.append(("operations at inference", "", "", f"{summary['synops_ratio']:.2f}"))
    rows.append(("energy", f"{1e-6 * snn:.3g} µJ", f"{1e-6 * ann:.3g} µJ", f"{snn / ann:.2f}"))
    return rows
