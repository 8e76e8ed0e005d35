"""The report: what stands in it, and that names cannot break it."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from tandem_snn import report
from tandem_snn.cli import main
from tandem_snn.data import Dataset
from tandem_snn.report import write_report

HOSTILE = ("</title><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "$x^{2$", "a & b <b>",
           "'><svg/onload=1>", "${title}", "[bold]", "\\alpha", "-->", "{body}")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    short = ["--model", "8C3s2-FC16", "--epochs", "2", "--T", "4", "--seeds", "2"]
    assert main(["train", *short, "--out", str(folder)]) == 0
    return folder


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def test_the_command_writes_one_file(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text()
    assert len(text) < 1_000_000
    assert main(["report", str(run), "--out", str(run / "other.html")]) == 0
    assert (run / "other.html").read_text() == text  # nothing in it depends on when or where it is made
    page = Page(run / "other.html")
    for name, value in page.attributes:  # nothing is loaded from elsewhere
        if name in ("href", "src", "xlink:href", "data", "action"):
            assert value.startswith("data:image/png;base64,")
    pictures = [value for name, value in page.attributes if name == "alt"]
    assert pictures == [
        "Training loss", "Training error, %", "Test error, % by time step", "Confusion matrix",
        "Spikes of conv1, first test sample", "Spikes of fc1, first test sample", "Firing rates",
        "Spike counts against activations",
    ]  # fmt: skip


def test_its_tables_are_what_the_command_line_prints(run, capsys):
    summary = json.loads((run / "summary.json").read_text())
    shown = "".join(Page(write_report(run)).texts)
    for value in (
        f"{summary['test_accuracy']:.2f} %", f"{summary['ann_test_accuracy']:.2f} %", f"{summary['synops_ratio']:.2f}",
        f"{summary['step_time_ratio']:.2f}", f"{summary['step_time_ms']:.2f} ms", summary["command"],
        f"{summary['energy_pj']['snn'] / summary['energy_pj']['ann']:.2f}", f"{summary['seconds_per_epoch']:.2f} s",
        *(f"{100 * rate:.1f} %" for rate in summary["firing_rates"].values()),
        *(f"{match['cosine']:.3f}" for match in summary["mismatch"].values()),
        *(f"{100 * one['accuracy']:.2f} %" for one in summary["early_exit"]),
    ):  # fmt: skip
        assert value in shown
    capsys.readouterr()
    assert main(["eval", str(run)]) == 0
    rows = re.findall(r"^│ (conv1 .*) │$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 1
    assert rows[0].split()[0] == "conv1"


def test_the_confusion_matrix_is_of_the_test_samples(run):
    from tandem_snn.training import load_checkpoint, read_recipe

    recipe = read_recipe(run / "model.safetensors")
    data = recipe.load()
    net = recipe.build(data)
    load_checkpoint(run / "model.safetensors", net)
    targets, answers = report._answers(net, data)
    first = json.loads((run / "summary.json").read_text())["per_seed"][0]
    assert torch.equal(targets, data.test.targets)
    assert 100 * (targets == answers).double().mean().item() == pytest.approx(first["test_accuracy"], abs=1e-3)


@pytest.mark.parametrize("classes", [10, 60])
def test_names_stay_text(run, tmp_path, monkeypatch, classes):
    shutil.copytree(run, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"command": HOSTILE[1], "commit": HOSTILE[5], "machine": {HOSTILE[0]: HOSTILE[1]}}
    summary["recipe"] |= {"options": {}}
    names = dict(zip(summary["mismatch"], HOSTILE[:2], strict=True))
    for key in "mismatch", "firing_rates":
        summary[key] = {names[layer]: value for layer, value in summary[key].items()}
    (tmp_path / "run/summary.json").write_text(json.dumps(summary))
    harmless = Page(write_report(run))
    load = report.Recipe.load

    def named(*args) -> Dataset:
        return replace(load(*args), class_names=tuple((HOSTILE * 6)[:classes]))

    monkeypatch.setattr(report.Recipe, "load", named)
    found = Page(write_report(tmp_path / "run"))
    assert set(found.tags) <= set(harmless.tags)
    assert {name for name, _ in found.attributes} <= {name for name, _ in harmless.attributes}
    for name in HOSTILE[0], HOSTILE[5]:
        assert any(name in text for text in found.texts)


def test_runs_without_twin_stream_or_accuracy(tmp_path):
    for name, options in (
        ("resu", ["--model", "FC16", "--set", "gate=resu"]),
        ("regression", ["--model", "FC16", "--set", "task=regression"]),
    ):
        folder = tmp_path / name
        short = ["--epochs", "1", "--seeds", "1", "--no-twin", "--T", "3"]
        assert main(["train", *options, *short, "--out", str(folder)]) == 0
        headings = Page(write_report(folder)).texts
        assert any("by time step" in text for text in headings) == (name == "regression")
        assert ("Confusion matrix" in headings) == (name == "resu")


def test_what_is_no_run_is_one_line(tmp_path, refused):
    refused(["report", tmp_path / "nothing"], "no run in")
    for damaged in ('{"T": 8', '{"T": 8, "recipe": {}, "seeds": [0], "per_seed": []}'):
        (tmp_path / "summary.json").write_text(damaged)
        refused(["report", tmp_path], "summary.json is damaged")


@pytest.mark.parametrize("key", ["synops_ratio", "energy_pj", "mismatch", "test_accuracy", "seeds"])
def test_what_a_summary_lacks_is_one_line(run, tmp_path, key, refused):
    summary = json.loads((run / "summary.json").read_text())
    del summary[key]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    missing = "test_mse" if key == "test_accuracy" else key
    refused(["report", tmp_path], f"summary.json is damaged or of another version: '{missing}'\n")


def test_damaged_records_are_one_line(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    for damage in ('{"epoch"', '{"epoch": 3}', "7"):
        (tmp_path / "run/seed-0/snn/metrics.jsonl").write_text(damage + "\n")
        refused(["report", tmp_path / "run"], "/seed-0/snn/metrics.jsonl is damaged: ")
