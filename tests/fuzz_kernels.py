"""Runs libFuzzer on the C++ kernels, under AddressSanitizer and UndefinedBehaviorSanitizer; needs clang.

python tests/fuzz_kernels.py [--minutes 60] [--json FILE]

What it has found worth keeping stays in build/cmake-fuzz/corpus for the next time; a case that fails is left in the
repository's root as crash-*, and the program that found it runs it again when given its name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fuzz import Figures, command_line

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cmake-fuzz"
TARGETS = ["fuzz_if_scan", "fuzz_layer", "fuzz_network", "fuzz_normalised_layer", "fuzz_planes"]
LEVELS = ["default", "v3", "v4"]
LACKED = 77  # exit status of a program that asks for a level that the processor lacks


def fuzz_target(name: str, level: str, minutes: float) -> tuple[int, bool]:
    """(cases tried, whether one was wrong)."""
    corpus = BUILD / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    command = [
        str(BUILD / "tests" / "cpp" / name), str(corpus), f"-max_total_time={max(1, round(60 * minutes))}",
        "-max_len=128", "-len_control=0", "-print_final_stats=1", "-verbosity=0", "-timeout=60",
    ]  # fmt: skip
    env = {**os.environ, "TANDEM_CPU_CAPABILITY": level}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    tried = re.search(r"number_of_executed_units: (\d+)", result.stderr)
    wrong = result.returncode not in (0, LACKED)
    print(f"{name}, {level}: {tried[1] if tried else 0} cases", flush=True)
    if wrong:
        print(result.stdout, result.stderr, sep="\n", flush=True)
    return int(tried[1]) if tried else 0, wrong


def fuzz_kernels(minutes: float) -> Figures:
    """Figures of every target, which share the time."""
    if shutil.which("clang++") is None:
        raise SystemExit("libFuzzer comes with clang, and there is no clang++")
    for step in (["cmake", "--preset", "fuzz"], ["cmake", "--build", "--preset", "fuzz"]):
        subprocess.run(step, cwd=ROOT, check=True)
    targets = []
    for name in TARGETS:
        runs = [fuzz_target(name, level, minutes / len(TARGETS) / len(LEVELS)) for level in LEVELS]
        tried, wrong = zip(*runs, strict=True)
        targets.append({"name": name, "executions": sum(tried), "crashed": any(wrong)})
    return {"minutes": minutes, "targets": targets}


if __name__ == "__main__":
    sys.exit(command_line(__doc__, fuzz_kernels, lambda figures: any(t["crashed"] for t in figures["targets"])))
