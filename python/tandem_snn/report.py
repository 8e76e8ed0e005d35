"""The results of a run: as tables, which the command line prints, and as one HTML page with tables and pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from . import plots
from .container import atomically
from .data import Dataset
from .errors import UserError, extra
from .measure import Monitor
from .measure.operations import AC_PJ, MAC_PJ
from .measure.quality import points
from .nn.hooks import evaluating
from .training.checkpoint import load_checkpoint
from .training.recipe import KINDS, Recipe, folder_of

SUMMARY, MODEL = "summary.json", "model.safetensors"
SAMPLES = 256  # of the test split, for pictures of neurons
NAMED = 40  # the most classes that a confusion matrix names
CAPTION = (
    "Accuracies: difference in points, [95 % interval by the number of test samples]. Time: on this machine. Memory: "
    "growth in training. Operations: one per spike and synapse it reaches / the twin's multiply-accumulates. Energy of "
    f"their arithmetic, {AC_PJ} pJ per accumulate and {MAC_PJ} pJ per multiply-accumulate: an estimate for "
    "event-driven hardware."
)


def tables(summary: dict[str, Any]) -> Iterator[Table]:
    """The tables of a run, from its summary.json or the part of it that was measured."""
    recipe, seeds = summary["recipe"], len(summary["seeds"])
    title = f"{recipe['data']}, {recipe['model']}, T={recipe['T']}, mean of {seeds} seed{'s' * (seeds > 1)}"
    yield _table(title, ("", "SNN", "ANN twin", "SNN / ANN"), _networks(summary), CAPTION)
    caption = "c: spike counts; a: the activations of the ANN branch; expected: ⌊a⌋ within 0 to T."
    yield _table("layers", ("layer", "firing rate", "cosine of c and a", "c as expected"), _layers(summary), caption)
    if exits := summary.get("early_exit"):
        rows = ((f"{one['confidence']}", f"{100 * one['accuracy']:.2f} %", f"{one['steps']:.2f}") for one in exits)
        yield _table("early exit, first seed", ("confidence", "test accuracy", "mean steps"), rows)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption, caption_justify="left")
    for i, column in enumerate(head):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _layers(summary: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name, rate in summary["firing_rates"].items():
        match = summary["mismatch"].get(name)  # average pooling has none
        cells = (f"{match['cosine']:.3f}", f"{100 * match['exact']:.1f} %") if match else ("", "")
        yield name, f"{100 * rate:.1f} %", *cells


def _networks(summary: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    accuracy = "test_accuracy" in summary
    key = "test_accuracy" if accuracy else "test_mse"
    snn, shown = summary[key], "{:.2f} %" if accuracy else "{:.5f}"
    yield key.replace("_", " "), shown.format(snn), *_beside(summary, "ann_" + key, shown, snn)
    if (longer := "ann_continued_" + key) in summary:
        yield "the twin, trained as long", "", *_beside(summary, longer, shown, snn)
    for label, key, unit, form in (
        ("time per training step", "step_time_ms", 1.0, "{:.2f} ms"),
        ("time per epoch", "seconds_per_epoch", 1.0, "{:.2f} s"),
        ("peak memory", "peak_memory", 2**-20, "{:.0f} MiB"),
    ):
        own, twin = summary.get(key), summary.get("ann_" + key)
        ratio = summary.get("step_time_ratio") if key == "step_time_ms" else own / twin if own and twin else None
        if own or twin:
            cells = [form.format(value * unit) if value else "" for value in (own, twin)]
            yield label, cells[0], cells[1], f"{ratio:.2f}" if ratio else ""
    yield "operations at inference", "", "", f"{summary['synops_ratio']:.2f}"
    snn, ann = summary["energy_pj"]["snn"], summary["energy_pj"]["ann"]
    yield "energy", f"{1e-6 * snn:.3g} µJ", f"{1e-6 * ann:.3g} µJ", f"{snn / ann:.2f}"


def _beside(summary: dict[str, Any], key: str, shown: str, snn: float) -> tuple[str, str]:
    """The metric of a twin, and how the SNN's compares with it."""
    ann = summary.get(key)
    if ann is None:
        return "", ""
    accuracy = key.endswith("accuracy")
    return shown.format(ann), (
        points(snn / 100, ann / 100, summary["samples"]["test"]) if accuracy else f"{snn / ann:.3f}"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>body {{ margin: 2rem auto; max-width: 64rem; padding: 0 1rem; font-family: system-ui, sans-serif; }}
pre {{ overflow-x: auto; line-height: 1.25; font-family: Menlo, "DejaVu Sans Mono", Consolas, monospace; }}
img {{ max-width: 100%; }}</style></head>
<body>
{body}
</body></html>
"""


def write_report(run: Path, out: Path | None = None, data_dir: Path | None = None) -> Path:
    """Writes the report of a run, a folder of ``tandem-snn train``, as one HTML file that loads nothing else.

    Its tables show the summary, means over the seeds. Its pictures of neurons and the confusion matrix show the first
    seed's network, which is run on the test samples.
    """
    out = run / "report.html" if out is None else out
    try:
        summary = json.loads((run / SUMMARY).read_text())
        shown, origin = _text(*tables(summary)), {k: v for k, v in summary.items() if k in _ORIGIN}
    except FileNotFoundError:
        raise UserError(f"no run in {run}: `tandem-snn train` writes {SUMMARY} when it has finished") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{run / SUMMARY} is damaged or of another version: {error}") from error
    recipe = Recipe.from_dict(summary["recipe"])
    data = recipe.load(data_dir)
    net = recipe.build(data)
    load_checkpoint(run / MODEL, net)
    title = f"{recipe.data}, {recipe.model}, T = {recipe.T}"
    body = [f"<h1>{escape(title)}</h1>", f"<p>Run {escape(run.resolve().name)}</p>", shown]
    for heading, draw, size in (*_curves(run, summary), *_neurons(net, data)):
        body += [f"<h2>{escape(heading)}</h2>", _picture(heading, draw, size)]
    body += ["<h2>Origin</h2>", _text(json.dumps(origin, indent=2))]
    text = _PAGE.format(title=escape(title), body="\n".join(body))
    atomically(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return out


_ORIGIN = ("command", "commit", "started", "seconds", "threads", "recipe", "machine", "versions")
Picture = tuple[str, Callable[[Any], object], tuple[float, float]]  # title, what draws into axes, inches


def _text(*printed: Any) -> str:
    """What the command line would print, as HTML."""
    console = Console(file=io.StringIO(), record=True, width=120, markup=False, emoji=False, highlight=False)
    for one in printed:
        console.print(one, soft_wrap=isinstance(one, str))
    return console.export_html(code_format="<pre>{code}</pre>", inline_styles=True)


def _picture(title: str, draw: Callable[[Any], object], size: tuple[float, float]) -> str:
    matplotlib = extra("matplotlib", "the report")
    with matplotlib.rc_context({"font.size": 9, "text.parse_math": False}):  # a class may be called "$x$"
        figure, file = extra("matplotlib.figure", "the report").Figure(figsize=size, layout="constrained"), io.BytesIO()
        draw(figure.subplots())
        figure.savefig(file, format="png", dpi=120)
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _curves(run: Path, summary: dict[str, Any]) -> Iterator[Picture]:
    """Loss and error by epoch, with a line for each seed; the error by time step."""
    metric = "accuracy" if "test_accuracy" in summary else "mse"
    part = "validation" if summary["recipe"]["validation"] else "training"
    key = metric if part == "training" else f"validation_{metric}"
    histories = {kind: list(_histories(run, kind, summary["seeds"], key)) for kind in KINDS}

    def error(value: float) -> float:
        return 100 - 100 * value if metric == "accuracy" else value

    def by_epoch(axes: Any, values: Callable[[Any], float], label: str) -> None:
        for (kind, seeds), color in zip(histories.items(), (plots.SNN, plots.ANN, "tab:brown"), strict=True):
            for i, history in enumerate(seeds):
                axes.plot(range(1, len(history) + 1), [values(record) for record in history], ".-", color=color,
                          label=None if i else kind)  # fmt: skip
        _label(axes, "epoch", label)

    what = "error, %" if metric == "accuracy" else metric
    if any(histories.values()):
        yield "Training loss", lambda axes: by_epoch(axes, lambda r: r["loss"], "training loss"), (6, 3)
        title = f"{part} {what}"
        yield title.capitalize(), lambda axes: by_epoch(axes, lambda r: error(r[key]), title), (6, 3)

    def over_time(axes: Any) -> None:
        values = [100 - value if metric == "accuracy" else value for value in summary[f"test_{metric}_over_time"]]
        axes.plot(range(1, len(values) + 1), values, "o-", color=plots.SNN, label="all samples")
        if exits := sorted((one["steps"], error(one["accuracy"])) for one in summary.get("early_exit", ())):
            axes.plot(*zip(*exits, strict=True), "s--", color="black", markersize=3, label="early exit (mean)")
        if (twin := summary.get(f"ann_test_{metric}")) is not None:
            axes.axhline(100 - twin if metric == "accuracy" else twin, color=plots.ANN, label="ANN twin")
        _label(axes, "time steps", f"test {what}")

    if f"test_{metric}_over_time" in summary:
        yield f"Test {what} by time step", over_time, (6, 3)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=f"{y} (log scale)", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_locator(extra("matplotlib.ticker", "the report").LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend()


def _histories(run: Path, kind: str, seeds: list[int], key: str) -> Iterator[list[dict[str, Any]]]:
    for seed in seeds:
        path = run / f"seed-{seed}" / folder_of(kind) / "metrics.jsonl"
        if path.exists():
            try:
                records = [json.loads(line) for line in path.read_text().splitlines()]
                [(record["loss"], record[key]) for record in records]
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path} is damaged: {error}") from error
            yield records


def _neurons(net: nn.Module, data: Dataset) -> Iterator[Picture]:
    if data.task == "classification":
        side = 2 + min(8.0, 0.35 * data.classes)
        yield "Confusion matrix", partial(_confusions, *_answers(net, data), data.class_names), (side, side)
    x = next(data.test.batches(SAMPLES))[0]
    with evaluating(net), Monitor(net, samples=1) as monitor:
        net(x[:1])
    for name, layer in monitor.items():
        yield f"Spikes of {name}, first test sample", partial(plots.raster, layer), (6, 3)
    yield "Firing rates", lambda axes: plots.rates(net, x, axes), (6, 3)
    yield "Spike counts against activations", lambda axes: plots.counts_against_activations(net, x, axes), (6, 3)


def _answers(net: nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    with evaluating(net):
        found = [(targets, net(x).argmax(1)) for x, targets in data.test.batches(512)]
    targets, answers = (torch.cat(part) for part in zip(*found, strict=True))
    return targets, answers


def _confusions(targets: Tensor, answers: Tensor, names: Sequence[str], axes: Any) -> None:
    few = len(names) <= NAMED
    extra("sklearn.metrics", "the report").ConfusionMatrixDisplay.from_predictions(
        targets, answers, labels=range(len(names)), display_labels=names if few else None, include_values=few,
        xticks_rotation="vertical", cmap="Blues", colorbar=False, ax=axes,
    )  # fmt: skip
    axes.set(xlabel="answer", ylabel="class", **({} if few else {"xticks": [], "yticks": []}))
