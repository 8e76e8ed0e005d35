"""Everything that tries to break the product, one stage after another; the figures go to a JSON file and a page.

    python tests/torture.py [--stage NAME ...] [--minutes 30] [--sample 40] [--seed 0] [--json FILE]
    python tests/torture.py --page docs/reliability.md

A stage that is run again replaces its figures and leaves those of the others.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fuzz import fuzz, fuzz_kernels
from measure_coverage import coverage

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "docs/pages")]
from tables import with_table  # noqa: E402

from tandem_snn.machine import commit, machine, short, versions  # noqa: E402

Figures = dict[str, Any]
OPS = [
    "attack", "compile", "determinism", "errors", "frozen", "functional", "gradients", "habits",
    "reference", "spike_train",
]  # fmt: skip


def run(*command: str) -> tuple[int, str]:
    """(exit status, output) of a command in the repository's root; the output is shown as it comes."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)


def tests(*names: str) -> Figures:
    """Passed and failed tests of these names, the slow ones among them."""
    files = [f"tests/test_{name}.py" for name in names]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        run(sys.executable, "-m", "pytest", "-q", "-m", "", f"--junitxml={report}", *files)
        suite = xml.parse(report).getroot().find("testsuite")
    assert suite is not None
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [f"{c.get('classname')}::{c.get('name')}" for c in suite.iter("testcase") if c.find("failure") is not None]
    bad = count["failures"] + count["errors"]
    return {"passed": count["tests"] - bad - count["skipped"], "skipped": count["skipped"], "failed": failed}


def sanitizers(options: argparse.Namespace) -> Figures:
    figures = {}
    for preset in ("asan", "ubsan", "tsan"):
        for step in (["cmake", "--preset", preset], ["cmake", "--build", "--preset", preset]):
            run(*step)
        status, output = run("ctest", "--preset", preset)
        total = re.search(r"tests (?:passed|failed) out of (\d+)", output)
        programs = int(total[1]) if total else 0
        figures[preset] = {"programs": programs, "clean": status == 0 and programs > 0}
    return figures


def mutants(script: str) -> Callable[[argparse.Namespace], Figures]:
    """A sample of the changes that a script knows; one takes between seconds and two minutes."""

    def stage(options: argparse.Namespace) -> Figures:
        sample = ("--sample", str(options.sample), "--seed", str(options.seed))
        with TemporaryDirectory() as folder:
            path = Path(folder) / "figures.json"
            run(sys.executable, f"tests/{script}.py", *sample, "--json", str(path))
            figures: Figures = json.loads(path.read_text())
        return figures | {"seed": options.seed}

    return stage


# --- the figures of the last run, as a table in docs/reliability.md ---------------------------------------------------


def table(figures: dict[str, Any]) -> str:
    """Markdown."""
    rows = ["| what | figures | time | commit |", "| --- | --- | --- | --- |"]
    for name in filter(figures.get, STAGES):
        stage, (title, _, text) = figures[name], STAGES[name]
        commit = short(stage["commit"], 7)
        # A stage whose parts were run one by one has no time of its own.
        minutes = f"{stage['seconds'] / 60:.0f} min" if "seconds" in stage else ""
        rows.append(f"| {title} | {text(stage['result'])} | {minutes} | {commit}, {stage['date']} |")
    machines = sorted({f"{s['machine'].get('cpu', '?')}, {s['machine'].get('cores')} cores" for s in figures.values()})
    left_out = [title for name, (title, *_) in STAGES.items() if name not in figures]
    not_run = f" Not run: {'; '.join(left_out)}." if left_out else ""
    return "\n".join([*rows, "", f"On {'; '.join(machines)}.{not_run}"])


def _calls(result: dict[str, Any]) -> str:
    seed = result["failed_seed"]
    end = "all raised a named error or equalled the reference" if seed is None else f"**one was wrong, seed {seed}**"
    rounds = f"{result['rounds']} round{'s' * (result['rounds'] != 1)}"
    return f"{result['cases']:,} calls in {rounds}: {end}; {result['minutes']:g} minutes"


