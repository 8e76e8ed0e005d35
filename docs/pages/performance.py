"""Writes the tables of docs/performance.md from what ``tandem-snn bench`` measured, with the verdict on every limit,
and a picture.

python docs/pages/performance.py docs/results/bench-*.json --timings docs/results/timings-*.json --out PAGE
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1] / "figures"))
from small import save
from tables import with_table

from tandem_snn.bench.cases import FROZEN
from tandem_snn.bench.command import amount, answers, rates
from tandem_snn.bench.measure import ratio, spread

OURS = ("frozen", "tandem")  # whichever a case has first is the one that limits judge
ALL_OURS = {*OURS, *FROZEN, "windows"}
DIFFERENT = 0.01  # of the counts: float32 statistics move a spike in a million, and that one others, layer by layer
PORTABLE = 1.5  # limits hold on a machine with AVX-512; the portable path may take this much longer


@dataclass(frozen=True)
class Limit:
    """What must be reached: our value at most ``at_most`` times that of ``of``, or at most ``at_most`` by itself."""

    at_most: float
    of: str | None = None
    text: str = ""


def at_most(ratio: float, of: str = "ANN") -> Limit:
    return Limit(ratio, of, f"≤ {ratio:g}× {of}")


def faster(factor: float, than: str) -> Limit:
    return Limit(1 / factor, than, f"≥ {factor:g}× faster than {than}")


PEERS = faster(8, "SpikingJelly, compiled")
LIMITS: dict[str, tuple[Limit, ...]] = {
    "mlp-infer-128-rate": (at_most(0.75), faster(10, "naive")),
    "mlp-infer-1-rate": (at_most(0.30),),
    "mlp-infer-128-direct": (at_most(1.1),),
    "mlp-train-T8-direct": (at_most(1.15),),
    "mlp-train-T8-rate": (at_most(1.05), faster(7, "BPTT")),
    "mlp-train-T16-rate": (at_most(1.3), faster(12, "BPTT")),
    "conv-128-256-rate-10": (at_most(1.1),),
    "conv-128-256-rate-25": (at_most(1.45),),
    "conv-64-64-rate-10": (at_most(1.2),),
    "conv-64-64-rate-25": (at_most(1.9),),
    "conv-norm-train-rate": (at_most(1.3),),
    "linear-norm-train-rate": (at_most(1.2),),
    "conv-net-train-9": (at_most(1.0), PEERS),
    "conv-net-train-20": (at_most(1.2), PEERS),
    "conv-net-peak": (at_most(2),),
    "scan": (at_most(1.0, "copy"),),
    "call": (Limit(12e-6, None, "≤ 12 µs"),),
    "call-train": (at_most(3.0),),
    "kept": (Limit(1.25, None, "≤ 1.25 bytes per neuron"), at_most(1.0)),
    "kept-norm": (Limit(5.25, None, "≤ 5.25 bytes per neuron"), at_most(1.0)),
    "events-time-T128": (faster(5, "SpikingJelly"), faster(5, "snnTorch")),
    "events-time-T1000": (faster(5, "SpikingJelly"), faster(5, "snnTorch")),
}


# What a row of both timings must reach, relative to the ANN; (of AVX-512, without).
STEPS = {
    "mlp-infer-128-rate, frozen": (0.9, 1.3),
    "mlp-infer-128-rate, frozen, 8-bit weights": (0.6, None),
    "mlp-infer-1-rate, frozen": (0.6, None),
    "mlp-infer-1-rate, frozen, 8-bit weights": (0.3, None),
    "mlp-train-T8-rate": (1.1, None),
    "mlp-train-T16-rate": (1.4, None),
    "conv-128-256-rate-10": (None, 1.3),
    "conv-64-64-rate-10": (None, 1.3),
    "linear-norm-train-rate": (1.2, None),
    "conv-net-train-9": (1.0, None),
}
WINDOWS = {
    "mlp-infer-128-rate, frozen": (0.7, 1.2),
    "mlp-infer-1-rate, frozen": (0.7, None),
    "mlp-train-T8-rate": (1.0, None),
    "mlp-train-T16-rate": (1.0, None),
    "mlp-train-T32-rate": (1.0, None),
    "conv-128-256-rate-10": (0.6, 1.2),
    "conv-64-64-rate-10": (0.6, 1.2),
    "conv-norm-train-rate": (1.05, None),
    "conv-net-train-9": (1.0, None),
}


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the verdict on every limit of its rows."""
    portable = result["versions"]["tandem_ext"]["cpu_capability"] != "v4"
    rows = [
        row | {"limits": [judge(limit, row, portable) for limit in LIMITS.get(row["case"], ())]}
        for row in result["rows"]
    ]
    return result | {"rows": rows}


