"""Writes the tables of docs/results.md, and pictures, from results of ``tandem-snn sweep``:

python docs/pages/results.py docs/results/training/*.json --cost docs/results/cost.json --out docs/results.md
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from curves import draw_all, front
from runs import Result, read
from tables import with_table

from tandem_snn.errors import UserError
from tandem_snn.machine import short
from tandem_snn.measure.quality import difference_interval, points

NAMES = {
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10, from a JPEG copy",
    "digits": "scikit-learn's digits",
    "dvs-cifar10": "DVS-CIFAR10",
    "dvs128-gesture": "DVS128 Gesture",
    "fashion-mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
    "mnist": "MNIST",
    "n-mnist": "N-MNIST",
}
# What must be known to read a table.
_REMARKS = {
    "cifar10-jpeg": "The images are lossy JPEG files, so the accuracy differs from that on the official images.",
    "digits": "Too few samples for a validation split: the weights of the last epoch are tested.",
    "n-mnist": (
        "The full data set has 60,000 + 10,000 recordings. The accuracy of a subset cannot be compared with published "
        "results."
    ),
}
FOLDS = Path(__file__).parents[1] / "results" / "folds.json"
_STUDENT = 2.776  # 95 % of Student's t with four degrees of freedom lie within
CLOSE = 0.3  # points: what counts as the twin's accuracy


def write(results: Sequence[Result], out: Path, cost: dict[str, Any] | None = None) -> None:
    """Writes the tables of the page and, into the folder ``results/figures`` beside it, its pictures.

    Args:
        results: any number from 1.
        out: the page, with the comments that begin and end its tables.
        cost: of training over T, see :func:`read_cost`.
    """
    figures = out.parent / "results" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    sections = []
    ordered = sorted(results, key=lambda r: (r.recipe.data, r.metric, r.recipe.model, r.settings, r["T"], r.name))
    for _, group in groupby(ordered, key=lambda r: (r.recipe.data, r.metric)):
        of_set = list(group)
        captions = draw_all(of_set, figures)
        pictures = [f"<!-- picture: results/figures/{name} | {caption} -->" for name, caption in captions.items()]
        sections.append("\n".join(_section(of_set, pictures)))
    further = [() if cost is None else cost_section(cost), _origins(ordered)]
    tables = "\n".join([*sections, *("\n".join(lines) for lines in further if lines)])
    out.write_text(with_table(out.read_text(), "results", tables))


def _section(results: Sequence[Result], pictures: Sequence[str]) -> Iterator[str]:
    data, regression = results[0].recipe.data, results[0].metric == "mse"
    yield f"## {NAMES[data]}{', reconstruction' if regression else ''}"
    yield ""
    counts = results[0].get("samples") or {}
    samples = ", ".join(f"{number:,} {split}" for split, number in counts.items() if number)
    yield f"{samples} samples. {_REMARKS.get(data, '')}".rstrip()
    yield ""
    difference = "SNN / ANN" if regression else "difference"
    metric = "MSE" if regression else "accuracy"
    head = (
        "run", "network", "T", "otherwise", "seeds", f"SNN {metric}", "ANN twin", difference, "continued twin",
        difference, "SynOps", "energy", "firing rate", "step, SNN / ANN",
    )  # fmt: skip
    yield from _table(head, map(_row, results))
    best = front(results)
    if not regression and len(results) > len(best) > 1:
        yield f"Pareto front of accuracy against SynOps: {', '.join(f'`{r.name}`' for r in best)}."
        close = [r for r in best if r.twin is not None and r.value >= r.twin - CLOSE]
        if close:
            yield f"Fewest SynOps within {CLOSE} points of the twin: `{close[0].name}`."
        yield ""
    if not regression:
        yield from _by_steps(results)
        for result in results:
            yield from _folds(result.name)
    for result in results if regression else ():
        if result.get("pictures"):
            error = result.value * math.prod(result["pictures"]["shape"][1:])
            yield f"`{result.name}`: squared error summed over an image {error:.2f}."
            yield ""
    for picture in pictures:
        yield picture
        yield ""
    exits = [r for r in results if r.get("early_exit")]
    if exits:
        yield "Early exit at a confidence, first seed: accuracy (mean number of steps)."
        yield ""
        confidences = [one["confidence"] for one in exits[0]["early_exit"]]
        rows = ([f"`{r.name}`", *(_exit(one) for one in r["early_exit"])] for r in exits)
        yield from _table(["run", *(f"{c:g}" for c in confidences)], rows)


def _folds(name: str) -> Iterator[str]:
    """The cross-validation of a recipe, if there is one."""
    accuracies = json.loads(FOLDS.read_text()).get(name)
    if accuracies is None:
        return
    ours, rows = accuracies["SNN"], []
    for kind, theirs in accuracies.items():
        gaps = [one - other for one, other in zip(ours, theirs, strict=True)]
        half = _STUDENT * stdev(gaps) / len(gaps) ** 0.5
        gap = "" if kind == "SNN" else f"{fmean(gaps):+.2f} [{fmean(gaps) - half:+.2f}, {fmean(gaps) + half:+.2f}]"
        rows.append([kind, f"{fmean(theirs):.2f} ± {stdev(theirs):.2f}", ", ".join(map(str, theirs)), gap])
    yield f"`{name}`, cross-validated: each sample is tested once in {len(ours)} folds (`python"
    yield f"tests/benchmarks/folds.py {name}`). Mean ± s.d.; 95 % interval of the paired difference (Student's t)."
    yield ""
    yield from _table(["network", "accuracy", "of each fold", "SNN's difference"], rows)


def _by_steps(results: Sequence[Result]) -> Iterator[str]:
    """The difference to the twin by T, where several ways to train were tried at several T."""
    compared = [r for r in results if r.twin is not None]
    ways = sorted({(r.recipe.model, r.settings_at_any_T) for r in compared})
    steps = sorted({r["T"] for r in compared})
    if min(len(ways), len(steps)) < 2:
        return
    samples = results[0].test_samples
    width = 100 * (difference_interval(results[0].value / 100, results[0].value / 100, samples)[1])

    def cell(way: tuple[str, str], T: int) -> str:
        here = [r for r in compared if (r.recipe.model, r.settings_at_any_T) == way and r["T"] == T]
        return "; ".join(f"{_to_longest(r)} ({r['synops_ratio']:.2f})" for r in here)

    yield (
        "Difference to the twin, or with † to the continued twin, and SynOps in brackets, by T. The 95 % interval of "
        f"each difference is about ±{width:.1f} points ({samples:,} test samples):"
    )
    yield ""
    head = ("network", "otherwise", *(f"T = {T}" for T in steps))
    yield from _table(head, ([*way, *(cell(way, T) for T in steps)] for way in ways))


def _row(r: Result) -> list[str]:
    energy, rates = r["energy_pj"], r["firing_rates"].values()
    return [
        f"`{r.name}`",
        r.recipe.model,
        str(r["T"]),
        r.settings,
        str(len(r["per_seed"])),
        _spread(r),
        _spread(r, "ann_"),
        "" if r.twin is None else _beside(r, r.twin),
        *_control(r),
        f"{r['synops_ratio']:.2f}",
        f"{energy['snn'] / energy['ann']:.2f}",
        f"{100 * fmean(rates):.1f}%",
        "" if r.get("step_time_ratio") is None else f"{r['step_time_ratio']:.2f}",
    ]


def _to_longest(r: Result) -> str:
    """The difference to the twin that was trained as long, where there is one."""
    if r.continued is not None:
        return f"{r.value - r.continued:+.2f}†"
    assert r.twin is not None
    return f"{r.value - r.twin:+.2f}"


def _beside(r: Result, other: float) -> str:
    """The difference to another network's metric."""
    return points(r.value / 100, other / 100, r.test_samples) if r.metric == "accuracy" else f"{r.value / other:.2f}"


