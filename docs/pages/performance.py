"""Writes docs/performance.md from what ``tandem-snn bench`` measured, with the verdict on every limit and a picture.

python docs/pages/performance.py docs/results/bench-*.json --out docs/performance.md
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

from tandem_snn.bench.command import amount, answers, rates
from tandem_snn.bench.run import ratio
from tandem_snn.bench.timing import spread

OURS = ("frozen", "tandem")  # whichever a case has first is the one that limits judge
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
    "tandem": "tab:cyan",
    "copy": "black",
    "ANN": "black",
    "naive": "tab:orange",
    "naive, loop compiled": "tab:red",
    "BPTT": "tab:purple",
    "SpikingJelly": "tab:green",
    "SpikingJelly, compiled": "limegreen",
    "snnTorch": "tab:brown",
}  # and the order in which they are listed

_TITLE = """# Performance

Speed and memory compared with the ANN, plain PyTorch, SpikingJelly and snnTorch. `make performance` generates this
page from the measurements of `tandem-snn bench` in `docs/results`. The command above each table repeats its
measurement.
"""
_HEADLINES = {
    "conv-net-train-9": "a training step of a convolutional network, firing rate 9 %",
    "conv-net-peak": "the extra memory of that step",
    "mlp-train-T8-rate": "a training step of an MLP, 784-800-800-10",
    "mlp-infer-128-rate": "inference of that MLP, 128 samples",
    "conv-128-256-rate-10": "inference of a convolution, 128→256 channels",
}
_METHOD = """## How it is measured

- **Ratios, not times.** Competitors take turns: each round measures each of them once, in random order. A ratio is
  the median over the rounds, with its quartiles in brackets.
- **One thread: process CPU time.** Other processes on the core do not count, but they use its caches. **Two threads:
  wall time**, measured while nothing else runs on the machine, as far as possible.
- **Warm, with rotating inputs.** Untimed calls precede every sample, and consecutive calls have different inputs.
- **Answers first.** Weights are multiples of 2⁻¹⁸ (for images, whose products are floats, of 2⁻¹⁰), biases and inputs
  are multiples of larger powers of two, and T is a power of two, so that sums are exact in any order. Without batch
  norm the spikes of all competitors must be *equal*; this is checked before anything is timed. Such weights are
  packed like any float32 weights, into three bytes on a matrix unit; coarser ones would be cheaper. With batch norm,
  statistics are rounded differently, and the table gives the fraction of different counts. *Not compared*: no
  competitor computes the same, or `tests/test_bench.py` compares a smaller network.
- **The spikes determine the cost.** For every spike train the table gives the firing rate and the nonzero half-bytes
  (nibbles, 0 to 2) per byte of eight steps. *rate*: half of the neurons are silent, the others are IF neurons with
  noisy currents, as in real layers. *iid*: independent spikes, the worst case at a given rate.
- **ANN**: `relu(linear)` or a channels-last convolution of the same shape, batch and weights. **naive**: the tandem
  rule in plain PyTorch, products of all T steps in one call, a Python loop over them and, in training, the ANN
  branch; **loop compiled**: the same with `torch.compile` on the loop, the strongest simple baseline. **BPTT**:
  backpropagation through time with a surrogate gradient. SpikingJelly and snnTorch are used as their documentation
  recommends. A training step is forward, loss and backward. Python calls and packing of weights are included
  everywhere, except for **frozen**, which packs once.
- The limits apply to machines with AVX-512. With AMX, dense layers multiply all inputs, at a cost that does not
  depend on the firing rate ([design](design.md)).
- The limit for other instruction sets is 1.5 times as long, and they **exceed it**. On the Xeon below, relative to
  the ANN with AVX-512, the frozen MLP at batch 128 and the convolutions 128→256 and 64→64 at 10% take 2.3, 3.1 and
  4.9 with AVX2 (`TANDEM_CPU_CAPABILITY=v3`, [result](results/portable-v3.json)), and without AVX2 3.7, 3.7 and 5.9
  (`default`, [result](results/portable-default.json)); few samples.

## The floor of a training step

Most of the time of a convolution's training step is torch's `convolution_backward`, the same call as for the ANN; it
does not compute unneeded gradients of inputs. Two alternatives were measured and rejected
(`tests/benchmarks/convolution_backward.py`, 64→128 3×3 s2 on 32×32, a Xeon with AMX). The weight's gradient takes
0.56 of the whole call. Counts are exact in bfloat16 and a gradient is the sum of three bfloat16, but their three
products take 0.80; unfolded windows take 3.2.

## Why some limits are missed

The limits were set on a Zen 5, which issues one multiply-add per cycle and reads its L3 cache at 100 GB/s per core.
The Xeon below multiplies twice as fast and reads its L3 cache at 23 GB/s. So the ANN is faster there, but sparse
sums, which need one load per addition, are not.