def judge(limit: Limit, row: dict[str, Any], portable: bool = False) -> dict[str, Any]:
    """What was reached, and whether that meets the limit: None where a rival was not measured.

    Whoever gives another answer meets no limit.
    """
    values, quantity = row["values"], row["quantity"]
    portable = portable and quantity == "time"
    most = limit.at_most * (PORTABLE if portable else 1)
    ours = next((name for name in OURS if name in values), None)
    verdict = {**asdict(limit), "ours": ours, "at_most": most, "quantity": quantity, "portable": portable}
    if ours is None or (limit.of is not None and limit.of not in values):
        return verdict | {"reached": None, "met": None}
    reached = spread(values[ours], values[limit.of] if limit.of else [1.0] * len(values[ours]))["median"]
    alike = all(difference["spikes"] <= DIFFERENT for difference in row.get("answers", {}).values())
    return verdict | {"reached": reached, "met": reached <= most and alike}


_COLORS = {
    "frozen": "tab:blue",
    "frozen, 8 bits": "navy",
    "tandem": "tab:cyan",
    "frozen, windows": "tab:pink",
    "frozen, 8 bits, windows": "crimson",
    "windows": "violet",
    "copy": "black",
    "ANN": "black",
    "naive": "tab:orange",
    "naive, windows": "wheat",
    "naive, loop compiled": "tab:red",
    "BPTT": "tab:purple",
    "SpikingJelly": "tab:green",
    "SpikingJelly, compiled": "limegreen",
    "snnTorch": "tab:brown",
}  # and the order in which they are listed

_HEADLINES = {
    "conv-net-train-9": "a training step of a convolutional network, firing rate 9 %",
    "conv-net-peak": "the extra memory of that step",
    "mlp-train-T8-rate": "a training step of an MLP, 784-800-800-10",
    "mlp-infer-128-rate": "inference of that MLP, 128 samples",
    "conv-128-256-rate-10": "inference of a convolution, 128→256 channels",
}


def document(results: dict[str, dict[str, Any]], timings: list[dict[str, Any]], page: str) -> str:
    """The page with these results, one per number of threads; their keys are the addresses of the pictures.

    timings: what tests/benchmarks/capabilities.py measured, one per instruction set.
    """
    ordered = sorted(((name, judged(one)) for name, one in results.items()), key=lambda item: item[1]["threads"])
    found = [result for _, result in ordered]
    page = with_table(page, "headlines", "\n".join([_headlines(found[0]), _misses(found)]))
    page = with_table(page, "timings", "\n".join(_both_timings(result) for result in timings))
    return with_table(page, "cases", "\n".join(_section(result, picture) for picture, result in ordered))


def rivals(row: dict[str, Any], but_base: bool = False) -> list[str]:
    return [name for name in _COLORS if name in row["values"] and not (but_base and name == row["base"])]


def verdict(limit: dict[str, Any]) -> str:
    """What must be reached, what was, and whether that is enough."""
    text: str = limit["text"] + (" (×1.5, portable)" if limit["portable"] else "")
    if limit["met"] is None:
        return f"{text}: not measured"
    reached = limit["reached"]
    if limit["of"] is None and limit["quantity"] == "time":
        shown = amount(reached, "time")
    else:
        shown = f"{1 / reached:.1f}×" if "faster" in text else f"{reached:.2f}" + "×" * (limit["of"] is not None)
    return f"{text}: {shown} {'met' if limit['met'] else 'MISSED'}"


