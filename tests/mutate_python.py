"""Measures the tests of the Python code by mutmut: changes a function in one place and asks whether a test notices.

    python tests/mutate_python.py [--sample N] [--seed S] [--json FILE]

A survivor is a gap in the tests or a change without effect; which, only reading tells. Not run by pytest. A change is
switched on in a process that has imported everything, so functions that only run at import are left out; so are tests
of torch.compile, which does not take the switch.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutation import ROOT, copy_sources, run_script

FILES = [
    "errors", "spike_train", "functional", "gradients", "reference", "few_bits", "layers",
    "layers_shape", "examples", "models", "attack", "compile",
]  # fmt: skip
TRACED = "test_compile_ or compiled or compiles or recompile or export"
TESTS = [*(f"tests/test_{name}.py" for name in FILES), "tests/test_distributed.py::test_alone_it_is_batch_norm"]
CONFIG = f"""
[tool.mutmut]
source_paths = ["tandem_ext", "tandem_snn"]
only_mutate = ["tandem_ext/*", "tandem_snn/nn/*"]
pytest_add_cli_args = ["-x", "-p", "no:cacheprovider", "-k", "not ({TRACED})"]
pytest_add_cli_args_test_selection = {TESTS}
"""
AT_IMPORT = ("tandem_ext._load.", "x_register_pytree__", "ops.x__register_")
SURVIVED = {0, 33}  # no test failed; no test comes by


def mutmut(tree: Path, *arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=tree, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"mutmut {arguments[0]} fails:\n{done.stdout[-4000:]}")
    return done.stdout


def run(tree: Path, *mutants: str) -> None:
    mutmut(tree, "run", "--max-children", str(len(os.sched_getaffinity(0))), *mutants)


def verdicts(tree: Path) -> Iterator[tuple[str, int | None]]:
    """(name, exit status of pytest, None where it was not asked) of every mutant."""
    for path in sorted((tree / "mutants").rglob("*.meta")):
        yield from json.loads(path.read_text())["exit_code_by_key"].items()


def described(tree: Path, mutant: str) -> str:
    """The mutant's name and its line in place of the original."""
    lines = mutmut(tree, "show", mutant).splitlines()
    changed = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    return f"{mutant}: {' '.join(changed) or 'a line less'}"


def measure(tree: Path, sample: int | None, seed: int) -> dict[str, Any]:
    """Figures of so many mutants in ``tree``, a copy of the sources that is built."""
    run(tree, "tandem_ext.planes.x_pack__mutmut_1")  # makes all of them, and learns which tests come by which function
    names = [name for name, _ in verdicts(tree) if not any(part in name for part in AT_IMPORT)]
    chosen = names if sample is None else random.Random(seed).sample(names, min(sample, len(names)))
    run(tree, *chosen)
    found = {name: status for name, status in verdicts(tree) if name in set(chosen)}
    survivors = [name for name, status in found.items() if status in SURVIVED]
    return {
        "of": len(names), "tried": len(found), "killed": len(found) - len(survivors),
        "survivors": [described(tree, name) for name in survivors],
    }  # fmt: skip


def figures(sample: int | None, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_sources(tree)
        shutil.move(tree / "python" / "tandem_snn", tree)  # mutmut takes a file's path for the name of its module
        for library in ROOT.glob("tandem_ext/*.so"):
            shutil.copy(library, tree / "tandem_ext")
        with (tree / "pyproject.toml").open("a") as file:
            file.write(CONFIG)
        found = measure(tree, sample, seed)
    print(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    run_script(__doc__, figures)
