"""The results and performance pages and the figures in README: they are what their results say, and what is refused."""

import json
import re
from pathlib import Path
from statistics import median

import performance
import pytest
import results
from interleaved import ratio
from tables import with_table

from measures import interval

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "docs/results/training").glob("*.json"))
README = (ROOT / "README.md").read_text()


def read(name):
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())


def test_files_that_are_no_results(tmp_path):
    path = tmp_path / "x.json"
    for text in "{", "[]", '{"T": 8}', '{"recipe": {"data": "letters"}}':
        path.write_text(text)
        with pytest.raises(SystemExit, match="is not the summary of a run"):
            results.read(path)


def test_the_results_page_is_that_of_the_results():
    page = (ROOT / "docs/results.md").read_text()
    assert with_table(page, "results", results.tables([results.read(path) for path in COMMITTED[::-1]])) == page
    assert [line for line in page.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_consistent(path):
    one = results.read(path)
    metric, recipe = f"test_{one['metric']}", one["recipe"]
    assert [seed["seed"] for seed in one["per_seed"]] == list(range(recipe["seed"], recipe["seed"] + recipe["seeds"]))
    for prefix in "", "ann_":
        values = [seed[prefix + metric] for seed in one["per_seed"]]
        assert one[prefix + metric] == pytest.approx(sum(values) / len(values), rel=1e-4)
    # The frozen network's stream arrives where the evaluation is.
    if f"{metric}_over_time" in one:
        assert one[f"{metric}_over_time"][-1] == pytest.approx(one[metric], rel=1e-3)


def test_the_performance_page_and_its_picture(tmp_path):
    page = (ROOT / "docs/performance.md").read_text()
    assert performance.document(page) == page
    performance.draw(read("bench-1"), tmp_path / "home.png")
    assert (tmp_path / "home.png").stat().st_size > 5000


def test_the_card_in_the_readme_is_the_committed_run():
    one = read("training/digits")
    card = README.partition("digits, cnn, T=8, mean of 3 seeds")[2].partition("```")[0]
    for shown in (
        f"{one['test_accuracy']:.2f} %", f"{one['ann_test_accuracy']:.2f} %", f"{one['step_time_ms']:.2f} ms",
        f"{one['ann_step_time_ms']:.2f} ms", f"{one['step_time_ratio']:.2f}", f"{one['synops_ratio']:.2f}",
        *(f"{100 * rate:.1f} %" for rate in one["firing_rates"].values()),
    ):  # fmt: skip
        assert f" {shown} " in card


def test_the_accuracies_in_the_readme():
    section = README.partition("## What it reaches")[2].partition("## ")[0]
    rows = [line.split(" | ")[1:] for line in section.splitlines() if "`" in line and line.startswith("|")]
    assert len(rows) == 10
    for name, *shown in rows:
        run = results.read(ROOT / f"docs/results/training/{name.strip('`')}.json")
        value, twin, continued = (run.get(f"{kind}test_accuracy") for kind in ("", "ann_", "ann_continued_"))
        low, high = interval(value / 100, twin / 100, run["samples"]["test"])
        control = "the twin" if run["recipe"]["init_from"] is None else "-" if continued is None else f"{continued:.2f}"
        assert [cell.strip(" |") for cell in shown] == [
            str(len(run["per_seed"])), f"{value:.2f}", f"{twin:.2f}",
            f"{value - twin:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]", control, f"{run['synops_ratio']:.2f}",
        ]  # fmt: skip


COSTS = {
    "a conv layer, ": ("conv-128-256-rate-10", "tandem", 1e3),
    "a training step of a conv net": ("conv-net-train-9", "tandem", 1e3),
    "its extra memory": ("conv-net-peak", "tandem", 2**-20),
    "a training step of an MLP": ("mlp-train-T8-rate", "tandem", 1e3),
    "inference of that MLP": ("mlp-infer-128-rate", "frozen", 1e3),
}


@pytest.mark.parametrize("what", COSTS)
def test_the_costs_in_the_readme(what):
    case, ours, unit = COSTS[what]
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {what}"))
    (row,) = (row for row in read("bench-1")["rows"] if row["case"] == case)
    competitors = (ours, "ANN", "naive, loop compiled", "SpikingJelly, compiled", "snnTorch")
    for cell, competitor in zip(line.split("|")[2:-1], competitors, strict=True):
        if shown := cell.strip():
            digits = len(shown.partition(".")[2])
            assert shown == f"{unit * median(row['values'][competitor]):.{digits}f}", competitor


def test_the_numbers_of_the_home_page():
    page = (ROOT / "docs/index.md").read_text()
    result = read("training/fashion-mnist")
    rows = {row["case"]: row for row in read("bench-1")["rows"]}
    assert f"**{result['test_accuracy']:.2f} %**" in page
    assert f"its ANN twin {result['ann_test_accuracy']:.2f} %" in page
    for case in "conv-net-train-9", "conv-net-peak":
        values = rows[case]["values"]
        ours, *rivals = (
            ratio(values[name], values["ANN"]).fast for name in ("tandem", "SpikingJelly, compiled", "snnTorch")
        )
        line = next(line for line in page.splitlines() if f"**{ours:.2f} ×**" in line)
        assert "compiled SpikingJelly {:.1f} ×, snnTorch {:.1f} ×".format(*rivals) in line
    cost = performance.by_T(read("bench-1"), "time")[8]
    assert re.search(rf"T = 8: {cost['tandem'] / cost['ANN']:.2f} × the ANN's time", page)
