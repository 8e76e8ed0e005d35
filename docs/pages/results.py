"""Writes the tables of docs/results.md from what the training script measured: python docs/pages/results.py"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from tables import machine_of, markdown, with_table

DOCS = Path(__file__).parents[1]
sys.path.append(str(DOCS.parent / "python" / "experiments"))
from measures import interval  # noqa: E402

NAMES = {
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10, from a JPEG copy",
    "digits": "scikit-learn's digits",
    "dvs-cifar10": "DVS-CIFAR10",
    "dvs128-gesture": "DVS128 Gesture",
    "fashion-mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "n-mnist": "N-MNIST",
}
# What must be known to read a table.
REMARKS = {
    "cifar10-jpeg": "The images are lossy JPEG files, so the accuracy differs from that on the official images.",
    "digits": "Too few samples for a validation split: the weights of the last epoch are tested.",
    "n-mnist": (
        "The full data set has 60,000 + 10,000 recordings. The accuracy of a subset cannot be compared with published "
        "results."
    ),
}
# Keys of a recipe that describe its network and its start, and the values that are not mentioned.
SETTINGS = {
    "width": 1.0, "encoding": None, "dropout": None, "norm": True, "gamma": None, "threshold": None,
    "learn_threshold": None, "leak": 1.0, "gate": "relu", "first_gate": None, "v_init": None, "weight_bits": None,
    "ann_units": False, "timing": "step", "options": {}, "init_from": None, "init_gain": 1.0, "synops_penalty": 0.0,
}  # fmt: skip
HEAD = (
    "run", "network", "T", "otherwise", "seeds", "SNN {}", "ANN twin", "{}", "continued twin", "{}", "SynOps", "energy",
    "firing rate", "step, SNN / ANN",
)  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """A run's summary, with the name of its file."""
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
        assert summary["recipe"]["data"] in NAMES
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise SystemExit(f"{path} is not the summary of a run: {error!r}") from None
    return summary | {"name": path.stem, "metric": "accuracy" if "test_accuracy" in summary else "mse"}


def settings(run: dict[str, Any]) -> str:
    recipe = run["recipe"]
    changed = {key: recipe[key] for key, default in SETTINGS.items() if recipe.get(key, default) not in (default, None)}
    return ", ".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                     for key, value in changed.items())  # fmt: skip


def mean(run: dict[str, Any], kind: str = "") -> str:
    """The metric of one kind of network, mean and standard deviation over the seeds."""
    form = ".2f" if run["metric"] == "accuracy" else ".5f"
    values = (run.get(f"{kind}test_{run['metric']}{suffix}") for suffix in ("", "_std"))
    return " ± ".join(f"{value:{form}}" for value in values if value is not None)


def beside(run: dict[str, Any], kind: str) -> str:
    """The metric beside that of another kind of network."""
    own, other = run[f"test_{run['metric']}"], run.get(f"{kind}test_{run['metric']}")
    if other is None:
        return ""
    if run["metric"] == "mse":
        return f"{own / other:.2f}"
    low, high = interval(own / 100, other / 100, run["samples"]["test"])
    return f"{own - other:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def row(run: dict[str, Any]) -> list[str]:
    energy, started = run["energy_pj"], run["recipe"].get("init_from") is not None
    continued = mean(run, "ann_continued_") or ("-" if started else "the twin")
    return [
        f"`{run['name']}`", run["recipe"]["model"], str(run["T"]), settings(run), str(len(run["per_seed"])),
        mean(run), mean(run, "ann_"), beside(run, "ann_"), continued,
        beside(run, "ann_continued_") or "-" * (continued == "-"), f"{run['synops_ratio']:.2f}",
        f"{energy['snn'] / energy['ann']:.2f}", f"{100 * fmean(run['firing_rates'].values()):.1f}%",
        "" if run.get("step_time_ratio") is None else f"{run['step_time_ratio']:.2f}",
    ]  # fmt: skip


def section(runs: list[dict[str, Any]]) -> Iterator[str]:
    data, regression = runs[0]["recipe"]["data"], runs[0]["metric"] == "mse"
    yield from (f"## {NAMES[data]}{', reconstruction' if regression else ''}", "")
    samples = ", ".join(f"{number:,} {split}" for split, number in runs[0]["samples"].items() if number)
    yield from (f"{samples} samples. {REMARKS.get(data, '')}".rstrip(), "")
    difference = "SNN / ANN" if regression else "difference"
    head = [name.format(runs[0]["metric"].replace("mse", "MSE") if "SNN" in name else difference) for name in HEAD]
    yield from markdown(head, map(row, runs))
    exits = [run for run in runs if run.get("early_exit")]
    if exits:
        yield from ("Early exit at a confidence, first seed: accuracy (mean number of steps).", "")
        head = ["run", *(f"{one['confidence']:g}" for one in exits[0]["early_exit"])]
        cells = ([f"{100 * one['accuracy']:.2f} ({one['steps']:.1f})" for one in run["early_exit"]] for run in exits)
        yield from markdown(head, ([f"`{run['name']}`", *cell] for run, cell in zip(exits, cells, strict=True)))


def origins(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Command, commit, date and machine of each run."""
    labels = {machine: f"M{i}" for i, machine in enumerate(sorted({machine_of(run) for run in runs}), 1)}
    yield from ("## Where they come from", "", *(f"- {label}: {machine}." for machine, label in labels.items()), "")
    rows = (
        [f"`{run['name']}`", f"`{run['command']}`", run["commit"][:10] + "+" * run["commit"].endswith("+"),
         str(run.get("started") or "")[:10], labels[machine_of(run)], str(run.get("threads") or "")]
        for run in runs
    )  # fmt: skip
    yield from markdown(("run", "command", "commit", "date", "machine", "threads"), rows)


def tables(runs: list[dict[str, Any]]) -> Iterator[str]:
    def order(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["recipe"]["data"], run["metric"], run["recipe"]["model"], settings(run), run["T"], run["name"]

    runs = sorted(runs, key=order)
    for _, group in groupby(runs, key=lambda run: order(run)[:2]):
        yield from section(list(group))
    yield from origins(runs)


if __name__ == "__main__":
    page = DOCS / "results.md"
    runs = [read(path) for path in sorted((DOCS / "results" / "training").glob("*.json"))]
    page.write_text(with_table(page.read_text(), "results", tables(runs)))
