"""Compile tandem_ext._C: one ninja file, three kinds of source, one link.

torch's own BuildExtension is not used, because it decides about CUDA by the installed torch. This module uses torch's
stable ABI and may hold CUDA kernels for any torch. torch is located, but never imported.
"""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from .decide import ROOT, Plan, compiler_flags, decide, default_jobs, linker_flags, listed

LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")  # may precede the compiler in CXX
TORCH_TARGET = "0x020a000000000000"  # 2.10: the oldest torch with all the stable ABI that we use

NUMERICS = listed("flag")
HOST = shlex.split("-O3 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra -Wno-psabi") + NUMERICS


def read_sources() -> dict[str, list[str]]:
    """The files of csrc/sources.txt by group."""
    return {group: listed(group) for group in ("ops", "cpu", "cuda")}


def make_plan(env: Mapping[str, str] = os.environ) -> Plan:
    """decide() on this machine."""

    def run(command: Sequence[str]) -> str:
        try:
            return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
        except OSError:
            return ""

    return decide(env, shutil.which, run)


class NinjaBuildExt(build_ext):  # type: ignore[misc]
    """build_ext that builds the whole module with ninja. Objects stay in build/, so a second build compiles only what
    has changed."""

    def build_extension(self, ext: Extension) -> None:
        plan = make_plan()
        print(plan.summary(), flush=True)
        folder = build_folder()
        module = folder / "_C.so"
        rules, link = commands(plan, self.distribution.get_version())
        sources = ((group, path) for group, paths in read_sources().items() if group in rules for path in paths)
        parts = [(group, path, folder / (path + ".o")) for group, path in sources]
        if not run_ninja(folder / "build.ninja", ninja_text(folder, rules, link, parts, module)):
            hint = " TANDEM_CUDA=0 builds without the CUDA kernels." if plan.toolkit else ""
            raise SystemExit(f"tandem_ext: the compiler failed, its message is above.{hint}")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(ROOT / module), str(target))
        if not self.inplace:
            write_commit(target.parent)


def write_commit(folder: Path) -> None:
    """Records the commit that the package is built from, for bug reports: with a "+" if files differ, and only in a git
    tree."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return
    (folder / "commit.txt").write_text(commit)


def build_folder() -> Path:
    """The folder of the objects, relative to the root of the repository."""
    return Path("build", f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}")


def run_ninja(file: Path, text: str) -> bool:
    """Writes the ninja file and builds it; False if that failed."""
    (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
    (ROOT / file).write_text(text)
    return subprocess.run([*find_ninja(), "-f", str(file), "-j", str(jobs())], cwd=ROOT).returncode == 0


def commands(plan: Plan, version: str) -> tuple[dict[str, list[str]], list[str]]:
    """The compile command of each compiled group of sources, without files, and the linker's flags."""
    torch = find_torch()
    cxx = find_compiler()
    user = compiler_flags(sys.platform, os.environ)
    user += shlex.split(os.environ.get("CPPFLAGS", "")) + shlex.split(os.environ.get("CXXFLAGS", ""))
    # torch's own copy of pybind11 cannot be used together with the stable ABI.
    system = [find_package("pybind11", "pybind11") / "include", torch / "include", find_python_headers()]
    macros = [f'-DTANDEM_VERSION="{version}"', f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    link = linker_flags(sys.platform, torch / "lib", plan.toolkit.cudart if plan.toolkit else None)
    if plan.toolkit is not None:
        system.append(plan.toolkit.include)
        macros += ["-DTANDEM_WITH_CUDA", f'-DTANDEM_CUDA_ARCHS="{" ".join(plan.archs)}"']
    rules = {
        "ops": [*cxx, "-std=c++20", *HOST, *macros, "-Icsrc", *(f"-isystem{d}" for d in system), *user],
        "cpu": [*cxx, "-std=c++17", *HOST, "-Icsrc", *user],
    }
    if plan.toolkit is not None:
        rules["cuda"] = [str(plan.toolkit.nvcc), *nvcc_flags(plan)]
    return rules, [*link, *user, *shlex.split(os.environ.get("LDFLAGS", ""))]


def ninja_text(
    folder: Path,
    rules: dict[str, list[str]],
    link: Sequence[str],
    parts: Sequence[tuple[str, str, Path]],
    module: Path,
) -> str:
    """A ninja file that compiles ``parts``, each (rule, source, object), and links them to ``module``."""
    lines = [f"builddir = {escape(folder)}"]
    for name, command in rules.items():
        lines += [
            f"rule {name}",
            f"  command = {shell(command)} -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $in",
        ]
    lines += ["rule link", f"  command = {shell(find_compiler())} $in {shell(link)} -o $out", "  description = $out"]
    lines += [f"build {escape(to)}: {rule} {escape(source)}" for rule, source, to in parts]
    lines.append(f"build {escape(module)}: link {' '.join(escape(to) for _, _, to in parts)}")
    return "\n".join(lines) + "\n"


def nvcc_flags(plan: Plan) -> list[str]:
    """Flags of the CUDA kernels: no fused multiply-add, and a warning from ptxas about spilled registers."""
    host = ",".join(["-fPIC", "-fvisibility=hidden", *NUMERICS])
    flags = ["-std=c++17", "-O3", "-fmad=false", "-Icsrc", f"-Xcompiler={host}", *plan.gencode()]
    flags.append("-Xptxas=--warn-on-spills,--warn-on-local-memory-usage")
    chosen = [word for word in shlex.split(os.environ.get("CXX", "")) if Path(word).name not in LAUNCHERS]
    if chosen and not os.environ.get("NVCC_CCBIN"):
        flags.append(f"-ccbin={chosen[0]}")
    return flags


def find_package(name: str, requirement: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        needs = f"building without isolation needs {name} in this Python: pip install '{requirement}'"
        raise SystemExit(f"tandem_ext: {needs}")
    return Path(spec.submodule_search_locations[0])


def find_torch() -> Path:
    """The folder of the installed torch."""
    folder, version = find_package("torch", "torch>=2.10"), importlib.metadata.version("torch")
    if tuple(map(int, version.split(".")[:2])) < (2, 10):
        raise SystemExit(f"tandem_ext: torch {version} is too old to build with; 2.10 or newer is needed")
    return folder


def find_python_headers() -> Path:
    """The folder of Python.h."""
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        raise SystemExit(f"tandem_ext: {include} has no Python.h; install the headers of this Python (python3-dev)")
    return include


def find_compiler() -> list[str]:
    """The C++ compiler: CXX, else preferably GCC, which builds kernels for every x86-64 level."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise SystemExit("tandem_ext: no C++ compiler found; install g++ or set CXX")


def find_ninja() -> list[str]:
    """The command that runs ninja."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if shutil.which("ninja"):
        return ["ninja"]
    raise SystemExit("tandem_ext: building without isolation needs ninja: pip install ninja")


def jobs() -> int:
    """MAX_JOBS, else as many compilers as cores and free memory allow."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return default_jobs(cores, free_memory())


def free_memory(table: Path = Path("/proc/meminfo")) -> int:
    """Bytes for compilers: on Linux the available memory, elsewhere half of the machine's memory."""
    if not table.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    available = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text())
    return 1024 * int(available[1]) if available else 0


def shell(words: Iterable[str]) -> str:
    """Words as one shell command inside a ninja file."""
    return shlex.join(words).replace("$", "$$")


def escape(path: Path | str) -> str:
    """A path inside a ninja file."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