def _arguments(result: dict[str, Any]) -> str:
    line = "`{name}`: {executions:,} calls, {end}".format
    targets = (line(**one, end="**a crash**" if one["crashed"] else "no crash") for one in result["targets"])
    return f"{'; '.join(targets)}; {result['minutes']:g} minutes"


def _tests(result: dict[str, Any]) -> str:
    failed = f", **failed: {', '.join(result['failed'])}**" if result["failed"] else ", none failed"
    return f"{result['passed']} tests passed{failed}, {result['skipped']} skipped"


def _sanitizers(result: dict[str, Any]) -> str:
    line = "{}: {} programs, {}".format
    return "; ".join(
        line(name, one["programs"], "clean" if one["clean"] else "**not clean**") for name, one in result.items()
    )


def _mutants(result: dict[str, Any]) -> str:
    share = 100 * result["killed"] / max(result["tried"], 1)
    return f"{result['killed']} of {result['tried']} mutations, drawn at random ({share:.1f} %)"


def _coverage(result: dict[str, Any]) -> str:
    line = "`{}`: {lines} % of lines, {branches} % of branches".format
    return "; ".join(line(folder, **part) for folder, part in result.items())


FAULTS = ["faults", "checkpoints", "distributed", "errors", "frozen", "data", "data_events", "nir", "untrusted",
          "cli"]  # fmt: skip


def coverage_of_ops(_: argparse.Namespace) -> Figures:
    """Of the ops and what is below them, by their tests; `make coverage` runs all tests."""
    found = coverage(*(f"tests/test_{name}.py" for name in OPS))
    return {folder: figures for folder, figures in found.items() if folder != "python/tandem_snn"}


# By name: the title, what runs, and its figures in words.
STAGES: dict[str, tuple[str, Callable[[argparse.Namespace], Figures], Callable[[Figures], str]]] = {
    "calls": ("hostile calls of every op", lambda options: fuzz(options.minutes), _calls),
    "arguments": (
        "hostile arguments of the kernels, ASan and UBSan", lambda options: fuzz_kernels(options.minutes), _arguments,
    ),
    "faults": ("faults: kills, damage, disks, files", lambda _: tests(*FAULTS), _tests),
    "threads": ("threads and processes", lambda _: tests("processes"), _tests),
    "numbers": ("equal numbers, 2,000-step soak test", lambda _: tests("trained", "determinism", "reference"), _tests),
    "sanitizers": ("C++ tests of the kernels under sanitizers", sanitizers, _sanitizers),
    "mutants-python": ("mutations of the Python code that the tests detect", mutants("mutate_python"), _mutants),
    "mutants-cpp": ("mutations of the CPU kernels that the tests detect", mutants("cpp/mutate"), _mutants),
    "mutants-cuda": (
        "mutations of the CUDA kernels that the emulator's tests detect", mutants("cuda_host/mutate"), _mutants,
    ),
    "coverage": ("coverage of the C++ tests and the tests of the ops", coverage_of_ops, _coverage),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be given several times")
    parser.add_argument("--minutes", type=float, default=30, help="of each of the two stages of hostile arguments")
    parser.add_argument("--sample", type=int, default=40, help="changes of the code that each stage of mutation tries")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "reliability.json")
    parser.add_argument("--page", type=Path, help="write the page from the JSON file, run nothing")
    options = parser.parse_args()
    if options.page:
        figures = table(json.loads(options.json.read_text()))
        options.page.write_text(with_table(options.page.read_text(), "reliability", figures))
        return
    source = commit()  # before the figures change the tree
    for name in options.stage or STAGES:
        start = time.monotonic()
        result = STAGES[name][1](options)
        figures = {
            "result": result, "seconds": round(time.monotonic() - start), "commit": source,
            "date": time.strftime("%Y-%m-%d"), "machine": machine(), "versions": versions(),
        }  # fmt: skip
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(known | {name: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