def _control(r: Result) -> tuple[str, str]:
    """The twin that was trained as long, and the difference to it."""
    if r.continued is not None:
        return _spread(r, "ann_continued_"), _beside(r, r.continued)
    return ("-", "-") if r.recipe.init_from is not None else ("the twin", "")


def _spread(r: Result, kind: str = "") -> str:
    """The metric of one kind of network, mean and standard deviation over the seeds."""
    unit = ".2f" if r.metric == "accuracy" else ".5f"
    values = (r.get(f"{kind}test_{r.metric}{suffix}") for suffix in ("", "_std"))
    return " ± ".join(f"{value:{unit}}" for value in values if value is not None)


def _exit(one: dict[str, float]) -> str:
    return f"{100 * one['accuracy']:.2f} ({one['steps']:.1f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _origins(results: Sequence[Result]) -> Iterator[str]:
    """Command, commit, date and machine of each run."""
    yield "## Where they come from"
    yield ""
    labels = {machine: f"M{i}" for i, machine in enumerate(sorted({r.machine for r in results}), 1)}
    for machine, label in labels.items():
        yield f"- {label}: {machine}."
    yield ""
    rows = (
        [
            f"`{r.name}`",
            f"`{r['command']}`",
            short(r["commit"]),
            str(r.get("started") or "")[:10],
            labels[r.machine],
            str(r.get("threads") or ""),
        ]
        for r in results
    )
    yield from _table(("run", "command", "commit", "date", "machine", "threads"), rows)


