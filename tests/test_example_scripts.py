"""python/examples: train, convert, deploy run as they are written and reach what they claim."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tandem_snn as ts

EXAMPLES = Path(__file__).parents[1] / "python" / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def percent(text: str, before: str) -> float:
    found = re.search(re.escape(before) + r" ([\d.]+) %", text)
    assert found, text
    return float(found[1])


def test_train_and_deploy(tmp_path: Path) -> None:
    trained = run("train.py", tmp_path, "--epochs", "3")
    assert percent(trained, "SNN") > 95
    assert percent(trained, "ANN") > 95
    deployed = run("deploy.py", tmp_path)
    folder = tmp_path / "runs" / "example"
    assert percent(deployed, "as trained:") == percent(trained, "SNN")
    assert percent(deployed, "8-bit weights:") > 95
    assert float(re.search(r"after ([\d.]+) of 8 steps", deployed)[1]) < 8
    assert ts.load_frozen(folder / "snn.tandem").weight_bits == 8
    assert (folder / "images.f32").stat().st_size == 10 * 64 * 4


def test_convert(tmp_path: Path) -> None:
    text = run("convert.py", tmp_path, "--epochs", "3", "--T", "8")
    ann = percent(text, "of the ANN:")
    assert ann > 95
    assert percent(text, "converted") > ann - 3
    assert percent(text, "after one tandem epoch") > ann - 2
    assert percent(text, "as an ANN again:") > 95
