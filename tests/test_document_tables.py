"""Tables in docs/ are what their results say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from documents import ROOT, read, with_table

TABLES = [
    ("convert.md", "conversion", "conversion"),
    ("nir.md", "nir", "nir_consumers"),
    ("onnx.md", "onnx", "onnx_runtime"),
]


@pytest.mark.parametrize(("page", "name", "script"), TABLES)
def test_tables_follow_from_results(page: str, name: str, script: str) -> None:
    if name != "conversion":
        pytest.importorskip(name, reason=f"{name} is not installed")
    text = (ROOT / "docs" / page).read_text()
    assert with_table(text, name, importlib.import_module(script).table(read(name))) == text
