"""Examples in docstrings, python/examples and notebooks run as they are written; notebooks show what they compute."""

import doctest
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

ROOT = Path(__file__).parents[2]
PUBLIC = ("tandem_snn", *(f"tandem_snn.{name}" for name in ("ann", "measure", "nn", "tonic")), "tandem_ext.functional")
EXAMPLES = ROOT / "python" / "examples"
GPU = ROOT / "examples/notebooks/gpu_check.ipynb"  # has never run on one, and shows nothing
EVENTS = ROOT / "examples/notebooks/events.ipynb"
PAGE = ROOT / "docs/tutorial-events.md"
# tonic takes its data set for missing where it is not whole.
PART = "import tonic\ntonic.datasets.NMNIST._check_exists = lambda self: True"


@pytest.mark.parametrize("name", [
    *(m.name for m in pkgutil.walk_packages(te.__path__, "tandem_ext.") if m.name != "tandem_ext._C"),
    *(m.name for m in pkgutil.walk_packages(ts.__path__, "tandem_snn.") if m.name != "tandem_snn.__main__"),
    *("architectures", "data", "measures", "recipe"),  # python/experiments
])  # fmt: skip
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    for package in ("nir", "onnx"):
        if package in name:
            pytest.importorskip(package)
    names = {"torch": torch, "nn": torch.nn, "te": te, "tnn": tnn, "ts": ts, "tandem_snn": ts}
    assert doctest.testmod(module, extraglobs=names).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_that_is_called_has_one(name):
    """Functions and layers of each module; results and protocols stand in the examples of what gives or takes them."""
    module, finder = importlib.import_module(name), doctest.DocTestFinder()
    for public in set(module.__all__) - {"SpikingLayer"}:
        thing = getattr(module, public)
        called = inspect.isfunction(thing) or (inspect.isclass(thing) and issubclass(thing, torch.nn.Module))
        if called and not thing.__module__.startswith("torch"):
            assert any(test.examples for test in finder.find(inspect.unwrap(thing), public)), public


