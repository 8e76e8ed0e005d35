"""The page: contents and figures as HTML, by the template page.html, which escapes all text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
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
    summary = contents.summary
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    details = {
        "Recipe": summary["recipe"],
        "Machine and versions": {k: summary.get(k) for k in ("machine", "versions")},
    }
    return template.render(
        c=contents,
        s=summary,
        seeds=len(summary["seeds"]),
        figures=figures,
        pj={"ac": AC_PJ, "mac": MAC_PJ},
        title=f"{contents.recipe['data']}, {contents.recipe['model']}, T = {summary['T']}",
        tiles=_headline(contents),
        confusion=None if contents.confusion is None else _confusion(contents.confusion, contents.class_names),
        matches=_matches(summary),
        costs=_costs(contents),
        facts=[(key, summary[key]) for key in ("command", "commit", "started", "seconds", "threads") if key in summary],
        details={name: json.dumps(values, indent=2) for name, values in details.items()},
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
                yield difference.replace("-", "\N{MINUS SIGN}"), f"points compared with {name}; 95 %: {interval}"
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


def _confusion(matrix: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """The matrix in rows (class, cells, share that is right); of many classes only the worst confusions."""
    errors = matrix.clone().fill_diagonal_(0)
    order = errors.flatten().argsort(descending=True, stable=True)[:LISTED].tolist()
    worst = [(names[n // len(names)], names[n % len(names)], int(errors.flatten()[n])) for n in order]
    return {
        "total": int(matrix.sum()),
        "right": int(matrix.diagonal().sum()),
        "rows": [_cells(names[i], matrix[i], i) for i in range(len(names))],
        "worst": [one for one in worst if one[2]] if len(names) > MOST_CLASSES else [],
    }


def _cells(name: str, counts: Tensor, i: int) -> tuple[str, list[tuple[int, str, float]], float]:
    shares = (counts / counts.sum().clamp_min(1)).tolist()
    shown = [("good", 0.55 * share) if j == i else ("bad", min(0.75, 4 * share)) for j, share in enumerate(shares)]
    return name, [(int(count), *cell) for count, cell in zip(counts, shown, strict=True)], shares[i]


def _matches(summary: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, m in summary["mismatch"].items():
        correlation = "" if m["correlation"] is None else f"{m['correlation']:.3f}"
        shares = (f"{100 * m[share]:.1f} %" for share in ("exact", "over", "under", "spurious"))
        yield name, f"{m['cosine']:.3f}", correlation, *shares


def _costs(contents: Contents) -> Iterator[tuple[str, ...]]:
    summary = contents.summary
    energy = summary["energy_pj"]
    for label, key, unit, format_ in (
        ("one training step", "step_time_ms", 1.0, "{:.2f} ms"),
        ("one epoch", "seconds_per_epoch", 1.0, "{:.2f} s"),
        ("peak memory of training", "peak_memory", 1 / 2**20, "{:.0f} MiB"),
        ("synaptic operations", contents.operations, 1e-6, "{:.3g} million"),
        ("energy of arithmetic, estimate", (energy["snn"], energy["ann"]), 1e-6, "{:.3g} µJ"),
    ):
        pair = (summary.get(key), summary.get(f"ann_{key}")) if isinstance(key, str) else key
        measured = summary.get("step_time_ratio") if key == "step_time_ms" else None
        ratio = f"{measured or pair[0] / pair[1]:.2f}" if pair[0] and pair[1] else ""
        yield label, *(format_.format(unit * value) if value else "" for value in pair), ratio