def _headlines(result: dict[str, Any]) -> str:
    """What most people come for, relative to the ANN; nothing where it was not measured."""
    rows = {row["case"]: row for row in result["rows"]}
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    lines = [
        f"At T = 8 and {threads}, relative to the ANN with the same layers:",
        "",
        "| | this | the fastest alternative | SpikingJelly | snnTorch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case, what in _HEADLINES.items():
        if case in rows:
            medians = {name: ratio(rows[case], name)["median"] for name in rivals(rows[case], but_base=True)}
            ours = min((name for name in medians if name in OURS), key=medians.__getitem__)
            others = {name: value for name, value in medians.items() if name not in ALL_OURS}
            best = min(others, key=others.__getitem__)
            cells = [f"{others[name]:.1f}" if name in others else "" for name in ("SpikingJelly", "snnTorch")]
            lines.append(f"| {what} | **{medians[ours]:.2f}** | {others[best]:.1f} ({best}) | {' | '.join(cells)} |")
    return "\n".join([*lines, ""]) if len(lines) > 4 else ""


def _misses(results: list[dict[str, Any]]) -> str:
    verdicts = [(r["threads"], row, limit) for r in results for row in r["rows"] for limit in row["limits"]]
    met = sum(limit["met"] is True for _, _, limit in verdicts)
    lines = ["## Status", "", f"Of {len(verdicts)} limits {met} are met."]
    for heading, outcome in ("Missed", False), ("Not measured", None):
        found = [(n, row, limit) for n, row, limit in verdicts if limit["met"] is outcome]
        if found:
            lines += ["", f"{heading}:", ""]
            lines += [f"- {row['case']}, {n} thread{'s' * (n > 1)}: {verdict(limit)}" for n, row, limit in found]
    return "\n".join([*lines, ""])


def _section(result: dict[str, Any], picture: str) -> str:
    clock = "process CPU time" if result["threads"] == 1 else "wall time"
    build, versions = result["versions"]["tandem_ext"], result["versions"]
    others = [f"{name} {versions[name]}" for name in ("spikingjelly", "snntorch") if versions.get(name)]
    lines = [
        f"## {result['threads']} thread{'s' * (result['threads'] > 1)}, {clock}",
        "",
        f"`{result['command']}` on {result['date'][:10]}, commit {result['commit']}"
        + (", quick: few samples" if result["quick"] else ""),
        "",
        "; ".join(f"{name} {value}" for name, value in result["machine"].items()) + ".",
        f"tandem_ext {build['version']} ({build['cpu_capability']}), torch {versions['torch']}, "
        + ", ".join([f"Python {versions['python']}", *others])
        + ".",
        "",
        *([result["remark"], ""] if "remark" in result else []),
        f"<!-- picture: {picture} | Every case, relative to the ANN -->",
        "",
        "| case | what | ours | limit | others, relative to the base |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [_line(row) for row in result["rows"]]
    lines += ["", "### Spikes", "", "| case | spikes per step / nonzero nibbles per byte | agreement |"]
    lines += ["| --- | --- | --- |"]
    lines += [f"| {row['case']} | {rates(row)} | {answers(row)} |" for row in result["rows"]]
    disturbed = [row["case"] for row in result["rows"] if row.get("disturbed", 0) > 0.1]
    if disturbed:
        lines += ["", f"More than a tenth of the samples were taken beside other work: {', '.join(disturbed)}."]
    return "\n".join([*lines, ""])


def _line(row: dict[str, Any]) -> str:
    cells = {
        name: f"{name} {amount(median(row['values'][name]), row['quantity'])}, {_ratio(row, name)}"
        for name in rivals(row)
    }
    ours = "<br>".join(cell for name, cell in cells.items() if name in ALL_OURS)
    others = "<br>".join(cell for name, cell in cells.items() if name not in ALL_OURS)
    limits = "<br>".join(verdict(limit).replace("MISSED", "**missed**") for limit in row["limits"])
    return f"| {row['case']} | {row['title']} | {ours} | {limits} | {others} |"


def _ratio(row: dict[str, Any], name: str) -> str:
    if name == row["base"]:
        return "1"
    found = ratio(row, name)
    return f"{found['median']:.2f}× [{found['low']:.2f}, {found['high']:.2f}]"


def _both_timings(result: dict[str, Any]) -> str:
    """Both timings relative to the ANN at one instruction set, median / fastest tenth."""
    lines = [
        f"`{result['command']}` on {result['date'][:10]}, commit {result['commit'][:10]}, {result['machine']['cpu']}:",
        "",
        "| case | ANN, ms | step timing | limit | window timing | limit | plain PyTorch, window timing |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        case, values = row["case"], row["values"]
        assert row["different"] <= DIFFERENT, case
        pairs = {"": ("tandem", "windows"), ", frozen": FROZEN[:2], ", frozen, 8-bit weights": FROZEN[2:]}
        for what, names in pairs.items():
            if names[0] not in values:
                continue
            shown = [f"{values[name][2]:.2f} / {values[name][3]:.2f}" for name in (*names, "naive, windows")]
            limits = [both.get(case + what, (None, None))[result["capability"] != "v4"] for both in (STEPS, WINDOWS)]
            step, window = (
                "" if limit is None else f"≤ {limit:g}: {'met' if values[name][3] <= limit else '**missed**'}"
                for name, limit in zip(names, limits, strict=True)
            )
            median, fast, *_ = values["ANN"]
            times = f"{1e3 * median:.3g} / {1e3 * fast:.3g}"
            lines.append(f"| {case}{what} | {times} | {shown[0]} | {step} | {shown[1]} | {window} | {shown[2]} |")
    return "\n".join([*lines, ""])


def draw(result: dict[str, Any], path: Path) -> None:
    """A picture: every rival's value relative to the base, one line per case."""
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.3 * len(rows)), layout="constrained")
    for name, color in _COLORS.items():
        points = [(ratio(row, name)["median"], i) for i, row in enumerate(rows) if name in rivals(row, but_base=True)]
        if points:
            ours = name in ALL_OURS
            axes.scatter(*zip(*points, strict=True), color=color, label=name, s=50 if ours else 20, zorder=2 + ours)
    bars = False
    for i, row in enumerate(rows):
        for limit in row["limits"]:
            if limit["of"] == row["base"]:
                bars = True
                axes.plot([limit["at_most"]] * 2, [i - 0.4, i + 0.4], color="tab:blue", linewidth=1.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    quantities = {row["quantity"] for row in rows}
    what = " or ".join(["time"] * ("time" in quantities) + ["bytes"] * bool(quantities - {"time"}))
    copied = ", of the scan to a copy" * any(row["base"] == "copy" for row in rows)
    axes.set_xlabel(f"{what} relative to the ANN{copied}, log scale{'; bars: limits' * bars}")
    axes.grid(alpha=0.3, axis="x")
    figure.suptitle(f"{result['machine'].get('cpu', '')}, {result['threads']} thread{'s' * (result['threads'] > 1)}")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--timings", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = arguments.out.parent / "results" / "figures"
    pictures = [f"results/figures/{path.stem}.png" for path in arguments.results]
    results = [json.loads(path.read_text()) for path in arguments.results]
    for path, result in zip(arguments.results, results, strict=True):
        draw(judged(result), figures / f"{path.stem}.png")
    timings = [json.loads(path.read_text()) for path in arguments.timings]
    page = document(dict(zip(pictures, results, strict=True)), timings, arguments.out.read_text())
    arguments.out.write_text(page)