def run(name, folder, *arguments, error="", by=()):
    pytest.importorskip("sklearn")
    command = [sys.executable, *by, EXAMPLES / name, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert bool(done.returncode) == bool(error), done.stderr
    assert error in ("", done.stderr)
    return done.stdout


def percent(text, before):
    found = re.search(re.escape(before) + r" ([\d.]+) %", text)
    assert found, text
    return float(found[1])


def test_train_and_deploy(tmp_path):
    run("deploy.py", tmp_path, error="no runs/example/snn.pt: python python/examples/train.py writes it\n")
    trained = run("train.py", tmp_path, "--epochs", "6")  # for early answers
    assert percent(trained, "SNN") > 95
    assert percent(trained, "ANN") > 95
    deployed = run("deploy.py", tmp_path)
    folder = tmp_path / "runs" / "example"
    assert percent(deployed, "as trained:") == percent(trained, "SNN")
    assert percent(deployed, "8-bit weights:") > 95
    assert float(re.search(r"after ([\d.]+) of 8 steps", deployed)[1]) < 8
    assert ts.load(folder / "snn.tandem").weight_bits == 8
    assert (folder / "images.f32").stat().st_size == 10 * 64 * 4


def test_convert(tmp_path):
    text = run("convert.py", tmp_path, "--epochs", "3", "--T", "8")
    ann = percent(text, "of the ANN:")
    assert ann > 95
    assert percent(text, "converted") > ann - 3
    assert percent(text, "after one tandem epoch") > ann - 2
    assert percent(text, "as an ANN again:") > 95


def test_resnet(tmp_path):
    """On images of one's own, whose classes are brightness and colour."""
    for part, number in ("train", 40), ("test", 10):
        for label, level in enumerate([(40, 40, 200), (200, 40, 40), (200, 200, 200)]):
            folder = tmp_path / part / str(label)
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = torch.randint(-40, 41, (3, 16, 16)) + torch.tensor(level).view(3, 1, 1)
                write_png(pixels.clamp(0, 255).byte(), str(folder / f"{i}.png"))
    out = tmp_path / "resnet.json"
    options = "--blocks 1 1 1 1 --epochs 8 --samples 90 --T 4 --out"
    text = run("resnet.py", tmp_path, "--images", str(tmp_path), *options.split(), str(out))
    result = json.loads(out.read_text())
    assert percent(text, "ANN:") == pytest.approx(result["ann"], abs=0.01)
    assert set(result["T"]) == {"4"}
    assert result["T"]["4"]["distilled"] > 60
    assert (result["samples"], "ann_further_epoch" in result) == (90, True)


@pytest.mark.parametrize("name", ["autocast", "captured_step"])
def test_what_runs_on_a_gpu_runs_here(name, tmp_path):
    assert percent(run(f"{name}.py", tmp_path, "--epochs", "4"), "test accuracy") > 90


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes(name, tmp_path):
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    said = run(f"{name}.py", tmp_path, "--epochs", "2", by=torchrun)
    assert percent(said, "2 processes on cpu: test accuracy" if not torch.cuda.is_available() else "accuracy") > 95


def test_stream(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    text = run("stream.py", tmp_path, "--epochs", "1", "--picture", "stream.png")
    frames = [tuple(map(int, found)) for found in re.findall(r"(\d+) operations; evaluated anew +(\d+)", text)]
    assert len(frames) == 19
    assert [frames[1][0], frames[-1][0]] == [0, 0]  # the frame before again
    assert all(cost < whole for cost, whole in frames[1:])
    assert (tmp_path / "stream.png").stat().st_size > 5000


def read(path):
    """A valid notebook, and its cells of code."""
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.clients
@pytest.mark.parametrize("path", sorted({*GPU.parent.glob("*.ipynb")} - {GPU}), ids=lambda path: path.stem)
def test_they_are_as_they_were_run(path):
    """All cells ran in order, none failed, pictures are there, and nothing tells of the machine."""
    _, cells = read(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = path.read_text()
    assert not re.search(r"/(home|root|tmp|work)/", text)
    assert path.stat().st_size < 300_000


@pytest.mark.clients
def test_the_page_of_events_has_the_notebooks_code():
    fences = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [textwrap.dedent(block).strip() for block in fences] == [cell.source.strip() for cell in read(EVENTS)[1][1:]]


def execute(path, folder, *, before="", change=("", ""), after):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook, new = read(path)[0], pytest.importorskip("nbformat").v4.new_code_cell
    for cell in notebook.cells:
        cell.source = cell.source.replace(*change)
    notebook.cells = [new(before), *notebook.cells, new(after)]
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.clients
@pytest.mark.parametrize(("name", "after"), [
    ("ten-minutes", "assert accuracy > 0.95"),
    ("moving-digit", "assert accuracy > 0.88 and costs[1] == 0 and all(costs[3:-2] < torch.tensor(whole[3:-2]))"),
    ("convert-and-deploy", "assert found[8][1] > found['ANN'] - 1.5 and right > 0.94"),
])  # fmt: skip
def test_they_run(name, after, tmp_path):
    execute(ROOT / f"examples/notebooks/{name}.ipynb", tmp_path, after=after)


@pytest.mark.clients
def test_events_runs(tmp_path):
    for package in "lightning", "tonic":
        pytest.importorskip(package)
    recordings = Path(os.environ.get("TANDEM_DATA", "")).resolve() / "NMNIST"
    if not (recordings / "Train").is_dir():
        pytest.skip("TANDEM_DATA holds no NMNIST")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/NMNIST").symlink_to(recordings)
    execute(EVENTS, tmp_path, before=PART, after="assert right.double().mean() >= 0.95")


@pytest.mark.clients
def test_gpu_check_is_rehearsed(tmp_path):
    assert not any(cell.get("outputs") for cell in read(GPU)[0].cells)
    options = f'OPTIONS = "--dry-run --only verdict --out {tmp_path}"'
    execute(GPU, GPU.parent, change=('OPTIONS = ""', options), after="assert check.returncode == 0 and not missing")
    assert len(list(tmp_path.glob("gpu-rehearsal-*.zip"))) == 1
