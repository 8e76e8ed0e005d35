"""What benchmarks share: where their results stand, and the tables in docs/ that follow from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tandem_snn.machine import commit, machine, versions

ROOT = Path(__file__).parents[2]


def origin(script: str) -> dict[str, Any]:
    """How a result comes about."""
    command = " ".join(["python", str(Path(script).resolve().relative_to(ROOT)), *sys.argv[1:]])
    return {"command": command, "commit": commit(), "machine": machine(), "versions": versions()}


def results(name: str) -> Path:
    return ROOT / "docs" / "results" / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    return json.loads(results(name).read_text())  # type: ignore[no-any-return]


def with_table(page: str, name: str, table: str) -> str:
    """The page with another text between the comments that begin and end the table ``name``."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{table.strip()}\n{end}{after}"


def write_table(document: str, name: str, table: str) -> None:
    path = ROOT / "docs" / document
    path.write_text(with_table(path.read_text(), name, table))
