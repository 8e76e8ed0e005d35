"""Attacks until the time is over or one of them is wrong: hostile calls of every op with other examples each time, then
the C++ kernels by libFuzzer, under AddressSanitizer and UndefinedBehaviorSanitizer, which needs clang.

python tests/fuzz.py [--minutes 60]     # of each

What libFuzzer has found worth keeping stays in build/cmake-fuzz/corpus for the next time; a case that fails is left in
the repository's root as crash-*, and the program that found it runs it again when given its name.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
HERE = Path(__file__).parent
ROOT = HERE.parent
TESTS = ["test_attack.py", "test_functional.py"]
BUILD = ROOT / "build" / "cmake-fuzz"
TARGETS = ["fuzz_if_scan", "fuzz_layer", "fuzz_network", "fuzz_normalised_layer", "fuzz_planes"]
LEVELS = ["default", "v3", "v4"]
LACKED = 77  # exit status of a program that asks for a level that the processor lacks


def round_of(seed: int) -> tuple[int, str | None]:
    """(cases tried, None) or (cases tried, what went wrong); the examples follow from the seed."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=random",
        f"--hypothesis-seed={seed}", "--hypothesis-show-statistics", *(str(HERE / test) for test in TESTS),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    tried = sum(int(n) for n in re.findall(r"(\d+) (?:passing|failing)", result.stdout))
    return tried, None if result.returncode == 0 else f"{result.stdout}\n{result.stderr}\nexit {result.returncode}"


def fuzz(minutes: float) -> Figures:
    """Figures of as many rounds as end within the time, at least one."""
    end, rounds, cases, failure, seed = time.monotonic() + 60 * minutes, 0, 0, None, 0
    while failure is None and (rounds == 0 or time.monotonic() < end):
        seed = random.SystemRandom().randrange(2**32)
        tried, failure = round_of(seed)
        rounds, cases = rounds + 1, cases + tried
        print(f"round {rounds}, seed {seed}: {cases} cases so far", flush=True)
    if failure:
        print(failure)
    return {"minutes": minutes, "rounds": rounds, "cases": cases, "failed_seed": seed if failure else None}


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    if fuzz(minutes)["failed_seed"] is not None or any(t["crashed"] for t in fuzz_kernels(minutes)["targets"]):
        sys.exit(1)
