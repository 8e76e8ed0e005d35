"""Attacks until the time is over or one of them is wrong: hostile calls of every op with other examples each time, then
the C++ kernels by libFuzzer, under AddressSanitizer and UndefinedBehaviorSanitizer, which needs clang.

python tests/fuzz.py [--minutes 60]     # of each

What libFuzzer has found worth keeping stays in build/cmake-fuzz/corpus for the next time; a case that fails is left in
the repository's root as crash-*, and the program that found it runs it again when given its name.
"""

import argparse
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["tests/test_attack.py", "tests/test_functional.py"]
BUILD = ROOT / "build" / "cmake-fuzz"
TARGETS = ["fuzz_if_scan", "fuzz_layer", "fuzz_network", "fuzz_normalised_layer", "fuzz_planes"]
LEVELS = ["default", "v3", "v4"]
LACKED = 77  # exit status of a program that asks for a level that the processor lacks


def fuzz(minutes: float) -> None:
    """As many rounds as end within the time, at least one; the examples of a round follow from its seed."""
    end = time.monotonic() + 60 * minutes
    while True:
        seed = random.SystemRandom().randrange(2**32)
        options = ["--hypothesis-profile=random", f"--hypothesis-seed={seed}", "-p", "no:cacheprovider"]
        if subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *options, *TESTS], cwd=ROOT).returncode:
            raise SystemExit(f"seed {seed}: a test failed")
        print(f"seed {seed}: right", flush=True)
        if time.monotonic() > end:
            return


def fuzz_kernels(minutes: float) -> None:
    """Every target at every level, which share the time."""
    if shutil.which("clang++") is None:
        raise SystemExit("libFuzzer comes with clang, and there is no clang++")
    for step in (["cmake", "--preset", "fuzz"], ["cmake", "--build", "--preset", "fuzz"]):
        subprocess.run(step, cwd=ROOT, check=True)
    seconds, wrong = max(1, round(60 * minutes / len(TARGETS) / len(LEVELS))), []
    for name, level in itertools.product(TARGETS, LEVELS):
        corpus = BUILD / "corpus" / name
        corpus.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={seconds}", "-max_len=128", "-len_control=0", "-timeout=60"]
        command = [BUILD / "tests/cpp" / name, corpus, *limits, "-print_final_stats=1", "-verbosity=0"]
        env = os.environ | {"TANDEM_CPU_CAPABILITY": level}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        print(f"{name}, {level}: {tried[1] if tried else 0} cases", flush=True)
        if done.returncode not in (0, LACKED):
            wrong.append(f"{name}, {level}\n{done.stdout}\n{done.stderr}")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    fuzz(minutes)
    fuzz_kernels(minutes)
