"""The page: contents and figures as HTML. All text from outside goes through ``escape``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor

from ..container import atomically
from ..measure.operations import AC_PJ, MAC_PJ
from ..measure.quality import points
from . import figures
from .contents import Contents, gather

MOST_CLASSES = 40  # of a confusion matrix; with more, only its largest entries are listed
LISTED = 25


def write_report(run: Path, out: Path | None = None, data_dir: Path | None = None) -> Path:
    """Writes the report of a run as one self-contained HTML file.

    Args:
        run: a folder written by ``tandem-snn train``.
        out: the file; default ``run/report.html``.
        data_dir: the folder of the data set's files, see :func:`tandem_snn.data.load`.

    Returns:
        The file.

    Raises:
        UserError: no run, a damaged run, no data, no matplotlib, or a file that cannot be written.
    """
    out = run / "report.html" if out is None else out
    text = page(gather(run, data_dir))
    atomically(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return out


def page(contents: Contents) -> str:
    """The page as text."""
    recipe, summary = contents.recipe, contents.summary
    seeds = len(summary["seeds"])
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{recipe['data']}, {recipe['model']}, T = {summary['T']}"),
        subtitle=escape(f"run {contents.name}, {seeds} seed{'s' * (seeds > 1)}, {summary.get('started', '')[:10]}"),
        tiles="".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
            for value, label in _headline(contents)
        ),
        sections="\n".join(_sections(contents)),
    )


def _headline(contents: Contents) -> Iterable[tuple[str, str]]:
    summary = contents.summary
    mean = f", mean of {len(summary['seeds'])} seeds" if len(summary["seeds"]) > 1 else ""
    if contents.metric == "accuracy":
        yield f"{summary['test_accuracy']:.2f} %", f"test accuracy{mean}"
        for key, name in ("ann", "the twin"), ("ann_continued", "the twin, trained as long"):
            if f"{key}_test_accuracy" in summary:
                shares = summary["test_accuracy"] / 100, summary[f"{key}_test_accuracy"] / 100
                difference, _, interval = points(*shares, summary["samples"]["test"]).partition(" ")
                yield difference.replace("-", "\N{MINUS SIGN}"), f"points beside {name}; 95 %: {interval}"
    else:
        yield f"{summary['test_mse']:.4g}", f"test error (mse){mean}"
        if "ann_test_mse" in summary:
            yield f"{summary['test_mse'] / summary['ann_test_mse']:.2f} ×", "the twin's error"
    yield (
        f"{summary['synops_ratio']:.2f} ×",
        "operations at inference: one per spike and synapse / the ANN's multiply-accumulates",
    )
    yield (
        f"{summary['energy_pj']['snn'] / summary['energy_pj']['ann']:.2f} ×",
        (
            f"energy of these operations, at {AC_PJ} pJ per accumulate and {MAC_PJ} pJ per multiply-accumulate: an "
            "estimate for hardware that works per spike"
        ),
    )
    if "step_time_ratio" in summary:
        yield f"{summary['step_time_ratio']:.2f} ×", "time of a training step over all T time steps / the twin's"
    rates = summary["firing_rates"].values()
    yield f"{100 * sum(rates) / max(1, len(rates)):.1f} %", "firing rate, mean of layers"


def _sections(contents: Contents) -> Iterable[str]:
    if contents.histories:
        yield _section("Learning curves", "One line per seed.", figures.learning_curves(contents))
    title = ("Accuracy" if contents.metric == "accuracy" else "Error") + " against time and operations"
    if contents.over_time is not None:
        explanation = f"Answers after each of the T steps, on {contents.summary['samples']['test']:,} test samples"
        explanation += ", mean of the seeds." if len(contents.summary["seeds"]) > 1 else "."
        if contents.summary.get("early_exit"):
            explanation += " Dashed: each sample stops as soon as the softmax of the readout reaches a confidence, 0.5 "
            explanation += "to 1 (first seed)."
        if contents.twin is not None:
            explanation += " The diamond is the twin, which spends all of its operations at once."
        yield _section(title, explanation, figures.over_time(contents))
    else:
        yield _section(title, "The network cannot stream: it has no answer before the end of the window.", "")
    if contents.confusion is not None:
        yield _confusion(contents)
    if contents.rasters:
        told = f"{contents.verdict[0]}, answered {contents.verdict[1]}" if contents.verdict else ""
        picture = figures.example(contents) if contents.example is not None else ""
        yield _section(
            "Spikes of one sample",
            "The first test sample, and its spikes in up to 120 evenly spaced neurons of each layer.",
            f'<div class="side"><figure>{picture}<figcaption>{escape(told)}</figcaption></figure>'
            f"{figures.rasters(contents)}</div>",
        )
    yield _section(
        "Firing rates",
        f"Neurons by their firing rate, in spikes per step over {contents.samples:,} test samples; the line is the "
        "mean. A silent neuron never fired.",
        figures.rate_histograms(contents),
    )
    yield _section(
        "Spike counts against the ANN branch's activations",
        "The rule uses the ANN's gradient at the real counts. It is the more exact, the closer the dots (neurons of "
        f"{contents.few} test samples) are to the line min(a, T). The table is of {contents.samples:,} test samples. "
        "Cosine: mean over the samples. Correlation: between the next layer's products with counts and with "
        "activations. A count is as expected if it is ⌊z/ϑ⌋, clipped to 0..T, the count for currents that are the same "
        "at every step; other neurons received currents that changed. Spurious: neurons that fire although z ≤ 0; they "
        "get no gradient.",
        figures.coupling(contents) + _matches(contents),
    )
    yield _section(
        "Memory and time beside the twin",
        "Training steps of the first seed's networks were measured in turns; the ratio is the median of ratios. Epochs "
        "are means over the seeds. Memory is the peak beyond the memory held before training. Operations and energy: "
        f"per sample, at {AC_PJ} pJ per addition and {MAC_PJ} pJ per multiply-accumulate (32-bit floating point in 45 "
        "nm, without memory accesses).",
        _costs(contents),
    )
    yield _origin(contents.summary)


def _section(title: str, explanation: str, body: str) -> str:
    """``body`` is HTML, the rest is text."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(explanation)}</p>{body}</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "numbers") -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = line("th", head) + "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def _confusion(contents: Contents) -> str:
    matrix, names = contents.confusion, contents.class_names
    assert matrix is not None
    total, wrong = int(matrix.sum()), int(matrix.sum() - matrix.diagonal().sum())
    explanation = (
        f"The first seed's network on the test split: {total - wrong:,} of {total:,} right. Rows are the classes, "
        "columns the answers."
    )
    if len(names) > MOST_CLASSES:
        return _section("Confusions", explanation + " The most frequent ones:", _worst(matrix, names))
    head = "".join(f'<th title="{escape(name)}"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        share = matrix[i] / matrix[i].sum().clamp_min(1)
        cells = "".join(_cell(int(matrix[i, j]), float(share[j]), i == j) for j in range(len(names)))
        recall = f"<td>{100 * share[i]:.0f} %</td>"
        rows.append(f'<tr><th title="{escape(name)}">{escape(name)}</th>{cells}{recall}</tr>')
    turned = " turned" * (max(map(len, names)) > 3)
    body = (
        f'<table class="confusion{turned}"><thead><tr><th>class</th><td colspan={len(names)}>answer</td><td>right</td>'
        f"</tr><tr><th></th>{head}<td></td></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    return _section("Confusion matrix", explanation, f'<div class="scroll">{body}</div>')


def _cell(count: int, share: float, right: bool) -> str:
    colour, depth = ("good", 0.55 * share) if right else ("bad", min(0.75, 4 * share))
    style = f' style="background:rgb(var(--{colour}) / {depth:.2f})"' if count else ' class="soft"'
    return f"<td{style}>{count or '·'}</td>"


def _worst(matrix: Tensor, names: tuple[str, ...]) -> str:
    errors = matrix.clone().fill_diagonal_(0)
    order = errors.flatten().argsort(descending=True, stable=True)[:LISTED].tolist()
    pairs = [(i // len(names), i % len(names)) for i in order]
    rows = [(names[i], names[j], f"{int(errors[i, j])}") for i, j in pairs if errors[i, j]]
    return _table(("class", "taken for", "times"), rows)


def _matches(contents: Contents) -> str:
    head = ("layer", "cosine", "correlation of the next products", "count as expected", "more", "fewer", "spurious")
    return _table(
        head,
        (
            (name, f"{m['cosine']:.3f}", "" if m["correlation"] is None else f"{m['correlation']:.3f}",
             *(f"{100 * m[share]:.1f} %" for share in ("exact", "over", "under", "spurious")))
            for name, m in contents.summary["mismatch"].items()
        ),
    )  # fmt: skip


def _costs(contents: Contents) -> str:
    summary, rows = contents.summary, []
    energy = summary["energy_pj"]
    for key, label, unit, format_ in (
        ("step_time_ms", "one training step", 1.0, "{:.2f} ms"),
        ("seconds_per_epoch", "one epoch", 1.0, "{:.2f} s"),
        ("peak_memory", "peak memory of training", 1 / 2**20, "{:.0f} MiB"),
    ):
        pair = summary.get(key), summary.get(f"ann_{key}")
        shown = [format_.format(unit * value) if value else "" for value in pair]
        measured = summary.get("step_time_ratio") if key == "step_time_ms" else None
        ratio = f"{measured or pair[0] / pair[1]:.2f}" if pair[0] and pair[1] else ""
        rows.append((label, *shown, ratio))
    for label, (snn, ann), unit, format_ in (
        ("synaptic operations", contents.operations, 1e-6, "{:.3g} million"),
        ("energy of arithmetic, estimate", (energy["snn"], energy["ann"]), 1e-6, "{:.3g} µJ"),
    ):
        rows.append((label, format_.format(unit * snn), format_.format(unit * ann), f"{snn / ann:.2f}"))
    return _table(("", "SNN", "ANN twin", "SNN / ANN"), rows)


def _origin(summary: dict[str, Any]) -> str:
    facts = {key: summary[key] for key in ("command", "commit", "started", "seconds", "threads") if key in summary}
    machine = json.dumps({key: summary.get(key) for key in ("machine", "versions")}, indent=2)
    recipe = json.dumps(summary["recipe"], indent=2)
    body = _table((), ((name, str(value)) for name, value in facts.items()), "facts")
    for name, text in ("Recipe", recipe), ("Machine and versions", machine):
        body += f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"
    return _section("Origin", "", body)
