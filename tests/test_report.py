"""The report: what stands in it, that names cannot break it, and that a browser shows it."""

import copy
import json
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tandem_snn.cli import main
from tandem_snn.plots import percent_axis
from tandem_snn.report import figures, gather, page

HOSTILE = ("</title><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "$x^{2$", "a & b <b>",
           "'><svg/onload=1>", "${title}", "漢字 \N{SMILING FACE WITH OPEN MOUTH}", "\\alpha", "-->", "7")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    short = ["--model", "8C3s2-FC16", "--epochs", "2", "--T", "4", "--seeds", "2"]
    assert main(["train", *short, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def contents(run):
    return gather(run)


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

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
    summary = json.loads((run / "summary.json").read_text())
    for value in (f"{summary['test_accuracy']:.2f} %", f"{summary['synops_ratio']:.2f} ×", summary["command"]):
        assert value in text
    for title in ("Learning curves", "Accuracy against time and operations", "Confusion matrix", "Firing rates",
                  "Spikes of one sample", "Spike counts against", "Memory and time beside the twin"):  # fmt: skip
        assert f"<h2>{title}" in text
    assert main(["report", str(run), "--out", str(run / "other.html")]) == 0
    assert (run / "other.html").read_text() == text  # nothing in it depends on when or where it is made


def test_nothing_is_loaded_from_elsewhere(contents):
    for name, value in Page(page(contents)).attributes:
        if name in ("href", "src", "xlink:href", "data", "action"):
            assert value.startswith(("#", "data:"))
    assert "@import" not in page(contents)


def test_what_is_measured(run, contents):
    summary = json.loads((run / "summary.json").read_text())
    confusion = contents.confusion
    assert int(confusion.sum()) == 450
    right = confusion.diagonal().sum().item() / 450
    assert 100 * right == pytest.approx(summary["per_seed"][0]["test_accuracy"], abs=1e-3)
    assert contents.over_time[-1] == pytest.approx(summary["test_accuracy"])
    assert len(contents.over_time) == len(contents.spent) == 4
    assert contents.twin == summary["ann_test_accuracy"]
    assert contents.spent[-1] == pytest.approx(contents.operations[0])
    assert [len(h) for h in contents.histories["ANN"]] == [2, 2]
    assert {name: rates.numel() for name, rates in contents.rates.items()} == {"conv1": 128, "fc1": 16}
    assert {name: (x.T, x.shape.numel()) for name, x in contents.rasters.items()} == {"conv1": (4, 128), "fc1": (4, 16)}


def test_every_layer_has_its_figures(contents):
    labels = [value for name, value in Page(page(contents)).attributes if name == "aria-label"]
    for layer in contents.rates:
        for figure in (f"Spikes of {layer}", f"Firing rates of {layer}", f"Counts of {layer} against its activations"):
            assert figure in labels
    assert len(set(labels)) == len(labels)


def test_axes_say_what_they_are(contents):
    """Steps count from 1, as everywhere; an axis that is not linear says so."""
    text = page(contents)
    curves = re.findall(
        r'<svg role="img" aria-label="[^"]*(?:by epoch|by time step|by operations)".*?</svg>', text, re.DOTALL
    )
    assert len(curves) == 4
    assert all("logarithmic axis" in svg or "axis widened towards 100" in svg for svg in curves)
    raster = re.search(r'<svg role="img" aria-label="Spikes of conv1".*?</svg>', text, re.DOTALL)[0]
    assert re.findall(r"<text[^>]*>(\d+)</text>", raster) == ["1", "2", "3", "4"]


def test_the_axis_of_accuracies(contents):
    """Two networks near 100 % are told apart on it; its numbers are in order and do not touch."""
    plt = pytest.importorskip("matplotlib.pyplot")
    for values in ([10, 60, 99.1, 99.4], [100, 100], [0, 0], [61, 63], [9, 91]):
        _, axes = plt.subplots(figsize=figures.WIDE)
        axes.plot(values)
        percent_axis(axes)
        places = [axes.transData.transform((0, value))[1] for value in sorted(axes.get_yticks())]
        assert all(b - a > 12 for a, b in pairwise(places))
        if values[-1] == 99.4:
            assert (
                axes.transData.transform((0, 99.4))[1] - axes.transData.transform((0, 99.1))[1] > 6
            )  # a plain axis: 0.6
        plt.close()


@pytest.mark.parametrize("classes", [10, 60])
def test_names_stay_text(contents, classes):
    hostile = copy.copy(contents)
    hostile.class_names = tuple((HOSTILE * 6)[:classes])
    hostile.confusion = torch.ones(classes, classes, dtype=torch.int64)
    hostile.name = HOSTILE[0]
    hostile.summary = copy.deepcopy(contents.summary)
    hostile.summary |= {"command": HOSTILE[1], "commit": HOSTILE[5], "machine": {HOSTILE[0]: HOSTILE[1]}}
    hostile.summary["recipe"] |= {"data": HOSTILE[0], "model": HOSTILE[4], "options": {HOSTILE[1]: HOSTILE[0]}}
    found, harmless = Page(page(hostile)), Page(page(contents))
    assert set(found.tags) <= set(harmless.tags) | {"td"}
    assert {name for name, _ in found.attributes} <= {name for name, _ in harmless.attributes}
    for name in HOSTILE:
        assert any(name in text for text in found.texts)


def test_runs_without_twin_stream_or_accuracy(tmp_path):
    for name, options, reason in (
        ("resu", ["--model", "FC16", "--set", "gate=resu"], "cannot stream"),
        ("regression", ["--model", "FC16", "--set", "task=regression"], "Error against time"),
    ):
        folder = tmp_path / name
        short = ["--epochs", "1", "--seeds", "1", "--no-twin", "--T", "3"]
        assert main(["train", *options, *short, "--out", str(folder)]) == 0
        text = page(gather(folder))
        assert reason in text
        assert "compared with the twin" not in text
        assert ("Confusion matrix" in text) == (name == "resu")


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
    refused(["report", tmp_path], f"summary.json is damaged or of another version: '{key}'\n")


def test_damaged_records_are_one_line(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    for damage in ('{"epoch"', '{"epoch": 3}', "7"):
        (tmp_path / "run/seed-0/snn/metrics.jsonl").write_text(damage + "\n")
        refused(["report", tmp_path / "run"], "/seed-0/snn/metrics.jsonl is damaged: ")


# --- in a browser -----------------------------------------------------------------------------------------------------


def browse(file: Path, picture: Path, *options):
    """Has Chromium draw the page; what it wrote on its console."""
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not browser:
        pytest.skip("no Chromium or Chrome is installed")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               f"--user-data-dir={picture.parent / 'profile'}", f"--screenshot={picture}", *options,
               file.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return re.findall(r":CONSOLE[:(].*", done.stderr)


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_browser_shows_it(run, tmp_path, colours):
    file = tmp_path / "report.html"
    assert main(["report", str(run), "--out", str(file)]) == 0
    dark = ["--blink-settings=preferredColorScheme=0"] if colours == "dark" else []
    assert browse(file, tmp_path / "shot.png", "--window-size=1100,2600", *dark) == []
    content = (tmp_path / "shot.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1100, 2600)
    matplotlib = pytest.importorskip("matplotlib.image")
    pixels = torch.from_numpy(matplotlib.imread(tmp_path / "shot.png"))[..., :3]
    assert (pixels[5, 5].mean() < 0.2) == (colours == "dark")
    assert len(pixels[::2, ::2].flatten(0, 1).unique(dim=0)) > 100  # curves, text and the confusion matrix
    assert (pixels[-600:] != pixels[5, 5]).any()  # down to the end
