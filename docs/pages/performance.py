"""Writes the tables of docs/performance.md and docs/measuring.md and a picture, from what bench.py measured."""

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
from interleaved import amount, fastest, ratio  # noqa: E402
from table import LIMITS  # noqa: E402

HEADLINES = {
    "conv-net-train-9": "training step, convolutional network, firing rate 9 %",
    "conv-net-peak": "extra memory of that step",
    "mlp-train-T8-rate": "training step, MLP 784-800-800-10",
    "mlp-infer-128-rate": "inference of that MLP, 128 samples",
    "mlp-infer-1-rate": "inference of that MLP, one sample",
    "conv-128-256-rate-10": "inference of a convolution, 128→256 channels",
}
OTHERS = {
    "mlp-train-T16-rate": "training step, that MLP, T = 16", "conv-64-64-rate-10": "inference, convolution 64→64",
    "conv-norm-train-rate": "training step, convolution 64→128, batch norm",
    "linear-norm-train-rate": "training step, linear 800×800, batch norm",
    "conv-net-train-20": "training step, convolutional network, 20 %",
}  # fmt: skip
WAYS = {
    "frozen": "frozen, step timing", "frozen, windows": "frozen, window timing", "frozen, 8 bits": "the same, 8 bits",
    "frozen, 8 bits, windows": "the same, 8 bits, window timing", "tandem": "step timing", "windows": "window timing",
    "naive, loop compiled": "plain PyTorch", "BPTT": "BPTT", "SpikingJelly": "SpikingJelly",
    "SpikingJelly, compiled": "the same, compiled", "snnTorch": "snnTorch",
}  # fmt: skip
TIMINGS = {"v4": "AVX-512", "v3": "AVX2", "default": "SSE2"}
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


def compared(result: dict[str, Any], titles: dict[str, str]) -> Iterator[str]:
    """Rows relative to their base, by the fastest tenth of the samples, in the columns that any of them has."""
    cases = {row["case"]: row for row in result["rows"]}
    rows = [cases[case] for case in titles]
    ways = [way for way in WAYS if any(way in row["values"] for row in rows)]
    lines = []
    for row in rows:
        base = row["values"][row["base"]]
        cells = [f"{ratio(row['values'][way], base).fast:.2f}" if way in row["values"] else "" for way in ways]
        lines.append([titles[row["case"]], amount(fastest(base), row["quantity"]), *cells])
    yield from markdown(("", "ANN", *(WAYS[way] for way in ways)), lines)


def headlines(result: dict[str, Any]) -> Iterator[str]:
    """What most people come for."""
    yield from (about(result), "")
    yield from compared(result, HEADLINES)


def section(result: dict[str, Any], first: dict[str, Any]) -> Iterator[str]:
    """Other cases of the first result, or what most people come for elsewhere; all other rows are in the files."""
    titles = OTHERS if result is first else HEADLINES
    clock = f"{result['threads']} threads" if result["threads"] > 1 else "One thread"
    yield from (f"### {clock} {result.get('capability') or ''}".strip(), "")
    if result is not first:
        yield from (f"{result['date'][:10]}; {machine_of(result)}.", "")
    cases = [row["case"] for row in result["rows"]]
    yield from compared(result, {case: title for case, title in titles.items() if case in cases})


def timings() -> Iterator[str]:
    """Both timings at each instruction set, relative to the ANN at the same one."""
    rows = []
    for name, instructions in TIMINGS.items():
        result = read(f"timings-{name}")
        for row in result["rows"]:
            values = {way: f"{fast:.2f}" for way, (*_, fast) in row["values"].items()}
            ways = [("", "tandem", "windows")]
            if "frozen" in values:
                kinds = ("frozen", "frozen, 8 bits")
                ways = [(f", {kind}", kind, f"{kind}, windows") for kind in kinds]
            for what, step, window in ways:
                case = row["case"].removesuffix("-rate").replace("-rate-", "-")
                rows.append([instructions, case + what, values[step], values[window], values["naive, windows"]])
    head = ("instructions", "case", "step timing", "window timing", "plain PyTorch, window timing")
    yield from (f"{result['date']}, commit {result['commit'][:10]}; {machine_of(result)}; torch 2.13.0.", "")
    yield from markdown(head, rows)


def verdicts() -> Iterator[str]:
    """Of each case with a limit that was measured with both timings: the measured ratios, and the limits."""
    for row in read("timings-v4")["rows"]:
        found = []
        for way, limit in LIMITS.get(row["case"], {}).items():
            if way in row["values"]:
                fast = row["values"][way][-1]
                found.append(f"{way} {fast:.2f} ({'met' if fast <= limit else 'missed'}: {limit:.2f})")
        yield f"- {row['case']}: {'; '.join(found)}"


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
    page = with_table(page, "timings", timings())
    page = with_table(page, "cost", cost(measured[0]))
    return with_table(page, "cases", [line for result in measured for line in section(result, measured[0])])


def contributors(page: str) -> str:
    """The page of the limits, with what the committed timings say of them."""
    return with_table(page, "limits", verdicts())


if __name__ == "__main__":
    for name, written in {"performance": document, "measuring": contributors}.items():
        page = DOCS / f"{name}.md"
        page.write_text(written(page.read_text()))
    draw(read("bench-1"), DOCS / "figures" / "pages" / "home.png")
