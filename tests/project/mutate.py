"""Measures the tests: changes the code in one place at a time, as a careless edit would, and counts what they notice.

    python tests/project/mutate.py [python] [cpp] [cuda] [--sample 200] [--seed 0]

A change that survives is a gap in the tests or has no effect; only reading tells which. Not run by pytest. Each change
is made in a copy of the sources that is built: of Python code, of the CPU kernels and ops, or of the CUDA kernels,
which the emulator runs and which need a CUDA toolkit.
"""

import argparse
import io
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOT_TRIED = ("does not compile", "changes no code")
SURVIVES = "SURVIVES"
IN_BOTH = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "+", "/": "*",
           "%": "/", "&": "|", "<<": ">>", ">>": "<<"}  # fmt: skip
ONLY_IN_CPP = {"|": "&", "&&": "||", "||": "&&", "+=": "=", "|=": "="}
IN_CPP = {rf" {re.escape(before)} ": f" {after} " for before, after in (IN_BOTH | ONLY_IN_CPP).items()} | {
    r"__syncthreads\(\);": "", r"cp_async_wait<.*?>\(\);": "", r"cp_async_commit\(\);": "",
    r"\b1u\b": "2u", r"\b0\.0f\b": "1.0f", r"\b1\.0f\b": "0.0f",
}  # fmt: skip
IN_PYTHON = IN_BOTH | {"and": "or", "or": "and", "not": "", "True": "False", "False": "True", "0": "1", "1": "2",
                       "-1": "0", "+=": "=", "//": "/"}  # fmt: skip
UNTOUCHED = re.compile(r"^\s*(//|#|template|static_assert)|__launch_bounds__|__CUDA_ARCH__|<<<|prefetch")
SLOW_TO_SAY = ("bench", "build", "docs")  # tests of other things than the code that is changed


@dataclass(frozen=True)
class Mutant:
    """``file`` of the repository with line ``line``, counted from 0, replaced by ``text``."""

    file: str
    line: int
    text: str

    def write(self, tree: Path) -> str:
        """Makes the change in a copy of the sources; what stood there."""
        before = (tree / self.file).read_text()
        lines = before.splitlines()
        lines[self.line] = self.text
        (tree / self.file).write_text("\n".join(lines) + "\n")
        return before

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1}: {self.text.strip()}"


def in_cpp(file: str, text: str) -> Iterator[Mutant]:
    for number, line in enumerate(text.splitlines()):
        for pattern, swap in {} if UNTOUCHED.search(line) else IN_CPP.items():
            for m in re.finditer(pattern, line.split("//")[0]):
                yield Mutant(file, number, line[: m.start()] + swap + line[m.end() :])


def in_python(file: str, text: str) -> Iterator[Mutant]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string in IN_PYTHON and not token.line.lstrip().startswith(("import", "from", "def", "class", "@")):
            (row, start), (_, end) = token.start, token.end
            line = text.splitlines()[row - 1]
            yield Mutant(file, row - 1, line[:start] + IN_PYTHON[token.string] + line[end:])


