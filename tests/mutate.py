"""Measures the tests: changes the code in one place at a time, as a careless edit would, and counts what they notice.

    python tests/mutate.py [python] [cpp] [cuda] [--sample 200] [--seed 0] [--json FILE]

A change that survives is a gap in the tests or has no effect; only reading tells which. Not run by pytest. Each change
is made in a copy of the sources that is built: of Python code, of the CPU kernels and ops, or of the CUDA kernels,
which the emulator runs and which need a CUDA toolkit.
"""

import argparse
import io
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "cuda_host")]
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
# C++ tests of a folder of the kernels, fast ones first; a change elsewhere has to be noticed by any of them.
CPP_TESTS = {
    "neuron": ["test_parallel", "test_if_scan"],
    "network": ["test_network"],
    "norm": ["test_parallel", "test_normalised_layer"],
    "planes": ["test_parallel", "test_planes"],
}
SLOW_TO_SAY = ("bench", "build", "docs", "notebooks", "results")  # tests of other things than the code that is changed


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


def python_tests(tree: Path, file: str) -> str:
    """What notices a change of ``file``: the tests that name it most, then all."""
    tests = [path for path in sorted((tree / "tests").glob("test_*.py")) if path.stem[5:] not in SLOW_TO_SAY]
    named = {path: len(re.findall(rf"\b{Path(file).stem}\b", path.read_text() + path.stem)) for path in tests}
    tests.sort(key=lambda path: -named[path])
    for stage in tests[:5], tests[5:]:
        files = [str(path.relative_to(tree)) for path in stage]
        if not pytest(tree, "-n", "auto", "--dist", "loadfile", *files):
            return "the Python tests"
    return SURVIVES


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


