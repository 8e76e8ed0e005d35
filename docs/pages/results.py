"""Writes the tables of docs/results.md from what the training script measured: python docs/pages/results.py"""

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from tables import markdown, with_table

DOCS = Path(__file__).parents[1]
sys.path.append(str(DOCS.parent / "python" / "experiments"))
import recipe as recipes  # noqa: E402
from measures import compared  # noqa: E402

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
REMARKS = {
    "cifar10-jpeg": "These images are lossy. Ten epochs are few: `cifar10-jpeg-window-long` has 30, in bfloat16.",
    "digits": "Too few samples for a validation split: the weights of the last epoch are tested. "
    "The images are read as pixels; as real numbers the SNN has 98.96.",
    "fashion-mnist": "The images are real numbers. Read as pixels, three seeds have 93.11 with T = 4, "
    "-0.12 [-0.40, +0.16] to the same seeds here.",
    "n-mnist": "A subset of the recordings: not comparable with published results.",
}
HEAD = ("run", "T", "timing", "start", "seeds", "SNN", "twin", "twin, trained on", "{}", "SynOps")


def read(path: Path) -> dict[str, Any]:
    """A run's summary, with the name of its file."""
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
        assert summary["recipe"]["data"] in NAMES
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise SystemExit(f"{path} is not the summary of a run: {error!r}") from None
    return summary | {"name": path.stem, "metric": "accuracy" if "test_accuracy" in summary else "mse"}


def shown(run: dict[str, Any]) -> bool:
    """Several seeds, or one of today's defaults beside a twin that was trained for as many epochs."""
    controlled = run["recipe"].get("init_from") is None or f"ann_continued_{metric(run)}" in run
    return len(run["per_seed"]) > 1 or (controlled and not earlier(run))


def metric(run: dict[str, Any]) -> str:
    return f"test_{run['metric']}"


def mean(run: dict[str, Any], kind: str = "") -> str:
    """The metric of one kind of network, mean and standard deviation over the seeds."""
    form = ".2f" if run["metric"] == "accuracy" else ".5f"
    values = (run.get(f"{kind}{metric(run)}{suffix}") for suffix in ("", "_std"))
    return " ± ".join(f"{value:{form}}" for value in values if value is not None)


def beside(run: dict[str, Any], kind: str) -> str:
    """The metric beside that of another kind of network; the p of single seeds is left to the files."""
    if run["metric"] == "mse":
        return f"{run[metric(run)] / run[f'{kind}{metric(run)}']:.2f}"
    return compared(run["per_seed"], kind).partition(", p =")[0]


def timing(run: dict[str, Any]) -> str:
    return run["recipe"].get("timing") or "step"


def earlier(run: dict[str, Any]) -> bool:
    """The run is older than the default thresholds that its recipe now uses."""
    return "init_gain" in run["recipe"] and recipes.load(run["name"]).get("threshold") is None


def name(run: dict[str, Any]) -> str:
    return f"`{run['name']}`{'†' * earlier(run)}"


def row(run: dict[str, Any]) -> list[str]:
    start = run["recipe"].get("init_from")
    apart = start or run["recipe"].get("distill")  # the control is another network than the twin
    control = "ann_continued_" if apart else "ann_"
    T = ", ".join([str(run["T"]), *run["recipe"].get("layer_T", ())])  # and that of layers with their own
    return [
        name(run), T, timing(run), start or "random", str(len(run["per_seed"])),
        mean(run), mean(run, "ann_"), mean(run, control) if apart else "", beside(run, control),
        f"{run['synops_ratio']:.2f}",
    ]  # fmt: skip


def section(runs: list[dict[str, Any]]) -> Iterator[str]:
    data, regression = runs[0]["recipe"]["data"], runs[0]["metric"] == "mse"
    yield from (f"## {NAMES[data]}{', reconstruction' if regression else ''}", "")
    samples = ", ".join(f"{number:,} {split}" for split, number in runs[0]["samples"].items() if number)
    measured, difference = ("Mean squared error", "SNN / it") if regression else ("Accuracy in %", "difference to it")
    yield from (f"{measured}; {samples} samples. {REMARKS.get(data, '')}".rstrip(), "")
    yield from markdown([column.format(difference) for column in HEAD], map(row, runs))


def origins(runs: list[dict[str, Any]]) -> Iterator[str]:
    """When and on which processors the runs were made."""
    dates = sorted(str(run["started"])[:10] for run in runs if run.get("started"))
    processors = sorted({f"{run['machine']['cpu']} (family {run['machine']['family']})" for run in runs})
    when = f" from {dates[0]} to {dates[-1]}" if dates else ""
    yield from ("## Where they come from", "", f"Trained{when} on {'; '.join(processors)}, one thread.")


def tables(runs: list[dict[str, Any]]) -> Iterator[str]:
    def order(run: dict[str, Any]) -> tuple[Any, ...]:
        recipe = run["recipe"]
        return recipe["data"], run["metric"], recipe.get("init_from") or "", timing(run), run["T"], run["name"]

    runs = sorted(filter(shown, runs), key=order)
    for _, group in groupby(runs, key=lambda run: order(run)[:2]):
        yield from section(list(group))
    yield from origins(runs)


if __name__ == "__main__":
    page = DOCS / "results.md"
    runs = [read(path) for path in sorted((DOCS / "results" / "training").glob("*.json"))]
    page.write_text(with_table(page.read_text(), "results", tables(runs)))
