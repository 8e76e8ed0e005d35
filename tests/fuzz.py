"""Runs the attack on the ops with other examples each time, until the time is over or one of them is wrong.

python tests/fuzz.py [--minutes 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
HERE = Path(__file__).parent
TESTS = ["test_attack.py", "test_functional.py"]


def round_of(seed: int) -> tuple[int, str | None]:
    """(cases tried, None) or (cases tried, what went wrong); the examples follow from the seed."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=random",
        f"--hypothesis-seed={seed}", "--hypothesis-show-statistics", *(str(HERE / test) for test in TESTS),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
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


def command_line(
    description: str | None, attack: Callable[[float], Figures], has_failed: Callable[[Figures], bool]
) -> int:
    """The exit status of an attack that lasts as long as the command line says and writes its figures there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    figures = attack(arguments.minutes)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(has_failed(figures))


if __name__ == "__main__":
    sys.exit(command_line(__doc__, fuzz, lambda figures: figures["failed_seed"] is not None))
