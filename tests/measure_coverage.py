"""Lines and branches that tests reach, of the Python code and of the C++ code below it; writes build/coverage.

    python tests/measure_coverage.py [--json FILE] [TEST ...]

In a copy of the sources, whose compiled parts count what they run; needs clang and LLVM's tools. The C++ tests run
too. Without the names of Python tests, all of them.
"""

import argparse
import bisect
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mutation import ROOT, copy_sources

FOLDER = ROOT / "build" / "coverage"
COUNTING = "-fprofile-instr-generate -fcoverage-mapping -O1 -w"
# Lines reached, lines, branches reached, branches; as coverage.py calls them.
PYTHON_KEYS = ("covered_lines", "num_statements", "covered_branches", "num_branches")
PYTHON, CPP = FOLDER / "python.json", FOLDER / "cpp.json"
CPP_TESTS = sorted(path.stem for path in ROOT.glob("tests/cpp/*.cpp"))
PROFILES = FOLDER / "profiles"


def run(*command: str, **options: Any) -> None:
    env = {
        **os.environ, "TANDEM_CUDA": "0", "PYTHONPATH": ".:python", "CXX": "clang++", "CXXFLAGS": COUNTING,
        "LDFLAGS": "-fprofile-instr-generate", "LLVM_PROFILE_FILE": f"{PROFILES}/%4m.profraw",
    }  # fmt: skip
    subprocess.run(command, cwd=FOLDER, env=env, check=True, **options)


def percent(counts: Iterable[Sequence[int]]) -> dict[str, float]:
    """Of files, each with its four counts."""
    reached, lines, taken, branches = map(sum, zip(*counts, strict=True))
    return {"lines": round(100 * reached / lines, 1), "branches": round(100 * taken / branches, 1)}


def cpp_counts(file: dict[str, Any]) -> tuple[int, int, int, int]:
    """The four counts of a file of llvm-cov's report. A place in the source counts once, however many functions it is
    compiled into; one that runs and has neither outcome is a constant there, and no branch."""
    outcomes: Counter[tuple[tuple[int, ...], bool]] = Counter()
    for branch in file["branches"]:
        place = tuple(branch[:4])
        outcomes[place, True] += branch[4]
        outcomes[place, False] += branch[5]
    segments = [(line, column, count) for line, column, count, *_ in file["segments"]]
    starts = [segment[:2] for segment in segments]

    def constant(place: tuple[int, ...]) -> bool:
        ran = segments[bisect.bisect(starts, place[:2]) - 1][2] > 0
        return ran and not outcomes[place, True] and not outcomes[place, False]

    taken = [count > 0 for (place, _), count in outcomes.items() if not constant(place)]
    lines = file["summary"]["lines"]
    return lines["covered"], lines["count"], sum(taken), len(taken)


def measure_cpp() -> dict[str, tuple[int, int, int, int]]:
    """The counts of the files of csrc, from the profiles that the tests have left."""
    profile = FOLDER / "all.profdata"
    run("llvm-profdata", "merge", "-o", str(profile), *map(str, PROFILES.glob("*.profraw")))
    programs = [FOLDER / "build" / "cmake-cpu" / "tests" / "cpp" / name for name in CPP_TESTS]
    extension, *_ = FOLDER.glob("tandem_ext/*.so")
    objects = [str(extension), *(f"-object={program}" for program in programs)]
    sources = [f"-instr-profile={profile}", *objects, str(FOLDER / "csrc")]
    with CPP.open("w") as report:
        run("llvm-cov", "export", "-skip-functions", *sources, stdout=report)
    with (FOLDER / "cpp.txt").open("w") as report:
        run("llvm-cov", "show", "-show-branches=count", "-show-instantiations=false", *sources, stdout=report)
    files = json.loads(CPP.read_text())["data"][0]["files"]
    return {str(Path(file["filename"]).relative_to(FOLDER)): cpp_counts(file) for file in files}


def coverage(*tests: str) -> dict[str, Any]:
    """Percents by folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    copy_sources(FOLDER)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    run("cmake", "--preset", "cpu", "-DCMAKE_BUILD_TYPE=Debug")
    run("cmake", "--build", "--preset", "cpu", "--target", *CPP_TESTS)
    run("ctest", "--preset", "cpu", "--tests-regex", "|".join(CPP_TESTS))
    reports = ["--cov", "--cov-report=term-missing", f"--cov-report=json:{PYTHON}"]
    run(sys.executable, "-m", "pytest", "-q", *reports, *tests)
    measured = json.loads(PYTHON.read_text())["files"].items()
    python = {path: [file["summary"][key] for key in PYTHON_KEYS] for path, file in measured}
    files = python | measure_cpp()
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
