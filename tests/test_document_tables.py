"""Tables in docs/ are what their results say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from statistics import median

import pytest
from performance import document
from runs import read as read_result
from tables import with_table

from tandem_snn.bench.run import ratio
from tandem_snn.measure.quality import points

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from documents import ROOT, read

TABLES = [
    ("convert.md", "conversion", "conversion"),
    ("convert.md", "convertible", "convertible_models"),
    ("nir.md", "nir", "nir_consumers"),
    ("onnx.md", "onnx", "onnx_runtime"),
]


@pytest.mark.parametrize(("page", "name", "script"), TABLES)
def test_tables_follow_from_results(page: str, name: str, script: str) -> None:
    if name in ("nir", "onnx"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    text = (ROOT / "docs" / page).read_text()
    assert with_table(text, name, importlib.import_module(script).table(read(name))) == text


def test_the_table_of_initial_gammas() -> None:
    table = importlib.import_module("initialisation").table(read("initialisation"))
    assert table in (ROOT / "docs/initialisation.md").read_text()


def test_the_table_of_the_last_runs() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    assert importlib.import_module("torture_page").with_figures(page, read("reliability")) == page


def test_the_performance_page() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    results = {f"results/figures/bench-{threads}.png": read(f"bench-{threads}") for threads in (1, 2)}
    assert document(results, page) == page


def test_the_accuracies_in_the_readme() -> None:
    section = (ROOT / "README.md").read_text().partition("## What it reaches")[2].partition("## ")[0]
    rows = [line.split(" | ")[1:] for line in section.splitlines() if "`" in line and line.startswith("|")]
    assert len(rows) == 8
    for name, *shown in rows:
        run = read_result(ROOT / f"docs/results/training/{name.strip('`')}.json")
        assert run.twin is not None
        difference = points(run.value / 100, run.twin / 100, run.test_samples)
        control = (
            "the twin" if run.recipe.init_from is None else "-" if run.continued is None else f"{run.continued:.2f}"
        )
        assert [cell.strip(" |") for cell in shown] == [
            str(len(run["per_seed"])), f"{run.value:.2f}", f"{run.twin:.2f}", difference, control,
            f"{run['synops_ratio']:.2f}",
        ]  # fmt: skip


README = {
    "a conv layer, ": ("conv-128-256-rate-10", "tandem", 1e3),
    "a training step of a conv net": ("conv-net-train-9", "tandem", 1e3),
    "its extra memory": ("conv-net-peak", "tandem", 2**-20),
    "a training step of an MLP": ("mlp-train-T8-rate", "tandem", 1e3),
    "inference of that MLP": ("mlp-infer-128-rate", "frozen", 1e3),
}


@pytest.mark.parametrize("what", README)
def test_the_costs_in_the_readme(what: str) -> None:
    case, ours, unit = README[what]
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {what}"))
    (row,) = (row for row in read("bench-1")["rows"] if row["case"] == case)
    competitors = (ours, "ANN", "naive, loop compiled", "SpikingJelly, compiled", "snnTorch")
    for cell, competitor in zip(line.split("|")[2:-1], competitors, strict=True):
        if shown := cell.strip():
            digits = len(shown.partition(".")[2])
            assert shown == f"{unit * median(row['values'][competitor]):.{digits}f}", competitor


def test_the_three_numbers_of_the_home_page() -> None:
    page = (ROOT / "docs/index.md").read_text()
    result = read("training/fashion-mnist")
    rows = {row["case"]: row for row in read("bench-1")["rows"]}
    assert f"**{result['test_accuracy']:.2f} %**" in page
    assert f"its ANN twin {result['ann_test_accuracy']:.2f} %" in page
    for case in "conv-net-train-9", "conv-net-peak":
        ratios = {name: ratio(rows[case], name)["median"] for name in rows[case]["values"]}
        line = next(line for line in page.splitlines() if f"**{ratios['tandem']:.2f} ×**" in line)
        rivals = ratios["SpikingJelly, compiled"], ratios["snnTorch"]
        assert "compiled SpikingJelly {:.1f} ×, snnTorch {:.1f} ×".format(*rivals) in line
