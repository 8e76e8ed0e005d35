"""Writes the tables of docs/performance.md and a picture, from what tests/benchmarks/bench.py measured."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from tables import machine_of, markdown, with_table

matplotlib.use("agg")
import matplotlib.pyplot as plt
from PIL import Image

DOCS = Path(__file__).parents[1]
sys.path.append(str(DOCS.parent / "tests" / "benchmarks"))
from competitors import OURS  # noqa: E402
from interleaved import amount, fastest, ratio  # noqa: E402

HEADLINES = {
    "conv-net-train-9": "a training step of a convolutional network, firing rate 9 %",
    "conv-net-peak": "the extra memory of that step",
    "mlp-train-T8-rate": "a training step of an MLP, 784-800-800-10",
    "mlp-infer-128-rate": "inference of that MLP, 128 samples",
    "conv-128-256-rate-10": "inference of a convolution, 128→256 channels",
}
STYLES = {"tandem": ("tandem_ext, step timing", "tab:blue", "o-"),
          "windows": ("tandem_ext, window timing", "tab:cyan", "o-"), "ANN": ("the ANN", "black", "--"),
          "BPTT": ("backpropagation through time", "tab:purple", "s-"),
          "SpikingJelly": ("SpikingJelly", "tab:green", "^-"), "snnTorch": ("snnTorch", "tab:brown", "v-")}  # fmt: skip
EPOCH = 60_000  # images


def read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((DOCS / "results" / f"{name}.json").read_text())
    return result


def about(result: dict[str, Any]) -> str:
    versions = result["versions"]
    build = versions["tandem_ext"]
    others = [f"{name} {versions[name]}" for name in ("torch", "spikingjelly", "snntorch") if name in versions]
    return (
        f"`{result['command']}` on {result['date'][:10]}, commit {result['commit'][:10]}; {machine_of(result)}; "
        f"tandem_ext {build['version']} ({build['cpu_capability']}), {', '.join(others)}."
    )


def headlines(result: dict[str, Any]) -> Iterator[str]:
    """What most people come for, relative to the ANN."""
    rows = []
    for row in result["rows"]:
        if row["case"] in HEADLINES:
            found = {way: ratio(values, row["values"]["ANN"]).fast for way, values in row["values"].items()}
            ours = min(value for way, value in found.items() if way in OURS)
            value, best = min((value, way) for way, value in found.items() if way not in OURS and way != "ANN")
            peers = [f"{found[name]:.1f}" if name in found else "" for name in ("SpikingJelly", "snnTorch")]
            rows.append([HEADLINES[row["case"]], f"**{ours:.2f}**", f"{value:.1f} ({best})", *peers])
    yield from ("At T = 8 and 1 thread, relative to the ANN with the same layers:", "")
    yield from markdown(("", "this", "the fastest alternative", "SpikingJelly", "snnTorch"), rows)


def section(result: dict[str, Any]) -> Iterator[str]:
    """Every case: the fastest tenth of the samples, and relative to the base with its 95 % interval."""
    threads, capability = result["threads"], result.get("capability")
    clock = "1 thread, process CPU time" if threads == 1 else f"{threads} threads, wall time"
    yield from (f"## {clock}{f', {capability}' if capability else ''}", "", about(result), "")

    def cell(row: dict[str, Any], way: str) -> str:
        found = ratio(row["values"][way], row["values"][row["base"]])
        interval = "" if way == row["base"] else f" [{found.low:.2f}, {found.high:.2f}]"
        return f"{way} {amount(fastest(row['values'][way]), row['quantity'])}, {found.fast:.2f}×{interval}"

    rows = []
    for row in result["rows"]:
        rates = ", ".join(
            f"{name} {100 * spikes:.0f}%/{nibbles:.2f}" for name, (spikes, nibbles) in row["rates"].items()
        )
        ours, others = ([cell(row, way) for way in row["values"] if (way in OURS) is own] for own in (True, False))
        differ = max((answer["spikes"] for answer in row.get("answers", {}).values()), default=0.0)
        rows.append([row["case"], row["title"], rates, f"{differ:.0e}" if differ else "0", "<br>".join(ours),
                     "<br>".join(others)])  # fmt: skip
    head = ("case", "what", "spikes per step / nonzero nibbles per byte", "counts that differ", "ours", "others")
    yield from markdown(head, rows)


def by_T(result: dict[str, Any], quantity: str) -> dict[int, dict[str, float]]:
    """Seconds or bytes of a training step, by T and way."""
    rows = [row for row in result["rows"] if row["case"].startswith(f"cost-{quantity}-T")]
    return {
        int(row["case"].rpartition("T")[2]): {way: median(values) for way, values in row["values"].items()}
        for row in rows
    }


def cost(result: dict[str, Any]) -> Iterator[str]:
    times, peaks = by_T(result, "time"), by_T(result, "peak")
    ways = list(times[4])
    yield from (about(result), "")
    rows = []
    for T in times:
        seconds = [f"{times[T][way] * EPOCH / 128:.1f}" for way in ways]
        rows.append([str(T), *seconds, *(f"{peaks[T][way] / 2**20:.1f}" for way in ways)])
    yield from markdown(("T", *(f"{way}, s per epoch" for way in ways), *(f"{way}, peak MiB" for way in ways)), rows)


def draw(result: dict[str, Any], path: Path) -> None:
    """Time and extra memory of a training step against T, in 24 colours; the same figures give the same bytes."""
    with plt.rc_context({"font.size": 9}):
        figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
        for axes, quantity, label, unit in zip(
            panels, ("time", "peak"), ("training step, ms", "extra memory, MiB"), (1e3, 2**-20), strict=True
        ):
            found = by_T(result, quantity)
            for way, (name, color, style) in STYLES.items():
                if all(way in values for values in found.values()):
                    axes.plot(list(found), [unit * v[way] for v in found.values()], style, color=color, label=name)
            axes.set(xscale="log", yscale="log", xlabel="time steps T", ylabel=f"{label} (log scale)")
            axes.set_xticks(list(found), list(map(str, found)))
            axes.minorticks_off()
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(alpha=0.3)
        panels[0].legend(frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=96)
        plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(24).save(path, optimize=True)


def document(page: str) -> str:
    """The page with the tables of what is in docs/results."""
    measured = [read(path.stem) for path in sorted((DOCS / "results").glob("bench-*.json"))]
    page = with_table(page, "headlines", headlines(measured[0]))
    page = with_table(page, "cost", cost(measured[0]))
    return with_table(page, "cases", [line for result in measured for line in section(result)])


if __name__ == "__main__":
    page = DOCS / "performance.md"
    page.write_text(document(page.read_text()))
    draw(read("bench-1"), DOCS / "figures" / "pages" / "home.png")
