"""What people try without reading: help(), --version, completion, a script before its time, info."""

import inspect
import re
import runpy
import sys
from pathlib import Path

import pytest

import tandem_ext as te
import tandem_snn.nn as tnn
from build_tools.compile import write_commit
from tandem_snn import machine
from tandem_snn.cli import main
from tandem_snn.nn.options import NeuronOptions

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["Linear", "Conv1d", "Conv2d", "LazyLinear", "LazyConv1d", "LazyConv2d"])
def test_help_shows_every_argument(name):
    layer = getattr(tnn, name)
    shown = inspect.signature(layer).parameters
    assert set(NeuronOptions.__annotations__) <= set(shown)
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
    assert shown["threshold"].default == 1.0
    with pytest.raises(TypeError, match=r"tresh: .* its neurons have norm"):
        layer(*([3] * sum(p.default is p.empty for p in shown.values())), tresh=1)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tandem-snn {te.__version__}\n"


@pytest.mark.parametrize("command", [[], ["train"], ["sweep"], ["eval"], ["report"], ["export"], ["bench"], ["info"]])
def test_flags_show_no_value(command, capsys):
    assert main([*command, "--help"]) == 0
    assert "bool" not in capsys.readouterr().out


def test_deploy_before_train_is_one_line(tmp_path, monkeypatch):
    script = ROOT / "python/examples/deploy.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit, match=r"^no runs/example/snn.pt: python python/examples/train.py writes it$"):
        runpy.run_path(str(script), run_name="__main__")


def test_an_installed_package_knows_its_commit(tmp_path, monkeypatch):
    """The build writes it beside the compiled part; a tree that the package merely lies in is not its own."""
    write_commit(tmp_path)
    written = (tmp_path / "commit.txt").read_text().strip() if (tmp_path / "commit.txt").exists() else None
    if written is None:
        pytest.skip("the sources are in no git tree")
    assert re.fullmatch(r"[0-9a-f]{40}\+?", written)
    assert machine.commit() == written  # here, of the tree
    (tmp_path / "commit.txt").write_text("0123+\n")
    monkeypatch.setattr(te, "__file__", str(tmp_path / "__init__.py"))
    assert machine.commit() == "0123+"
    (tmp_path / "commit.txt").unlink()
    monkeypatch.setattr(machine, "__file__", str(ROOT / "tests" / "untracked.py"))
    assert machine.commit() is None