def run(tree: Path, *command: str, seconds: int = 3600, memory: int = 8 << 30, **variables: str) -> bool:
    """Whether a command succeeds in ``tree``. It fails if it hangs or needs absurd memory, as a change may make it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    env = {**os.environ, "TANDEM_CUDA": "0", "PYTHONPATH": f"{tree}:{tree / 'python'}", "CXXFLAGS": "-O1", **variables}
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, timeout=2 * seconds, preexec_fn=limit)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def pytest(tree: Path, *arguments: str, **options: Any) -> bool:
    return run(tree, sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments, **options)


def guards(file: str) -> list[str]:
    """The tests that tests/README.md names for a change of ``file``, in the row that has the longest name of it."""
    rows = [line.split(" | ") for line in (ROOT / "tests/README.md").read_text().splitlines() if line.startswith("| `")]
    named = ((name, tests) for names, tests in rows for name in re.findall(r"`([^`]+)`", names))
    _, tests = max((len(name), tests) for name, tests in named if f"{file}/".startswith(f"{name}/"))
    return re.findall(r"`(tests/[^`]+)`", tests)


def python_tests(tree: Path, file: str) -> str:
    """What notices a change of ``file``: first are the tests that guard it."""
    tests = [path for path in sorted(tree.glob("tests/*/test_*.py")) if path.stem[5:] not in SLOW_TO_SAY]
    names = [path.relative_to(tree).as_posix() for path in tests if path.parent.name != "cuda_host"]
    names.sort(key=lambda name: not name.startswith(tuple(guards(file))))
    passed = pytest(tree, "-n", "auto", "--dist", "loadfile", *names)
    return SURVIVES if passed else "the Python tests"


class Python:
    """Python code of the packages."""

    files = ("tandem_ext/*.py", "python/tandem_snn/*.py")
    mutants = staticmethod(in_python)

    def __init__(self, tree: Path) -> None:
        for library in ROOT.glob("tandem_ext/*.so"):
            shutil.copy(library, tree / "tandem_ext")
        self.tree = tree

    def build(self, file: str) -> str | None:
        """Why a change of ``file`` is not tried."""
        try:
            compile((self.tree / file).read_text(), file, "exec")
        except SyntaxError:
            return NOT_TRIED[0]
        return None

    def test(self, file: str) -> str:
        """What notices the change, or that it survives."""
        return python_tests(self.tree, file)


class Compiled:
    """Code that is compiled; ``code`` is what has become of it."""

    mutants = staticmethod(in_cpp)

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        if not self.compile():
            raise SystemExit("the unchanged code does not compile")
        self.unchanged = self.code()

    def build(self, file: str) -> str | None:
        """Why a change of ``file`` is not tried."""
        if not self.compile():
            return NOT_TRIED[0]
        return NOT_TRIED[1] if self.code() == self.unchanged else None


class Cpp(Compiled):
    """CPU kernels and ops: C++ tests first, then Python's with the extension built again."""

    files = ("csrc/kernels/*.cpp", "csrc/kernels/*.h", "csrc/ops/*.cpp", "csrc/ops/*.h", ":!csrc/kernels/cuda")

    def __init__(self, tree: Path) -> None:
        if not run(tree, "cmake", "--preset", "cpu", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG="):
            raise SystemExit("needs CMake and Ninja")
        super().__init__(tree)

    def compile(self) -> bool:
        built = run(self.tree, "cmake", "--build", "--preset", "cpu")
        return built and run(self.tree, sys.executable, "setup.py", "-q", "build_ext", "--inplace")

    def code(self) -> bytes:
        parts = [self.tree / "build" / "cmake-cpu" / "libtandem_kernels.a", *self.tree.glob("tandem_ext/*.so")]
        return b"".join(part.read_bytes() for part in parts)

    def test(self, file: str) -> str:
        passed = run(self.tree, "ctest", "--preset", "cpu", "--stop-on-failure", seconds=1200)
        return python_tests(self.tree, file) if passed else "the C++ tests"


class Cuda(Compiled):
    """CUDA kernels, and the headers that they share with the CPU, by the tests of the emulator."""

    files = ("csrc/kernels/cuda/*.cu*", "csrc/kernels/cuda/*.h", "csrc/kernels/neuron/if_neuron.h",
             "csrc/kernels/norm/batch_norm.h", "csrc/kernels/weights/unit.h")  # fmt: skip
    library = "import harness; harness.build_kernels(harness.find_toolkit())"
    names = re.compile(rb"tmpxft_\w+-\d+")  # nvcc's files of one call, whose names objects have

    def compile(self) -> bool:
        paths = {"PYTHONPATH": f"{self.tree}:{self.tree / 'tests'}:{self.tree / 'tests' / 'cuda_host'}"}
        return run(self.tree, sys.executable, "-c", self.library, memory=resource.RLIM_INFINITY, **paths)

    def code(self) -> list[bytes]:
        return [self.names.sub(b"", path.read_bytes()) for path in sorted(self.tree.glob("build/*/ptx*/**/*.o"))]

    def test(self, file: str) -> str:
        """By all of the emulator's tests, and first those that are named like the change."""
        tests = [path for path in self.tree.glob("tests/cuda_host/test_emulated_*.py") if "ops" not in path.stem]
        tests.sort(key=lambda path: (path.stem.removeprefix("test_emulated_") not in file, path))
        limits = ["-o", "faulthandler_timeout=100", "-o", "faulthandler_exit_on_timeout=true"]
        # Tests of far offsets map more memory than there is.
        passed = pytest(self.tree, *limits, *map(str, tests), memory=resource.RLIM_INFINITY)
        return SURVIVES if passed else "the emulator's tests"


PARTS: dict[str, Any] = {"python": Python, "cpp": Cpp, "cuda": Cuda}


def listed(*patterns: str) -> list[str]:
    """The files that git knows, by patterns whose * also stands for folders."""
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def copy_sources(to: Path) -> None:
    for name in listed():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name)


def measure(part: str, sample: int, seed: int) -> None:
    """Says of each mutant why it was not tried, what noticed it, or that it survives."""
    kind = PARTS[part]
    found = [mutant for file in listed(*kind.files) for mutant in kind.mutants(file, (ROOT / file).read_text())]
    results = []
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_sources(tree)
        judge = kind(tree)
        if (said := judge.test(listed(*kind.files)[0])) != SURVIVES:
            raise SystemExit(f"{part}: nothing was changed, and yet it is noticed by {said}")
        for mutant in random.Random(seed).sample(found, min(sample, len(found))):
            before = mutant.write(tree)
            result = judge.build(mutant.file) or judge.test(mutant.file)
            (tree / mutant.file).write_text(before)
            print(f"{mutant}\n    {result}", flush=True)
            results += [result] * (result not in NOT_TRIED)
    print(f"{part}: {len(results)} of {len(found)} changes tried, {results.count(SURVIVES)} survive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, metavar="PART", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--sample", type=int, default=200, help="so many changes of each part, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for part in options.parts:
        measure(part, options.sample, options.seed)


if __name__ == "__main__":
    main()
