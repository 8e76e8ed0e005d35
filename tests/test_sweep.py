"""Sweeps: one result per run, finished runs left alone, shared twins, going on after an interruption."""

import json
import signal

import pytest

from tandem_snn.cli import job, main
from tandem_snn.training import Recipe

SMALL = "data: digits\nmodel: mlp\nwidth: 0.1\nepochs: 2\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return "./small.yaml"


def results(folder):
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.iterdir())}


def test_a_sweep_writes_one_result_per_run_and_runs_none_twice(recipe, tmp_path, capsys):
    arguments = ["sweep", recipe, "--vary", "T=2,4", "--vary", "gamma=1,2", "--set", "lr=1e-3", "--results", "kept"]
    assert main(arguments) == 0
    found = results(tmp_path / "kept")
    assert list(found) == [f"small+T={T}+gamma={gamma}.json" for T in (2, 4) for gamma in (1, 2)]
    for name, result in found.items():
        assert name == "small+T={T}+gamma={gamma:.0f}.json".format(**result["recipe"])
        assert len(result["test_accuracy_over_time"]) == result["T"] == result["recipe"]["T"]
        assert result["test_accuracy_over_time"][-1] == pytest.approx(result["test_accuracy"], abs=1e-3)
        assert result["early_exit"][-1]["steps"] == result["T"]
        assert result["samples"] == {"train": 1234, "validation": 113, "test": 450}
        assert set(result) >= {
            "command", "commit", "machine", "seconds_per_epoch", "ann_seconds_per_epoch", "peak_memory", "synops_ratio",
            "firing_rates", "mismatch", "energy_pj", "per_seed", "parameters",
        }  # fmt: skip
    first = found["small+T=2+gamma=1.json"]
    assert first["command"] == "tandem-snn train ./small.yaml --set lr=1e-3 --set T=2 --set gamma=1"
    # One twin serves all four, since it has no time steps and starts at its own γ.
    assert len(list((tmp_path / "runs/twins").iterdir())) == 1
    assert len({result["ann_test_accuracy"] for result in found.values()}) == 1

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count(": finished") == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before
    assert results(tmp_path / "kept") == found
    # The same recipe by itself gives the same result.
    assert main([*first["command"].split()[1:], "--out", "alone"]) == 0
    alone = json.loads((tmp_path / "alone/summary.json").read_text())
    assert alone["per_seed"] == first["per_seed"]


def test_a_sweep_goes_on_after_an_interruption(recipe, monkeypatch, capsys, tmp_path):
    assert main(["sweep", recipe, "--out", "whole"]) == 0
    asked = []

    def requested(self):
        asked.append(1)
        return len(asked) == 30  # in the second epoch

    arguments = ["sweep", recipe, "--seeds", "2"]
    monkeypatch.setattr("tandem_snn.training.processes.Interruption.requested", requested)
    assert main(arguments) == 143
    assert main(["sweep", recipe, "--seeds", "2", "--list"]) == 0
    assert "1 of 1: small\n" in capsys.readouterr().out
    assert main(arguments) == 0
    again = results(tmp_path / "runs/results")["small.json"]
    assert again["per_seed"][0] == results(tmp_path / "whole/results")["small.json"]["per_seed"][0]
    assert again["test_accuracy_std"] >= 0
    assert again["seeds"] == [0, 1]


def test_a_wish_to_stop_while_a_run_is_measured_stops_the_sweep(recipe, monkeypatch, capsys, tmp_path):
    compare = job.compare

    def compare_and_be_stopped(*arguments, **keywords):
        result = compare(*arguments, **keywords)
        signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(job, "compare", compare_and_be_stopped)
    assert main(["sweep", recipe, "--vary", "T=2,4"]) == 130
    assert "stopped before small+T=4" in capsys.readouterr().err
    assert list(results(tmp_path / "runs/results")) == ["small+T=2.json"]


def test_one_that_fails_is_reported_and_the_others_run(recipe, tmp_path, capsys):
    assert main(["sweep", recipe, "mnist", "--data-dir", "nowhere", "--set", "epochs=1"]) == 2
    error = capsys.readouterr().err
    assert "mnist: data set 'mnist': no whole MNIST in nowhere" in error
    assert error.endswith("tandem-snn: 1 of 2 runs failed: mnist\n")
    assert list(results(tmp_path / "runs/results")) == ["small.json"]


MISTAKES = {
    "no recipe": (["sweep", "--list"], "Missing argument 'names'"),
    "key": (["sweep", "mnist", "--vary", "gama=1,2"], "did you mean 'gamma'"),
    "vary": (["sweep", "mnist", "--vary", "gamma=1,"], "expected KEY=V1,V2,..."),
    "value": (["sweep", "mnist", "--vary", "T=4,70000"], "1 to 65535"),
    "one name for two": (["sweep", "mnist", "./mnist.yaml"], "two runs would have the name mnist"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_seen_before_anything_runs(name, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    refused(*MISTAKES[name])
    assert not list(tmp_path.iterdir())


def test_a_result_of_another_recipe_is_not_taken_for_finished(recipe, capsys):
    assert main(["sweep", recipe, "--no-twin", "--set", "epochs=1"]) == 0
    assert main(["sweep", recipe, "--no-twin"]) == 2
    assert "belongs to a training of 1 epochs, not 2" in capsys.readouterr().err
    assert main(["sweep", recipe, "--no-twin", "--list"]) == 0, "nothing ran that could fail"
    assert capsys.readouterr().out == "1 of 1: small\n"


def test_more_seeds_are_added_to_those_that_are_there(recipe, tmp_path):
    assert main(["sweep", recipe, "--no-twin"]) == 0
    first = tmp_path / "runs/small/seed-0/snn/result.json"
    before = first.stat().st_mtime_ns
    assert main(["sweep", recipe, "--no-twin", "--seeds", "2"]) == 0
    assert results(tmp_path / "runs/results")["small.json"]["seeds"] == [0, 1]
    assert first.stat().st_mtime_ns == before


def test_a_control_that_is_missing_is_run(recipe, tmp_path):
    arguments = ["sweep", recipe, "--set", "init_from=twin", "--vary", "T=2,4"]
    assert main([*arguments, "--no-twin"]) == 0
    assert "ann_continued_test_accuracy" not in results(tmp_path / "runs/results")["small+T=2.json"]
    before = (tmp_path / "runs/small+T=2/seed-0/snn/result.json").stat().st_mtime_ns
    assert main(arguments) == 0
    found = results(tmp_path / "runs/results")
    assert (
        found["small+T=2.json"]["ann_continued_test_accuracy"] == found["small+T=4.json"]["ann_continued_test_accuracy"]
    )
    assert (tmp_path / "runs/small+T=2/seed-0/snn/result.json").stat().st_mtime_ns == before
    assert len(list((tmp_path / "runs/twins").iterdir())) == 2  # the twin and the twin continued serve both


def test_all_means_every_recipe_of_the_package(capsys):
    assert main(["sweep", "all", "--list", "--out", "/nowhere"]) == 0
    assert "digits\n" in capsys.readouterr().out


def test_twins_are_shared_by_what_an_ann_has():
    assert Recipe(T=2, v_init=0.5, synops_penalty=1).of_twin() == Recipe().of_twin()
    assert Recipe(dropout=0.1).of_twin() != Recipe().of_twin()
    assert Recipe(data="n-mnist", T=2).of_twin() != Recipe(data="n-mnist").of_twin()
