"""Writes the tables of docs/performance.md and docs/measuring.md and a picture, from what bench.py measured."""

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
    "mlp-train-T32-rate": "training step, that MLP, T = 32",
    "mlp-infer-128-rate": "inference of that MLP, 128 samples",
    "mlp-infer-1-rate": "inference of that MLP, one sample",
    "conv-128-256-rate-10": "inference of a convolution, 128→256 channels",
}
OTHERS = {
    "mlp-train-T16-rate": "training step, that MLP, T = 16",
    "conv-64-64-rate-10": "inference, convolution 64→64",
    "conv-norm-train-rate": "training step, convolution 64→128, batch norm",
    "linear-norm-train-rate": "training step, linear 800×800, batch norm",
    "conv-net-train-20": "training step, convolutional network, 20 %",
    "norm-net-train": "training step, 64-128-128 channels, batch norm",
    "norm-net-train-bf16": "the same under autocast, all in bfloat16",
    "mlp-train-bf16": "training step, that MLP, all in bfloat16",
}
ELSEWHERE = {"zen-4": "An EPYC, Zen 4", "xeon-amx": "A Xeon with AMX"}
WAYS = {
    "tandem": "step timing", "windows": "window timing", "frozen": "frozen, step timing",
    "frozen, windows": "frozen, window timing", "naive, loop compiled": "plain PyTorch", "BPTT": "BPTT",
    "SpikingJelly": "SpikingJelly", "SpikingJelly, compiled": "the same, compiled", "snnTorch": "snnTorch",
}  # fmt: skip
INSTRUCTIONS = {"bench-1": "AVX-512", "bench-v3": "AVX2"}
PORTABLE = ("mlp-infer-128-rate", "mlp-infer-1-rate", "mlp-train-T8-rate", "conv-128-256-rate-10", "conv-64-64-rate-10")
STYLES = {"tandem": ("tandem_ext, step timing", "tab:blue", "o-"),
          "windows": ("tandem_ext, window timing", "tab:cyan", "o-"), "ANN": ("the ANN", "black", "--"),
          "BPTT": ("backpropagation through time", "tab:purple", "s-"),
          "SpikingJelly": ("SpikingJelly", "tab:green", "^-"), "snnTorch": ("snnTorch", "tab:brown", "v-")}  # fmt: skip
EPOCH = 60_000  # images


def read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((DOCS / "results" / f"{name}.json").read_text())
    return result


def compared(result: dict[str, Any], titles: dict[str, str]) -> Iterator[str]:
    """Those of the cases that were measured, relative to their base, in the columns that any of them has."""
    cases = {row["case"]: row for row in result["rows"]}
    rows = [cases[case] for case in titles if case in cases]
    ways = [way for way in WAYS if any(way in row["values"] for row in rows)]
    lines = []
    for row in rows:
        base = row["values"][row["base"]]
        cells = [relative(row, way) if way in row["values"] else "" for way in ways]
        lines.append([titles[row["case"]], amount(fastest(base), row["quantity"]), *cells])
    yield from markdown(("", "ANN", *(WAYS[way] for way in ways)), lines)


def relative(row: dict[str, Any], way: str) -> str:
    """To its base, by the fastest tenth of the samples."""
    return f"{ratio(row['values'][way], row['values'][row['base']]).fast:.2f}"


def headlines(result: dict[str, Any]) -> Iterator[str]:
    """What most people come for, and how it was measured."""
    libraries = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "spikingjelly", "snntorch"))
    when = f"{result['date'][:10]}, commit {result['commit'][:10]}"
    when += f" ({result['earlier']})" if "earlier" in result else ""
    yield from (f"`{result['command']}`; {when}; {machine_of(result)}; {libraries}.", "")
    yield from compared(result, HEADLINES)


def others(result: dict[str, Any]) -> Iterator[str]:
    """Other cases, and those of other machines; all other rows are in the files."""
    yield from compared(result, OTHERS)
    for name, title in ELSEWHERE.items():
        result = read(name)
        when = f"{result['date'][:10]}, commit {result['commit'][:10]}"
        yield from (f"### {title}", "", f"{when}; {machine_of(result)}.", "")
        yield from compared(result, HEADLINES | OTHERS)


def timings() -> Iterator[str]:
    """Both timings at each instruction set, relative to the ANN at the same one."""
    files = [{row["case"]: row for row in read(name)["rows"]} for name in INSTRUCTIONS]
    lines = []
    for case in PORTABLE:
        for kind in ("frozen", "frozen, 8 bits") if "frozen" in files[0][case]["values"] else ("",):
            ways = (f"{kind}, windows" if kind else "windows", kind or "tandem", "naive, windows")
            shown = case.removesuffix("-rate").replace("-rate-", "-")
            cells = [relative(cases[case], way) for way in ways for cases in files]
            lines.append([f"{shown}, {kind}".removesuffix(", "), *cells])
    when = ((instructions, read(name)) for name, instructions in INSTRUCTIONS.items())
    yield "; ".join(f"{name}: {r['date'][:10]}, commit {r['commit'][:10]}, {machine_of(r)}" for name, r in when) + "."
    yield ""
    kinds = ("window timing", "step timing", "plain PyTorch, window timing")
    head = [f"{one}, {name}" if name == "AVX-512" else name for one in kinds for name in INSTRUCTIONS.values()]
    yield from markdown(("case", *head), lines)


def verdicts() -> Iterator[str]:
    """The ratios that are above their limit, and the limits."""
    for row in read("bench-1")["rows"]:
        ways = {way: limit for way, limit in LIMITS.get(row["case"], {}).items() if way in row["values"]}
        found = {way: ratio(row["values"][way], row["values"][row["base"]]).fast for way in ways}
        if missed := [f"{way} {found[way]:.2f} ({limit:.2f})" for way, limit in ways.items() if found[way] > limit]:
            yield f"- {row['case']}: {', '.join(missed)}"


def by_T(result: dict[str, Any], quantity: str) -> dict[int, dict[str, float]]:
    """Seconds or bytes of a training step, by T and way."""
    rows = [row for row in result["rows"] if row["case"].startswith(f"cost-{quantity}-T")]
    return {
        int(row["case"].rpartition("T")[2]): {way: median(values) for way, values in row["values"].items()}
        for row in rows
    }


def cost(result: dict[str, Any]) -> Iterator[str]:
    times, peaks = by_T(result, "time"), by_T(result, "peak")
    names = {"tandem": "step timing", "windows": "window timing", "ANN": "ANN", "BPTT": "BPTT"}
    rows = []
    for T in times:
        seconds = [f"{times[T][way] * EPOCH / 128:.1f}" for way in names]
        rows.append([str(T), *seconds, *(f"{peaks[T][way] / 2**20:.1f}" for way in names)])
    head = [f"{name}, {unit}" for unit in ("s", "MiB") for name in names.values()]
    yield from markdown(("T", *head), rows)


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
    here = read("bench-1")
    page = with_table(page, "headlines", headlines(here))
    page = with_table(page, "timings", timings())
    page = with_table(page, "cost", cost(here))
    return with_table(page, "cases", others(here))


def contributors(page: str) -> str:
    """The page of the limits, with what the committed timings say of them."""
    return with_table(page, "limits", verdicts())


if __name__ == "__main__":
    for name, written in {"performance": document, "measuring": contributors}.items():
        page = DOCS / f"{name}.md"
        page.write_text(written(page.read_text()))
    draw(read("bench-1"), DOCS / "figures" / "pages" / "home.png")
