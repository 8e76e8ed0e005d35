"""The results page: what stands in its tables, that it is a function of the results, what is refused."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from curves import by_T, front
from results import read_cost
from results import write as write_tables
from runs import Result, read

from tandem_snn.errors import UserError
from tandem_snn.measure.quality import difference_interval, points
from tandem_snn.training import Recipe

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "docs/results/training").glob("*.json"))


def result(name, accuracy=90.0, twin=91.0, synops=0.5, **recipe):
    recipe = Recipe(**recipe)
    summary = {
        "recipe": recipe.to_dict(), "T": recipe.T, "synops_ratio": synops, "firing_rates": {"1": 0.1, "2": 0.3},
        "energy_pj": {"snn": 2.0, "ann": 8.0}, "per_seed": [{"seed": 0}], "command": f"tandem-snn train {name}",
        "commit": "0123456789abcdef", "machine": {"cpu": "abacus"}, "samples": {"train": 5000, "test": 10},
        "test_accuracy": accuracy, "ann_test_accuracy": twin, "test_accuracy_over_time": [50.0, accuracy],
        "step_time_ratio": 1.5,
        "early_exit": [{"confidence": 0.9, "accuracy": 0.875, "steps": 1.5}],
    }  # fmt: skip
    return Result(name, summary)


def write(results, out, cost=None):
    """The tables in a page that has nothing else."""
    out.write_text("<!-- begin results -->\n<!-- end results -->\n")
    write_tables(results, out, cost)


def regression(name):
    one = result(name, task="regression")
    pixels = base64.b64encode(bytes(2 * 4)).decode()
    one.summary.update(
        test_mse=0.02, ann_test_mse=0.01, pictures={"shape": [2, 1, 2, 2], "original": pixels, "SNN": pixels}
    )
    del one.summary["early_exit"], one.summary["test_accuracy_over_time"]
    return one


def test_tables(tmp_path):
    runs = [
        result("a", 90, 91, 0.5, gamma=2),
        result("b", 90.9, 91, 0.7, gamma=3),
        result("c", 89, 91, 0.6, data="digits"),
        regression("ae"),
    ]
    runs[0].summary["test_accuracy_std"] = 0.25
    runs[1].summary["commit"] += "+"
    write(runs, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    row = "| `a` | cnn | 8 | gamma=2 | 1 | 90.00 ± 0.25 | 91.00 | -1.00 [-32.33, +30.36] | the twin |  | 0.50 | 0.25 |"
    assert f"{row} 20.0% | 1.50 |" in page
    assert "5,000 train, 10 test samples." in page
    assert "| `ae` | cnn | 8 |  | 1 | 0.02000 | 0.01000 | 2.00 | the twin |  |" in page
    assert "`ae`: squared error summed over an image 0.08." in page
    assert "On the front of accuracy against SynOps: `a`, `b`." in page
    assert "Within 0.3 points of its twin at the fewest SynOps: `b`." in page
    assert "| `a` | 87.50 (1.5) |" in page
    assert "| `a` | `tandem-snn train a` | 0123456789 |  | M1 |  |" in page
    assert "| `b` | `tandem-snn train b` | 0123456789+ |  | M1 |  |" in page
    assert "- M1: cpu abacus." in page
    pictures = {path.name for path in (tmp_path / "results/figures").iterdir()}
    assert pictures == {
        "digits-classification-synops.png", "digits-classification-anytime.png", "digits-regression-pictures-ae.png",
    }  # fmt: skip
    assert all(f"<!-- picture: results/figures/{name} | " in page for name in pictures)
    before = {path: path.read_bytes() for path in (tmp_path / "results/figures").iterdir()}
    write(runs[::-1], tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == page
    assert {path: path.read_bytes() for path in (tmp_path / "results/figures").iterdir()} == before


def test_the_front_is_what_no_other_beats():
    runs = [result(name, *values) for name, *values in (("a", 90, 0, 0.5), ("b", 91, 0, 0.9), ("c", 90, 0, 0.4))]
    assert [r.name for r in front(runs)] == ["c", "b"]


def test_curves_against_T_are_of_results_that_differ_in_nothing_else():
    runs = [result(f"T{T}", T=T, seed=T) for T in (8, 2, 4)] + [result("other", T=16, gamma=2)]
    runs.append(result("T4+v_init=0.5", T=4, v_init=0.5))  # one of the same T: only the recipe itself is drawn
    assert [[r.name for r in family] for family in by_T(runs)] == [["T2", "T4", "T8"]]


def test_a_network_that_started_from_its_twin_stands_beside_the_twin_trained_as_long(tmp_path):
    runs = [result(name, data="cifar10-jpeg", init_from="twin") for name in ("control", "without")]
    runs[0].summary.update(ann_continued_test_accuracy=90.5, ann_continued_test_accuracy_std=0.5)
    runs[0].summary["samples"]["test"] = 10_000
    runs[0].summary["per_seed"][0]["trained_on"] = [{"epochs": 2, "steps": 40}]
    write(runs, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "lossy JPEG" in page
    assert "| 91.00 | -1.00 [-1.81, -0.19] | 90.50 ± 0.50 | -0.50 [-1.32, +0.32] | 0.50 |" in page
    assert "| init_from=twin, trained on from 2 epochs | 1 | 90.00 | " in page
    assert "| -1.00 [-32.33, +30.36] | - | - |" in page


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


def cost(**changes):
    def row(kind, T, **values):
        return {
            "case": f"cost-{kind}-T{T}",
            "title": f"Step: a net, T={T}, B=100, 10%",
            "quantity": kind,
            "values": values,
        }

    rows = [row("time", 4, tandem=[0.1, 0.2, 0.3], ANN=[0.05]), row("peak", 4, tandem=[2**21], ANN=[2**20])]
    return {
        "rows": [{"case": "other"}, *rows], "threads": 1, "machine": {"cpu": "abacus"}, "date": "2026-01-02T03",
        "commit": "0123456789abcdef", "command": "tandem-snn bench", **changes,
    }  # fmt: skip


def test_the_cost_of_training(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(cost()))
    write([result("a")], tmp_path / "page.md", read_cost(path))
    page = (tmp_path / "page.md").read_text()
    assert "| T | tandem, s per epoch | ANN, s per epoch | tandem, peak MiB | ANN, peak MiB |" in page
    assert "| 4 | 120.0 | 30.0 | 2.0 | 1.0 |" in page  # 600 steps of 100 images
    for text, message in ("{", "is not a result"), (json.dumps(cost(rows=[])), "has no case cost-"):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_cost(path)


def test_what_was_tried_at_each_number_of_steps(tmp_path):
    runs = [
        result("a", 90, 91, 0.5),
        result("b", 88, 91, 0.25, T=4, init_from="twin", init_gain=2),
        result("c", 90.5, 91, 0.75, init_from="twin", init_gain=3),
    ]
    runs[1].summary["ann_continued_test_accuracy"] = 92.0
    write(runs, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| network | otherwise | T = 4 | T = 8 |" in page
    assert "Each difference has an interval of about ±31.5 points (95 %, 10 test samples):" in page
    assert "| cnn |  |  | -1.00 (0.50) |" in page
    assert "| cnn | init_from=twin | -4.00† (0.25) | -0.50 (0.75) |" in page
    write(runs[:1] + runs[2:], tmp_path / "page.md")  # one T
    assert "by what was tried" not in (tmp_path / "page.md").read_text()


@pytest.mark.skipif(not COMMITTED, reason="no results are committed")
def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    page = (ROOT / "docs/results.md").read_text()
    (tmp_path / "results.md").write_text(page)
    results = [read(path) for path in COMMITTED]
    write_tables(results, tmp_path / "results.md", read_cost(ROOT / "docs/results/cost.json"))
    assert (tmp_path / "results.md").read_text() == page
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