class Cpp:
    """CPU kernels and ops: C++ tests first, then Python's with the extension built again."""

    files = ("csrc/kernels/*.cpp", "csrc/kernels/*.h", "csrc/ops/*.cpp", "csrc/ops/*.h", ":!csrc/kernels/cuda")
    mutants = staticmethod(in_cpp)

    def __init__(self, tree: Path) -> None:
        self.tree, self.all = tree, sorted(path.stem for path in (ROOT / "tests" / "cpp").glob("test_*.cpp"))
        self.unchanged = b""
        if not run(tree, "cmake", "--preset", "cpu", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG="):
            raise SystemExit("needs CMake and Ninja")
        if self.build(listed(*self.files)[0]) is not None:
            raise SystemExit("the unchanged code does not compile")
        self.unchanged = self.compiled()

    def compiled(self) -> bytes:
        """The machine code of kernels and ops."""
        parts = [self.tree / "build" / "cmake-cpu" / "libtandem_kernels.a", *self.tree.glob("tandem_ext/*.so")]
        return b"".join(part.read_bytes() for part in parts)

    def programs(self, file: str) -> list[str]:
        return CPP_TESTS.get(file.split("/")[2], self.all)

    def build(self, file: str) -> str | None:
        built = run(self.tree, "cmake", "--build", "--preset", "cpu", "--target", *self.programs(file))
        if not built or not run(self.tree, sys.executable, "setup.py", "-q", "build_ext", "--inplace"):
            return NOT_TRIED[0]
        return NOT_TRIED[1] if self.compiled() == self.unchanged else None

    def test(self, file: str) -> str:
        for program in self.programs(file):
            if not run(self.tree, "ctest", "--preset", "cpu", "--stop-on-failure", "-R", f"^{program}\\.", seconds=120):
                return program
        return python_tests(self.tree, file)


class Cuda:
    """CUDA kernels, and the headers that they share with the CPU, by the tests of the emulator."""

    files = ("csrc/kernels/cuda/*.cu*", "csrc/kernels/cuda/*.h", "csrc/kernels/neuron/if_neuron.h",
             "csrc/kernels/norm/batch_norm.h", "csrc/kernels/product/unit.h")  # fmt: skip
    mutants = staticmethod(in_cpp)
    names = re.compile(r"_GLOBAL__N__\w{8}_\d+_\w+?_cu_\w{8}|^\.(?:loc|file).*$|^//.*$", re.MULTILINE)

    def __init__(self, tree: Path) -> None:
        import harness

        self.tree, self.harness, self.toolkit = tree, harness, harness.find_toolkit()
        self.originals: dict[str, tuple[str, bytes] | None] = {}
        if self.toolkit is None:
            raise SystemExit("needs a CUDA toolkit")
        self.library = harness.build("kernels", harness.library_parts(), self.toolkit)

    def changed(self, file: str) -> list[str]:
        """The kernel files that are, or include at any depth, ``file``."""

        def included(source: Path) -> set[Path]:
            found, queue = set(), [source]
            while queue:
                path = queue.pop().resolve()
                if path not in found:
                    found.add(path)
                    queue += [path.parent / name for name in re.findall(r'^#include "(.+)"', path.read_text(), re.M)]
            return found

        return [path.stem for path in self.harness.kernel_sources() if (ROOT / file).resolve() in included(path)]

    def code_of(self, tree: Path, stem: str, to: Path) -> tuple[str, bytes] | None:
        """Compiles a kernel file: its PTX without names and lines, and the host's code; None if it does not compile."""
        command = [*self.harness.machine_rules(self.toolkit)["ptx"], "-keep", f"-keep-dir={to.parent}", "-c"]
        command += [f"csrc/kernels/cuda/{stem}.cu", "-o", str(to)]
        if subprocess.run(command, cwd=tree, capture_output=True).returncode != 0:
            return None
        text = (to.parent / f"{stem}.ptx").read_text().split(".section")[0]
        host = to.with_suffix(".text")
        subprocess.run(["objcopy", "-O", "binary", "--only-section=.text*", to, host], check=True)
        return self.names.sub("", text.replace("\t", "")), host.read_bytes()

    def build(self, file: str) -> str | None:
        stems = self.changed(file)
        parts = self.harness.library_parts()
        objects = [to for _, source, to in parts if Path(source).stem not in stems or source.endswith(".cpp")]
        differs = False
        for stem in stems:
            if stem not in self.originals:
                self.originals[stem] = self.code_of(ROOT, stem, self.tree / f"{stem}.original.o")
            objects.append(self.tree / f"{stem}.o")
            if (code := self.code_of(self.tree, stem, objects[-1])) is None:
                return NOT_TRIED[0]
            differs |= code != self.originals[stem]
        if not differs:
            return NOT_TRIED[1]
        self.library = self.tree / "kernels.so"
        subprocess.run(["g++", *map(str, objects), *self.harness.LINK, "-o", self.library], cwd=ROOT, check=True)
        return None

    def test(self, file: str, names: Sequence[str] = ()) -> str:
        """``names``: of the emulator's tests; without, all of them, and first those that are named like the change."""
        changed = self.changed(file)
        known = {path.stem[14:] for path in self.harness.HERE.glob("test_emulated_*.py")} - {"ops"}
        names = names or sorted(known, key=lambda name: (not any(name in stem for stem in changed), name))
        limits = ["-o", "faulthandler_timeout=100", "-o", "faulthandler_exit_on_timeout=true"]
        files = [f"tests/cuda_host/test_emulated_{name}.py" for name in names]
        # Tests of far offsets map more memory than there is.
        passed = pytest(ROOT, *limits, *files, memory=resource.RLIM_INFINITY, TANDEM_EMULATED=str(self.library))
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


def measure(part: str, sample: int, seed: int) -> dict[str, Any]:
    """Asks for each mutant why it was not tried, what noticed it, or whether it survives."""
    kind = PARTS[part]
    found = [mutant for file in listed(*kind.files) for mutant in kind.mutants(file, (ROOT / file).read_text())]
    figures: dict[str, Any] = {"of": len(found), "seed": seed, "tried": 0, "noticed": 0, "survivors": []}
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
            figures["tried"] += result not in NOT_TRIED
            figures["noticed"] += result not in (*NOT_TRIED, SURVIVES)
            figures["survivors"] += [str(mutant)] * (result == SURVIVES)
    print(f"{part}: {figures['tried']} changes, {figures['noticed']} noticed, {len(figures['survivors'])} survive")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, metavar="PART", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--sample", type=int, default=200, help="so many changes of each part, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    figures = {part: measure(part, options.sample, options.seed) for part in options.parts}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
