"""Compile the extension: one ninja file, four kinds of source, one link.

It is tandem_ext._C, for this Python. `python -m build_tools` links it without its bindings, for any Python.

torch's own BuildExtension is not used, because it decides about CUDA by the installed torch. This module uses torch's
stable ABI and may hold CUDA kernels for any torch. torch is located, but never imported.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .decide import ROOT, Plan, compiler_flags, decide, default_jobs, linker_flags, listed, read_wish
from .toolkit import Toolkit, driver_version, find_toolkit, from_pip

LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")  # may precede the compiler in CXX
OLDEST_COMPILER = {"GCC": 12, "clang": 14}  # with __builtin_shufflevector
OTHER_GCC = ("g++-14", "g++-13", "g++-12")  # where g++ is too old, or too new for nvcc
OLDEST_TORCH, TORCH_TARGET = (2, 10), "0x020a000000000000"  # with all the stable ABI that we use
GROUPS = ("python", "ops", "cpu", "cuda")

NUMERICS = listed("flag")
HOST = shlex.split("-O3 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra -Wno-psabi") + NUMERICS


def read_sources() -> dict[str, list[str]]:
    """The files of csrc/sources.txt by group."""
    return {group: listed(group) for group in GROUPS}


def output_of(command: Sequence[str]) -> str:
    """What a command says, on stdout and stderr; nothing if it cannot run."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    except OSError:
        return ""


def make_plan(env: Mapping[str, str] = os.environ) -> Plan:
    """decide() on this machine; what it refuses is one line."""
    try:
        return decide(env, shutil.which, output_of)
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"tandem_ext: {error}") from error


