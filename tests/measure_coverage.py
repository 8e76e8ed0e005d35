"""Lines and branches that tests reach, of the Python code and of the C++ code below it; writes build/coverage.

    python tests/measure_coverage.py [--json FILE] [TEST ...]

In a copy of the sources, whose compiled part counts what it runs. Without the names of tests, all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mutation import ROOT, copy_sources

FOLDER = ROOT / "build" / "coverage"
COUNTING = "--coverage -O1 -fprofile-update=atomic"
# Lines reached, lines, branches reached, branches; as coverage.py and as gcovr call them.
PYTHON_KEYS = ("covered_lines", "num_statements", "covered_branches", "num_branches")
CPP_KEYS = ("line_covered", "line_total", "branch_covered", "branch_total")
PYTHON, CPP = FOLDER / "python.json", FOLDER / "cpp.json"


def run(*command: str) -> None:
    env = {**os.environ, "TANDEM_CUDA": "0", "PYTHONPATH": ".:python", "CXXFLAGS": COUNTING, "LDFLAGS": "--coverage"}
    subprocess.run(command, cwd=FOLDER, env=env, check=True)


def percent(counts: Iterable[Sequence[int]]) -> dict[str, float]:
    """Of files, each with its four counts."""
    reached, lines, taken, branches = map(sum, zip(*counts, strict=True))
    return {"lines": round(100 * reached / lines, 1), "branches": round(100 * taken / branches, 1)}


def coverage(*tests: str) -> dict[str, Any]:
    """Percents by folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    copy_sources(FOLDER)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    reports = ["--cov", "--cov-report=term-missing", f"--cov-report=json:{PYTHON}"]
    run(sys.executable, "-m", "pytest", "-q", *reports, *tests)
    run("gcovr", "--json-summary", str(CPP), "--txt", str(FOLDER / "cpp.txt"))
    measured = json.loads(PYTHON.read_text())["files"].items()
    python = {path: [file["summary"][key] for key in PYTHON_KEYS] for path, file in measured}
    cpp = {file["filename"]: [file[key] for key in CPP_KEYS] for file in json.loads(CPP.read_text())["files"]}
    files = python | cpp
    return {
        folder: percent(counts for path, counts in files.items() if path.startswith(folder))
        for folder in ("tandem_ext", "python/tandem_snn", "csrc/ops", "csrc/kernels")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("tests", nargs="*", metavar="TEST")
    arguments = parser.parse_args()
    figures = coverage(*arguments.tests)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