- **MLP at batch 128, inference and training.** Sums of listed weights take 0.25 to 0.36 ns for each 64 bytes, which
  come from the L2 cache: a load for each addition. The matrix unit needs 24 byte products for 8 steps of a float
  weight. At its peak rate, 4.3 ns for 16 × 16 × 64, that is 0.5 of the ANN's time, and 0.7 with spikes from the L2
  cache and stored sums (5.3 to 5.9 ns, `tests/benchmarks/matrix_unit.cpp`). The layer also sums the digits, fires,
  and expands the spikes. Kept: non-temporal loads of spikes, so that the digits of 13 × 64 inputs stay in the L1
  cache; prefetching of the next column's digits, and blocks of 128 rows (frozen, weights of full precision: 1.3 →
  1.1); digits packed once in frozen networks; three digits instead of four for trained convolutions; no writes of
  weight tiles that are not read (a layer in training: 1.65 → 1.38 ms); vectors of a row that fire interleaved. No
  faster: other shapes of the register block (one step × six digits, two × two), summing digits while the unit
  multiplies the next rows, prefetching of spikes, large pages.
- **MLP at batch 1.** The weights of active inputs are read once, from the L3 cache, at about two thirds of its
  bandwidth. Prefetching and large pages do not change the time.
- **Training steps with batch norm.** For convolutions the statistics come from a product of the counts, an eighth of
  the work (1.5 → 1.1 with weights of two bytes, kept). The backward pass divides once per channel (before, divisions
  took a third of its time; kept). A linear layer's step remains bound by its forward product, like the MLP's.
- **Training step of the convolutional network.** Two thirds are torch's backward calls, the same as for the ANN. The
  two layers with spike input take 31 ms for eight steps, the ANN's 29 ms for one (torch's profiler).

## Measurement pitfalls

- **Page faults.** By default the allocator returns large blocks to the system, and every step faults its pages in
  again. The naive scan of [8, 1M] floats takes 65 ms with 28 600 faults a call, 15 ms without; training steps become
  bimodal. The measuring process keeps its memory (`MALLOC_MMAP_MAX_=0`, a large `MALLOC_TRIM_THRESHOLD_`).
- **Spinning threads** occupy the other core and count as CPU time: `OMP_WAIT_POLICY=PASSIVE`.
- **Cold caches.** The first call after another competitor pays for cache misses: without untimed calls an ANN beside
  a naive SNN looks 15 to 30% slower than it is.
- **A single input** stays in the cache and trains the branch predictor.
- **Memory that was never written** maps to a single shared page of zeros.
"""


def document(results: dict[str, dict[str, Any]]) -> str:
    """The page for these results, one per number of threads; their keys are the addresses of the pictures."""
    ordered = sorted(((name, judged(one)) for name, one in results.items()), key=lambda item: item[1]["threads"])
    sections = [_section(result, picture) for picture, result in ordered]
    found = [result for _, result in ordered]
    return "\n".join([_TITLE, _headlines(found[0]), _misses(found), _METHOD, *sections])


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
            others = {name: value for name, value in medians.items() if name not in OURS}
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
        "| case | what | ours | must reach | others, relative to the base |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [_line(row) for row in result["rows"]]
    lines += ["", "### Spikes and answers", "", "| case | spikes per step / nonzero nibbles per byte | answers |"]
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
    ours = "<br>".join(cell for name, cell in cells.items() if name in OURS)
    others = "<br>".join(cell for name, cell in cells.items() if name not in OURS)
    limits = "<br>".join(verdict(limit).replace("MISSED", "**missed**") for limit in row["limits"])
    return f"| {row['case']} | {row['title']} | {ours} | {limits} | {others} |"


def _ratio(row: dict[str, Any], name: str) -> str:
    if name == row["base"]:
        return "1"
    found = ratio(row, name)
    return f"{found['median']:.2f}× [{found['low']:.2f}, {found['high']:.2f}]"


def draw(result: dict[str, Any], path: Path) -> None:
    """A picture: every rival's value relative to the base, one line per case."""
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(9, 1.8 + 0.3 * len(rows)), layout="constrained")
    for name, color in _COLORS.items():
        points = [(ratio(row, name)["median"], i) for i, row in enumerate(rows) if name in rivals(row, but_base=True)]
        if points:
            ours = name in OURS
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
    axes.set_xlabel(f"{what} relative to the ANN{copied}, log scale{'; bars: what must be reached' * bars}")
    axes.grid(alpha=0.3, axis="x")
    figure.suptitle(f"{result['machine'].get('cpu', '')}, {result['threads']} thread{'s' * (result['threads'] > 1)}")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures = arguments.out.parent / "results" / "figures"
    pictures = [f"results/figures/{path.stem}.png" for path in arguments.results]
    results = [json.loads(path.read_text()) for path in arguments.results]
    for path, result in zip(arguments.results, results, strict=True):
        draw(judged(result), figures / f"{path.stem}.png")
    arguments.out.write_text(document(dict(zip(pictures, results, strict=True))))
