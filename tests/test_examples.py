"""The examples in the docstrings are what the packages do; python/examples run as they are written."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from extras import needs

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

MODULES = [
    *(m.name for m in pkgutil.walk_packages(te.__path__, "tandem_ext.") if m.name != "tandem_ext._C"),
    *(m.name for m in pkgutil.walk_packages(ts.__path__, "tandem_snn.") if m.name != "tandem_snn.__main__"),
    *("architectures", "data", "measures", "recipe"),  # python/experiments
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    for package in ("nir", "onnx"):
        if package in name:
            needs(package)
    names = {"torch": torch, "nn": torch.nn, "te": te, "tnn": tnn, "ts": ts, "tandem_snn": ts}
    assert doctest.testmod(module, extraglobs=names).failed == 0


PUBLIC = ("tandem_snn", *(f"tandem_snn.{name}" for name in ("ann", "measure", "nn", "tonic")), "tandem_ext.functional")


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_that_is_called_has_one(name):
    """Functions and layers of each module; results and protocols stand in the examples of what gives or takes them."""
    module, finder = importlib.import_module(name), doctest.DocTestFinder()
    for public in set(module.__all__) - {"SpikingLayer"}:
        thing = getattr(module, public)
        called = inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, torch.nn.Module))
        if called and not thing.__module__.startswith("torch"):
            assert any(test.examples for test in finder.find(inspect.unwrap(thing), public)), public


EXAMPLES = Path(__file__).parents[1] / "python" / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    needs("sklearn")
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def percent(text: str, before: str) -> float:
    found = re.search(re.escape(before) + r" ([\d.]+) %", text)
    assert found, text
    return float(found[1])


def test_train_and_deploy(tmp_path: Path) -> None:
    trained = run("train.py", tmp_path, "--epochs", "2")
    assert percent(trained, "SNN") > 95
    assert percent(trained, "ANN") > 95
    deployed = run("deploy.py", tmp_path)
    folder = tmp_path / "runs" / "example"
    assert percent(deployed, "as trained:") == percent(trained, "SNN")
    assert percent(deployed, "8-bit weights:") > 95
    assert float(re.search(r"after ([\d.]+) of 8 steps", deployed)[1]) < 8
    assert ts.load(folder / "snn.tandem").weight_bits == 8
    assert (folder / "images.f32").stat().st_size == 10 * 64 * 4


def test_deploy_before_train_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "deploy.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "no runs/example/snn.pt: python python/examples/train.py writes it\n"


def test_convert(tmp_path: Path) -> None:
    text = run("convert.py", tmp_path, "--epochs", "3", "--T", "8")
    ann = percent(text, "of the ANN:")
    assert ann > 95
    assert percent(text, "converted") > ann - 3
    assert percent(text, "after one tandem epoch") > ann - 2
    assert percent(text, "as an ANN again:") > 95


def test_stream(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    text = run("stream.py", tmp_path, "--epochs", "1", "--picture", "stream.png")
    frames = [tuple(map(int, found)) for found in re.findall(r"(\d+) operations; evaluated anew +(\d+)", text)]
    assert len(frames) == 19
    assert [frames[1][0], frames[-1][0]] == [0, 0]  # the frame before again
    assert all(cost < whole for cost, whole in frames[1:])
    assert (tmp_path / "stream.png").stat().st_size > 5000