def missing_toolkit(env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What pip has to bring so that make_plan() finds a toolkit, where CUDA kernels are wanted or a driver is."""
    wish = read_wish(env)
    if wish == "0" or find_toolkit(env, shutil.which, output_of, Path.is_file)[0] is not None:
        return ()
    return from_pip(driver_version(), wish == "1")[0]


def build(plan: Plan, groups: Collection[str], module: Path) -> None:
    """Compiles these groups of sources and links ``module``, relative to the root of the repository. Objects stay in
    build/, so a second build compiles only what has changed."""
    print(plan.summary(), flush=True)
    folder = build_folder()
    rules, link = commands(plan, groups)
    sources = ((group, path) for group, paths in read_sources().items() if group in rules for path in paths)
    parts = [(group, path, folder / (path + ".o")) for group, path in sources]
    if not run_ninja(folder / f"{module.stem}.ninja", ninja_text(folder, rules, link, parts, module)):
        hint = " TANDEM_CUDA=0 builds without the CUDA kernels." if plan.toolkit else ""
        raise SystemExit(f"tandem_ext: the compiler failed, its message is above.{hint}")


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
    """Writes the ninja file and builds it, after those who build in the same folder; False if that failed."""
    (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
    with (ROOT / file).with_name(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (ROOT / file).write_text(text)
        return subprocess.run([*find_ninja(), "-f", str(file), "-j", str(jobs())], cwd=ROOT).returncode == 0


def commands(plan: Plan, groups: Collection[str] = GROUPS) -> tuple[dict[str, list[str]], list[str]]:
    """The compile command of each group of sources that is compiled, without files, and the linker's flags."""
    torch, cxx = find_torch(), find_compiler()
    user = compiler_flags(sys.platform, os.environ)
    user += shlex.split(os.environ.get("CPPFLAGS", "")) + shlex.split(os.environ.get("CXXFLAGS", ""))
    (version,) = re.findall(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    system, macros = [torch / "include"], [f'-DTANDEM_VERSION="{version}"', f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    link = linker_flags(sys.platform, torch / "lib", plan.toolkit.cudart if plan.toolkit else None)
    rules = {"cpu": [*cxx, "-std=c++17", *HOST, "-Icsrc", *user]}
    if plan.toolkit is not None:
        system.append(plan.toolkit.include)
        macros += ["-DTANDEM_WITH_CUDA", f'-DTANDEM_CUDA_ARCHS="{" ".join(plan.archs)}"']
        rules["cuda"] = [str(plan.toolkit.nvcc), *nvcc_flags(plan)]
    rules["ops"] = [*cxx, "-std=c++20", *HOST, *macros, "-Icsrc", *(f"-isystem{d}" for d in system), *user]
    if "python" in groups:
        # torch's own copy of pybind11 cannot be used together with the stable ABI.
        headers = find_package("pybind11", "pybind11") / "include", find_python_headers()
        rules["python"] = [*cxx, "-std=c++20", *HOST, "-Icsrc", *(f"-isystem{d}" for d in headers), *user]
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
    if plan.toolkit is not None and not os.environ.get("NVCC_CCBIN"):
        flags.append(f"-ccbin={find_host(plan.toolkit)}")
    return flags


def find_host(toolkit: Toolkit) -> str:
    """The compiler that nvcc calls: that of the other files, or an older one if nvcc refuses it."""
    cxx = next(word for word in find_compiler() if Path(word).name not in LAUNCHERS)
    for name in (cxx, *filter(shutil.which, (*OTHER_GCC, "g++-11"))):
        said = output_of([str(toolkit.nvcc), "-E", "-x", "cu", f"-ccbin={name}", os.devnull])
        if not re.search("unsupported (GNU|clang) version", said):
            return name
    older = "install an older one (apt install g++-12), or name one in NVCC_CCBIN"
    raise SystemExit(f"tandem_ext: nvcc {toolkit.version} refuses {cxx} as too new: {older}")


def find_package(name: str, requirement: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        needs = f"building without isolation needs {name} in this Python: pip install '{requirement}'"
        raise SystemExit(f"tandem_ext: {needs}")
    return Path(spec.submodule_search_locations[0])


def find_torch() -> Path:
    """The folder of a torch that is new enough to build with."""
    folder, version = installed_torch() or (find_package("torch", "torch>=2.10"), "")
    if is_old(version):
        raise SystemExit(f"tandem_ext: torch {version} is too old to build with; 2.10 or newer is needed")
    return folder


def installed_torch() -> tuple[Path, str] | None:
    """Folder and version of torch: this environment's, or, since pip isolates builds, that of the Python it runs in."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]), importlib.metadata.version("torch")
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    found = next(iter(importlib.metadata.distributions(name="torch", path=folders)), None)
    return (Path(str(found.locate_file("torch"))), found.version) if found else None


def is_old(torch: str) -> bool:
    """Whether a version of torch lacks parts of the stable ABI."""
    return tuple(map(int, torch.split(".")[:2])) < OLDEST_TORCH


def find_python_headers() -> Path:
    """The folder of Python.h."""
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        raise SystemExit(f"tandem_ext: {include} has no Python.h; install the headers of this Python (python3-dev)")
    return include


def find_compiler() -> list[str]:
    """The C++ compiler: CXX, else preferably GCC, which builds kernels for every x86-64 level."""
    chosen, old = shlex.split(os.environ.get("CXX", "")), []
    for command in [chosen] if chosen else [[name] for name in ("g++", *OTHER_GCC, "c++", "clang++")]:
        if chosen or shutil.which(command[0]):
            version = old_version(command)
            if version is None:
                return command
            old.append(f"{shlex.join(command)} is {version}")
    if old:
        newer = "install g++-12 (apt install g++-12; it is found by this name) or a newer one, or set CXX"
        raise SystemExit(f"tandem_ext: {old[0]}, and the kernels need GCC 12 or clang 14: {newer}")
    raise SystemExit("tandem_ext: no C++ compiler found; install g++ or set CXX")


def old_version(compiler: Sequence[str]) -> str | None:
    """Name and version of a compiler that is too old."""
    macros = dict(re.findall(r"#define (\w+) (\d+)", output_of([*compiler, "-E", "-dM", "-x", "c++", os.devnull])))
    for name, macro in ("clang", "__clang_major__"), ("GCC", "__GNUC__"):  # clang defines both
        if macro in macros:
            return f"{name} {macros[macro]}" if int(macros[macro]) < OLDEST_COMPILER[name] else None
    return None


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
