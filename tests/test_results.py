"""The results and performance pages and the figures in README: they are what their results say, and what is refused."""

import json
from pathlib import Path

import performance
import pytest
import results
from tables import with_table

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "docs/results/training").glob("*.json"))
README = (ROOT / "README.md").read_text()


def read(name):
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())


MEASURED = {row["case"]: row for row in read("bench-1")["rows"]}


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


def table(heading):
    lines = README.partition(f"## {heading}")[2].partition("## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]
    return {name: cells for name, *cells in rows}


ACCURACIES = {
    "Fashion-MNIST, T = 8, from random weights": "fashion-mnist-window",
    "Fashion-MNIST, T = 4, from the twin": "fashion-mnist-window-from-twin-t4",
    "Fashion-MNIST, T = 2, from the twin": "fashion-mnist-window-from-twin-t2",
    "MNIST, T = 8, from the twin": "mnist-window",
}


def test_the_accuracies_in_the_readme():
    shown = table("Accuracy")
    assert len(shown) == len(ACCURACIES) + 1  # and what `make train` prints
    for what, name in ACCURACIES.items():
        run = read(f"training/{name}")
        twin, continued = (run.get(f"{kind}test_accuracy") for kind in ("ann_", "ann_continued_"))
        assert len(run["per_seed"]) == 3
        assert shown[what] == [
            f"{run['test_accuracy']:.2f}", f"{twin:.2f}", "" if continued is None else f"{continued:.2f}",
            f"{run['synops_ratio']:.2f}",
        ]  # fmt: skip


COSTS = {
    "training step, convolutional network": ("conv-net-train-9", "tandem", "windows"),
    "training step, MLP": ("mlp-train-T8-rate", "tandem", "windows"),
    "inference of that MLP": ("mlp-infer-128-rate", "frozen", "frozen, windows"),
    "the same with 8-bit weights": ("mlp-infer-128-rate", "frozen, 8 bits", "frozen, 8 bits, windows"),
    "inference of a convolution": ("conv-128-256-rate-10", "tandem", "windows"),
}


def test_the_costs_in_the_readme():
    shown = table("Cost")
    assert len(shown) == len(COSTS)
    for (what, cells), (start, (case, *ours)) in zip(shown.items(), COSTS.items(), strict=True):
        assert what.startswith(start)
        assert cells[:2] == [performance.relative(MEASURED[case], way) for way in ours], what
        for name, cell in zip(("SpikingJelly", "snnTorch"), cells[2:], strict=True):
            assert cell == "" or cell == f"{float(performance.relative(MEASURED[case], name)):.1f}", what


def test_the_numbers_at_the_top():
    top, run = README.partition("## ")[0], read("training/fashion-mnist-window-from-twin-t4")
    step = performance.relative(MEASURED["conv-net-train-9"], "windows")
    memory = performance.by_T(read("bench-1"), "peak")[8]
    for shown in (
        f"**{run['test_accuracy']:.2f} %**", f"{run['ann_test_accuracy']:.2f} %", f"**{step} ×**",
        f"**{memory['windows'] / memory['ANN']:.1f} ×**", f"{memory['BPTT'] / memory['ANN']:.1f} ×",
    ):  # fmt: skip
        assert shown in top


def test_the_performance_page_and_its_picture(tmp_path):
    page = (ROOT / "docs/performance.md").read_text()
    assert performance.document(page) == page
    page = (ROOT / "docs/measuring.md").read_text()
    assert performance.contributors(page) == page
    performance.draw(read("bench-1"), tmp_path / "home.png")
    assert (tmp_path / "home.png").stat().st_size > 5000
