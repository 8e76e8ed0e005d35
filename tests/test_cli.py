"""The command line: the whole job, and what it answers to mistakes."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import tandem_ext as te
import tandem_snn
from tandem_snn.cli import main
from tandem_snn.cli.app import app
from tandem_snn.training import Recipe, list_recipes, load_checkpoint, read_recipe

SHORT = ["--model", "mlp", "--epochs", "2", "--width", "0.25", "--seeds", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", *SHORT, "--T", "4", "--out", str(folder)]) == 0
    return folder


def test_train_writes_a_run(run):
    assert sorted(file.name for file in run.iterdir()) == [
        "model.safetensors", "seed-0", "seed-1", "summary.json", "twin.safetensors",
    ]  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["T"] == 4
    assert summary["seeds"] == [0, 1]
    assert summary["recipe"]["model"] == "mlp"
    for key in ("test_accuracy", "ann_test_accuracy", "synops_ratio", "step_time_ratio", "seconds_per_epoch"):
        assert summary[key] > 0
    assert set(summary) >= {"command", "commit", "started", "seconds", "machine", "versions", "peak_memory"}
    mean = sum(seed["test_accuracy"] for seed in summary["per_seed"]) / 2
    assert summary["test_accuracy"] == pytest.approx(mean, abs=1e-3)


def test_eval_measures_a_run_again(run, capsys):
    assert main(["eval", str(run)]) == 0
    first = json.loads((run / "summary.json").read_text())["per_seed"][0]
    shown = re.findall(r"(\d+\.\d\d) %", capsys.readouterr().out)
    assert shown[:2] == [f"{first['test_accuracy']:.2f}", f"{first['ann_test_accuracy']:.2f}"]


def test_help_and_info(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err == ""
    result = CliRunner().invoke(app, ["train", "--help"])
    assert result.exit_code == 0
    assert "--seeds" in result.output
    result = CliRunner().invoke(app, ["train", "--list"])
    assert {line.split()[0] for line in result.output.splitlines() if line.strip()} >= {*list_recipes()}


def test_every_key_of_a_recipe_is_an_option(tmp_path):
    options = {p.name: p for p in get_command(app).commands["train"].params}
    for key in fields(Recipe):
        assert key.name == "options" or options[key.name].help == key.metadata["help"]
    given = "--model FC8 --epochs 3 --no-twin --synops-penalty 0.2 --no-validation --augment flip --augment shift:1"
    given += " --schedule multistep --milestones 1,2"
    assert main(["train", "--set", "lr=1", "--lr", "1e-3", "--seeds", "1", *given.split(), "--out", str(tmp_path)]) == 0
    expected = Recipe(
        model="FC8", epochs=3, synops_penalty=0.2, validation=False, augment=("flip", "shift:1"), batch_size=64,
        lr=1e-3, schedule="multistep", milestones=(1, 2),
    )  # fmt: skip
    assert read_recipe(tmp_path / "model.safetensors") == expected


def test_info_has_what_a_bug_report_needs(monkeypatch, capsys):
    monkeypatch.setenv("TANDEM_DATA", "/some/folder")
    assert main(["info"]) == 0
    rows = dict(re.findall(r"^│ +(\S.*?) +│ +(\S.*?) +│$", capsys.readouterr().out, re.MULTILINE))
    assert {*te.build_info()} < {*rows}
    assert rows["folder"] == str(Path(te.__file__).parent)
    assert rows["torch"].startswith(torch.__version__)
    assert rows["TANDEM_DATA"] == "/some/folder"
    assert {"commit", "cpu", "cores", "memory", "system", "Python", "GPU", "numpy"} <= {*rows}
    extra = re.search(r"^all = \[(.*?)\]", (Path(__file__).parents[1] / "pyproject.toml").read_text(), re.M | re.S)
    assert {*re.findall(r'"([\w-]+)', extra[1])} <= {*rows}


MISTAKES = {
    "command": (["trian"], "train"),
    "option": (["train", "--epoch", "3"], "--epochs"),
    "model": (["train", "--model", "cnm"], "did you mean 'cnn'"),
    "T not a number": (["train", "--T", "eight"], "--T"),
    "threads": (["train", "--threads", "-1"], "threads"),
    "device": (["train", "--device", "abacus"], "device 'abacus'"),
    "files": (["train", "--data", "mnist", "--data-dir", "/nowhere"], "no whole MNIST in /nowhere (Dataset not found"),
    "recipe": (["train", "digit"], "did you mean 'digits'"),
    "resume and restart": (["train", "--resume", "--restart"], "--resume cannot be combined with"),
    "checkpoint steps": (["train", "--checkpoint-steps", "0"], "'--checkpoint-steps'"),
    "format": (["export", "/nowhere", "--to", "spice"], "'frozen', 'onnx', 'nir'"),
    "exported run": (["export", "/nowhere", "--to", "onnx"], "no checkpoint /nowhere/model.safetensors"),
    "start": (["train", "--set", "init_from=twins"], "init_from: expected 'twin' or a checkpoint's .safetensors file"),
    "start from nothing": (["train", "--set", "init_from=x.safetensors"], "no checkpoint x.safetensors"),
    "multistep": (["train", "--schedule", "multistep"], "milestones: schedule multistep needs the epochs at which"),
    "removed key": (["train", "--set", "progressive=true"], "progressive: progressive training, layer by layer, is no"),
    "workers": (["train", "--workers", "-1"], "Invalid value for '--workers'"),
    "run": (["eval", "/nowhere"], "no checkpoint /nowhere/model.safetensors"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing_behind(name, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not refused(*MISTAKES[name])  # no progress bar either
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not (tmp_path / "runs/digits").exists()


def test_damaged_files_are_one_line(run, tmp_path, refused):
    content = (run / "model.safetensors").read_bytes()
    for cut in (0, 100, len(content) - 1):
        (tmp_path / "model.safetensors").write_bytes(content[:cut])
        start = f"init_from={tmp_path}/model.safetensors"
        for arguments in ["eval", tmp_path], ["train", "--set", start, "--out", tmp_path / "x"]:
            refused(arguments, "model.safetensors is damaged")


@pytest.mark.parametrize(("arguments", "words"), [
    ([*SHORT, "--lr", "1e38", "--out", "run"], "smaller learning rate"),
    (["--batch-size", "1", "--no-twin", "--out", "run"], "batch_size: x: batch norm in training needs more"),
    (["--out", "file/digits"], "--out"),
    ([*SHORT, "--out", "downloads"], "--overwrite"),
])  # fmt: skip
def test_what_goes_wrong_in_training_is_one_line(arguments, words, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/model.safetensors").write_bytes(b"of another program")
    for _ in range(2):  # without a checkpoint there is nothing to resume, so it may begin again
        refused(["train", *arguments], words)
    assert (tmp_path / "downloads/model.safetensors").read_bytes() == b"of another program"


def test_a_run_that_stopped_is_not_thrown_away(run, monkeypatch, refused):
    before = (run / "summary.json").read_bytes()
    arguments = ["train", *SHORT, "--T", "4", "--out", str(run)]
    refused(arguments, "contains a finished run: choose another folder with --out")
    refused([*arguments, "--restart"], "--overwrite")  # --restart is for unfinished runs
    (run / "notes.txt").write_text("mine")
    (run / "report.html").write_text("of the old run")
    (run / "model.onnx").write_text("of the old run")
    monkeypatch.setattr("tandem_snn.training.processes.Interruption.requested", lambda self: True)
    refused([*arguments, "--overwrite"], "--resume", status=143)
    monkeypatch.undo()
    assert sorted(path.name for path in run.iterdir()) == ["notes.txt", "seed-0"]  # nothing of the old run
    refused(arguments, "--resume")
    refused([*arguments, "--resume", "--lr", "0.1"], "another recipe: lr is")
    assert main([*arguments, "--resume"]) == 0
    first, again = (json.loads(text) for text in (before, (run / "summary.json").read_text()))
    assert first["per_seed"] == again["per_seed"]
    assert main([*arguments, "--no-twin", "--overwrite"]) == 0
    assert not (run / "twin.safetensors").exists()
    assert main(["eval", str(run)]) == 0


def test_a_finished_run_is_trained_on(tmp_path, capsys, refused):
    arguments = ["train", "--model", "FC16", "--seeds", "1", "--epochs"]
    assert main([*arguments, "2", "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "run/report.html").write_text("of two epochs")
    assert main([*arguments, "3", "--out", str(tmp_path / "run"), "--resume"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "SNN, seed 0: trained for 2 epochs, continues to 3; the learning rate of schedule 'one-cycle' is now 0.0006"
        in shown
    )
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["recipe"]["epochs"] == 3
    assert (
        summary["per_seed"][0]["trained_on"] == summary["per_seed"][0]["ann_trained_on"] == [{"epochs": 2, "steps": 42}]
    )
    assert not (tmp_path / "run/report.html").exists()
    resume = ["--out", tmp_path / "run", "--resume"]
    refused([*arguments, "2", *resume], "expected more than 3, for which")
    refused([*arguments, "3", *resume, "--seed", "1"], "also contains seed-0, which the recipe's seeds do not include")
    # Elsewhere, with other threads and workers: none of them is part of the recipe.
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main([*arguments, "4", "--out", str(tmp_path / "moved"), "--resume", "--threads", "1"]) == 0
    refused([*arguments, "3", "--out", tmp_path / "moved", "--resume", "--lr", "1"], "another recipe: lr")


def test_as_a_program():
    result = subprocess.run([sys.executable, "-m", "tandem_snn", "eval"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "tandem-snn: Missing argument 'run'.\n")


@pytest.mark.slow
def test_the_main_job(tmp_path):
    assert main(["train", "--out", str(tmp_path)]) == 0
    summary = json.loads(Path(tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] >= 97.5
    assert summary["ann_test_accuracy"] - summary["test_accuracy"] <= 1
    assert summary["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["frozen", "onnx", "nir"])
def test_export(kind, run, tmp_path, capsys, refused):
    if kind != "frozen":
        pytest.importorskip(kind, reason=f"the package {kind} is not installed")
    path = tmp_path / "net"
    assert main(["export", str(run), "--to", kind, "--weight-bits", "4", "--out", str(path)]) == 0
    assert f"{path}: {path.stat().st_size:,} bytes" in capsys.readouterr().out.replace("\n", "")
    net = load_checkpoint_of(run)
    x = torch.rand(5, 1, 8, 8)
    expected = tandem_snn.freeze(net, weight_bits=4)(x)
    if kind == "frozen":
        assert torch.equal(tandem_snn.load_frozen(path)(x), expected)
    elif kind == "nir":
        torch.testing.assert_close(tandem_snn.from_nir(path)(x), expected)
    else:
        import onnx

        assert "INT4" in onnx.printer.to_text(onnx.load(path)).upper()
    refused(["export", run, "--to", kind, "--weight-bits", "9", "--out", path], "weight_bits")


def load_checkpoint_of(run):
    recipe = read_recipe(run / "model.safetensors")
    net = recipe.build(recipe.load())
    load_checkpoint(run / "model.safetensors", net)
    return net
