"""Small changes of C++ and CUDA code, one place at a time, as a careless edit would make them."""

import argparse
import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "kernels"
SWAPS = {
    r" < ": " <= ", r" <= ": " < ", r" > ": " >= ", r" >= ": " > ", r" == ": " != ", r" != ": " == ",
    r" \+ ": " - ", r" - ": " + ", r" \* ": " + ", r" / ": " * ", r" % ": " / ", r" & ": " | ", r" \| ": " & ",
    r" << ": " >> ", r" >> ": " << ", r" && ": " || ", r" \|\| ": " && ", r" \+= ": " = ", r" \|= ": " = ",
    r"__syncthreads\(\);": "", r"cp_async_wait<.*?>\(\);": "", r"cp_async_commit\(\);": "",
    r"\b1u\b": "2u", r"\b0\.0f\b": "1.0f", r"\b1\.0f\b": "0.0f",
}  # fmt: skip
NOT_TRIED = ("does not compile", "changes no code")
UNTOUCHED = re.compile(r"^\s*(//|#|template|static_assert)|__launch_bounds__|__CUDA_ARCH__|<<<|prefetch")


@dataclass(frozen=True)
class Mutant:
    """``file``, below csrc/kernels, with line ``line``, counted from 0, replaced by ``text``."""

    file: str
    line: int
    text: str

    def write(self, kernels: Path) -> None:
        """Makes the change in a copy of the kernels."""
        path = kernels / self.file
        lines = path.read_text().splitlines()
        lines[self.line] = self.text
        path.write_text("\n".join(lines) + "\n")

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1}: {self.text.strip()}"


def mutants(files: Iterable[str]) -> list[Mutant]:
    found = []
    for file in files:
        for number, line in enumerate((KERNELS / file).read_text().splitlines()):
            if UNTOUCHED.search(line):
                continue
            code = line.split("//")[0]
            for pattern, swap in SWAPS.items():
                places = re.finditer(pattern, code)
                found += [Mutant(file, number, line[: m.start()] + swap + line[m.end() :]) for m in places]
    return found


def copy_sources(to: Path) -> None:
    """The files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for path in filter(None, listed.decode().split("\0")):
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, to / path)


def run_script(description: str | None, figures_of: Callable[[int | None, int], dict[str, Any]]) -> None:
    """The command line of a script: the figures of a sample of changes, of so many and drawn by a seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="try only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    figures = figures_of(arguments.sample, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def chosen(files: Iterable[str], sample: int | None, seed: int) -> list[Mutant]:
    """All mutants of these files, or as many of them as ``sample`` says."""
    found = mutants(files)
    return found if sample is None else random.Random(seed).sample(found, min(sample, len(found)))


def measure(tried: Iterable[Mutant], verdict: Callable[[Mutant], str]) -> dict[str, Any]:
    """Asks for each mutant what became of it: why it was not tried, SURVIVES, or what noticed it; counts."""
    figures: dict[str, Any] = {"tried": 0, "killed": 0, "survivors": []}
    for mutant in tried:
        result = verdict(mutant)
        print(f"{mutant}\n    {result}", flush=True)
        figures["tried"] += result not in NOT_TRIED
        figures["killed"] += result not in (*NOT_TRIED, "SURVIVES")
        if result == "SURVIVES":
            figures["survivors"].append(str(mutant))
    print(f"{figures['tried']} changes, {figures['killed']} noticed, {len(figures['survivors'])} survive")
    return figures