EPOCH = 60_000  # images
_CASE = re.compile(r"cost-(time|peak)-T(\d+)")
_BATCH = re.compile(r"B=(\d+)")


def read_cost(path: Path) -> dict[str, Any]:
    """The result of a benchmark.

    Raises:
        UserError: not JSON, or without the cases of training's cost.
    """
    try:
        result = json.loads(path.read_text())
        rows = [row for row in result["rows"] if _CASE.fullmatch(row["case"])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a result of tandem-snn bench: {error}") from error
    if not rows:
        raise UserError(f"{path} has no case cost-*: tandem-snn bench --case 'cost-*' --out {path}")
    return {**result, "rows": rows}


def cost_section(result: dict[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    rows = result["rows"]
    rivals = list(rows[0]["values"])
    clock = "process CPU time" if result["threads"] == 1 else "wall time"
    yield "## What training costs"
    yield ""
    yield (
        f"Forward and backward of {rows[0]['title'].partition(': ')[2].partition(', T=')[0]}, without batch norm, at a "
        f"firing rate of 10%; {result['threads']} thread{'s' * (result['threads'] > 1)}, {clock}, medians. An epoch is "
        f"{EPOCH:,} images. Memory is the growth of the process in a step, without weights and inputs. BPTT: "
        "backpropagation through time with a surrogate gradient in plain PyTorch, products batched over time. The ANN "
        "does not depend on T and is measured for each T."
    )
    yield ""
    heads = ["T", *(f"{name}, s per epoch" for name in rivals), *(f"{name}, peak MiB" for name in rivals)]
    by_T: dict[int, dict[str, Any]] = {}
    for row in rows:
        kind, T = _CASE.fullmatch(row["case"]).groups()  # type: ignore[union-attr]
        by_T.setdefault(int(T), {})[kind] = row
    yield from _table(
        heads,
        (
            [str(T), *(f"{v:.1f}" for kind in ("time", "peak") for v in _values(kinds.get(kind), rivals))]
            for T, kinds in sorted(by_T.items())
        ),
    )
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    yield f"`{result['command']}` on {result['date'][:10]}, commit {short(result['commit'])}; {machine}."
    yield ""


def _values(row: dict[str, Any] | None, rivals: list[str]) -> list[float]:
    """Seconds per epoch, or MiB."""
    if row is None:
        return [float("nan")] * len(rivals)
    batch = int(_BATCH.search(row["title"])[1])  # type: ignore[index]
    scale = 1 / 2**20 if row["quantity"] == "peak" else EPOCH / batch
    return [scale * median(row["values"][name]) for name in rivals]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="JSON files, each the summary of a run")
    parser.add_argument("--out", type=Path, required=True, help="the page; its pictures go into a folder beside it")
    parser.add_argument("--cost", type=Path, help="what tandem-snn bench --case 'cost-*' has written")
    arguments = parser.parse_args()
    try:
        cost = None if arguments.cost is None else read_cost(arguments.cost)
        write([read(path) for path in arguments.results], arguments.out, cost)
    except (ValueError, OSError) as error:
        parser.error(str(error))
