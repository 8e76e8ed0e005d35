"""The results page and the tables in docs/: they are what their results say, and what is refused."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch
from performance import document
from results import read_cost
from results import write as write_tables
from runs import read
from tables import with_table

from tandem_snn.bench.measure import ratio
from tandem_snn.errors import UserError
from tandem_snn.measure.quality import difference_interval, points
from tandem_snn.training import Recipe

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "docs/results/training").glob("*.json"))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
documents = importlib.import_module("documents")


def test_intervals_hold_what_they_should():
    """Of 2,000 pairs of test splits about 95 % give an interval that holds the true difference."""
    generator = torch.Generator().manual_seed(0)
    for p, q, n in (0.99, 0.97, 100), (0.934, 0.93, 10_000), (0.5, 0.8, 50):
        right = [torch.binomial(torch.full((2000,), float(n)), torch.full((2000,), r), generator) / n for r in (p, q)]
        intervals = (difference_interval(a, b, n) for a, b in zip(*(r.tolist() for r in right), strict=True))
        assert 0.93 < sum(low <= p - q <= high for low, high in intervals) / 2000 < 0.99
    assert difference_interval(1.0, 1.0, 100) == pytest.approx((-0.037, 0.037), abs=1e-3)


def test_the_card_in_the_readme_is_the_committed_run():
    one = read(ROOT / "docs/results/training/digits.json")
    card = (ROOT / "README.md").read_text().partition("digits, cnn, T=8, mean of 3 seeds")[2].partition("```")[0]
    for shown in (
        f"{one.value:.2f} %", f"{one.twin:.2f} %", points(one.value / 100, one.twin / 100, one.test_samples),
        f"{one['step_time_ms']:.2f} ms", f"{one['ann_step_time_ms']:.2f} ms", f"{one['step_time_ratio']:.2f}",
        f"{one['synops_ratio']:.2f}", *(f"{100 * rate:.1f} %" for rate in one["firing_rates"].values()),
    ):  # fmt: skip
        assert f" {shown} " in card


def test_files_that_are_no_results(tmp_path):
    path = tmp_path / "x.json"
    for text, message in ("{", "is not JSON"), ("[]", "is not the summary of a run"), ('{"T": 8}', "has no recipe,"):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read(path)
    command = [sys.executable, str(ROOT / "docs/pages/results.py"), str(path), "--out", str(tmp_path / "page.md")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "has no recipe" in process.stderr.splitlines()[-1]


@pytest.mark.skipif(not COMMITTED, reason="no results are committed")
def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    """In whatever order they come, and with all its pictures."""
    page = (ROOT / "docs/results.md").read_text()
    (tmp_path / "results.md").write_text(page)
    results = [read(path) for path in COMMITTED[::-1]]
    write_tables(results, tmp_path / "results.md", read_cost(ROOT / "docs/results/cost.json"))
    assert (tmp_path / "results.md").read_text() == page
    drawn = {path.name for path in (tmp_path / "results/figures").iterdir()}
    assert drawn == set(re.findall(r"<!-- picture: results/figures/(\S+) \| ", page))
    assert [line for line in page.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_consistent(path):
    one = json.loads(path.read_text())
    recipe = Recipe.from_dict(one["recipe"])
    metric = "test_accuracy" if recipe.task == "classification" else "test_mse"
    assert [seed["seed"] for seed in one["per_seed"]] == list(recipe.all_seeds)
    for prefix in "", "ann_":
        values = [seed[prefix + metric] for seed in one["per_seed"]]
        assert one[prefix + metric] == pytest.approx(sum(values) / len(values), rel=1e-4)
    # The frozen network's stream arrives where the evaluation is.
    if f"{metric}_over_time" in one:
        assert one[f"{metric}_over_time"][-1] == pytest.approx(one[metric], rel=1e-3)


TABLES = [
    ("convert.md", "conversion", "conversion"),
    ("convert.md", "convertible", "convertible_models"),
    ("nir.md", "nir", "nir_consumers"),
    ("onnx.md", "onnx", "onnx_runtime"),
    ("reliability.md", "reliability", "torture"),
]


@pytest.mark.parametrize(("page", "name", "script"), TABLES)
def test_tables_follow_from_results(page: str, name: str, script: str) -> None:
    if name in ("nir", "onnx"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    text = (ROOT / "docs" / page).read_text()
    assert with_table(text, name, importlib.import_module(script).table(documents.read(name))) == text


SCRIPTS = sorted(path.stem for path in (ROOT / "tests/benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_can_be_imported(name: str) -> None:
    """They are run by hand, after months: what they import has moved by then."""
    importlib.import_module(name)


def test_the_table_of_initial_gammas() -> None:
    table = importlib.import_module("initialisation").table(documents.read("initialisation"))
    assert table in (ROOT / "docs/initialisation.md").read_text()


def test_the_performance_page() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    results = {f"results/figures/bench-{threads}.png": documents.read(f"bench-{threads}") for threads in (1, 2)}
    timings = [documents.read(f"timings-{capability}") for capability in ("default", "v3", "v4")]
    assert document(results, timings, page) == page


def test_the_accuracies_in_the_readme() -> None:
    section = (ROOT / "README.md").read_text().partition("## What it reaches")[2].partition("## ")[0]
    rows = [line.split(" | ")[1:] for line in section.splitlines() if "`" in line and line.startswith("|")]
    assert len(rows) == 10
    for name, *shown in rows:
        run = read(ROOT / f"docs/results/training/{name.strip('`')}.json")
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
    (row,) = (row for row in documents.read("bench-1")["rows"] if row["case"] == case)
    competitors = (ours, "ANN", "naive, loop compiled", "SpikingJelly, compiled", "snnTorch")
    for cell, competitor in zip(line.split("|")[2:-1], competitors, strict=True):
        if shown := cell.strip():
            digits = len(shown.partition(".")[2])
            assert shown == f"{unit * median(row['values'][competitor]):.{digits}f}", competitor


def test_the_three_numbers_of_the_home_page() -> None:
    page = (ROOT / "docs/index.md").read_text()
    result = documents.read("training/fashion-mnist")
    rows = {row["case"]: row for row in documents.read("bench-1")["rows"]}
    assert f"**{result['test_accuracy']:.2f} %**" in page
    assert f"its ANN twin {result['ann_test_accuracy']:.2f} %" in page
    for case in "conv-net-train-9", "conv-net-peak":
        ratios = {name: ratio(rows[case], name)["median"] for name in rows[case]["values"]}
        line = next(line for line in page.splitlines() if f"**{ratios['tandem']:.2f} ×**" in line)
        rivals = ratios["SpikingJelly, compiled"], ratios["snnTorch"]
        assert "compiled SpikingJelly {:.1f} ×, snnTorch {:.1f} ×".format(*rivals) in line
