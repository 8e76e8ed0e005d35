"""What to build: the CPU kernels always, the CUDA kernels if there is a complete CUDA toolkit.

No GPU is needed or looked for: the machine that compiles is often not the machine that trains.

Environment:
    TANDEM_CUDA           ``auto`` (default): CUDA kernels if a toolkit is found; ``1``: CUDA kernels or an error;
                          ``0``: CPU kernels only
    CUDA_HOME, CUDA_PATH  root of the toolkit; without them, that of the ``nvcc`` on PATH, /usr/local/cuda, pip's
    TORCH_CUDA_ARCH_LIST  as for any torch extension, e.g. ``8.0;9.0+PTX`` or ``Ampere``; default 7.5, 8.0, 9.0 and,
                          from CUDA 12.8 on, 10.0 and 12.0, the newest also as PTX; what is older than 7.5 is left out,
                          since the kernels multiply bytes on tensor cores
    MAX_JOBS              files compiled at the same time; default min(cores, free GB / 2)
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .toolkit import Toolkit, driver_version, find_toolkit, from_pip, numbers

ROOT = Path(__file__).resolve().parent.parent
OLDEST_ARCH = (7, 5)  # the first whose tensor cores multiply bytes
NAMES = {  # torch's
    "Turing": "7.5", "Ampere": "8.0;8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Kepler": "3.5+PTX", "Maxwell": "5.0;5.2+PTX", "Pascal": "6.0;6.1+PTX", "Volta": "7.0+PTX",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is built. Without a toolkit, only the CPU kernels, and ``note`` says why."""

    toolkit: Toolkit | None = None
    archs: tuple[str, ...] = ()
    note: str = ""

    def summary(self) -> str:
        """The one line that a build prints."""
        note = f" ({self.note})" if self.note else ""
        if self.toolkit is None:
            return f"tandem_ext: CPU kernels only{note}"
        archs = ", ".join("sm_" + arch.replace(".", "") for arch in self.archs)
        return f"tandem_ext: CPU kernels + CUDA kernels for {archs} (nvcc {self.toolkit.version}){note}"

    def gencode(self) -> list[str]:
        """The nvcc flags for ``archs``; ``+PTX`` adds code that newer GPUs compile at load time."""
        flags = []
        for arch in self.archs:
            number = arch.removesuffix("+PTX").replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if arch.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def decide(
    env: Mapping[str, str],
    which: Callable[[str], str | None],
    run: Callable[[Sequence[str]], str],
    is_file: Callable[[Path], bool] = Path.is_file,
    driver: Callable[[], int] = driver_version,
) -> Plan:
    """Decide from the environment alone what is built.

    Args:
        env: environment variables.
        which: path of a program on PATH, or None (``shutil.which``).
        run: output of a command, stdout and stderr together, empty if it cannot run.
        is_file: whether a path is a file.
        driver: what CUDA the NVIDIA driver supports; asked only if there is no toolkit, to say how to get one.

    Raises:
        ValueError: TANDEM_CUDA or TORCH_CUDA_ARCH_LIST has no meaning.
        RuntimeError: TANDEM_CUDA=1, and there is no complete toolkit or no listed architecture can run the kernels.
    """
    wish = read_wish(env)
    if wish == "0":
        return Plan(note="TANDEM_CUDA=0")
    toolkit, notes = find_toolkit(env, which, run, is_file)
    if toolkit is not None:
        return _with_cuda(toolkit, env.get("TORCH_CUDA_ARCH_LIST") or _default_archs(toolkit), notes, wish)
    packages, too_old = from_pip(driver(), wish == "1")
    if packages or too_old:
        notes.append(too_old or f"pip brings one: pip install {shlex.join(packages)}")
    if wish == "1":
        raise RuntimeError(
            f"TANDEM_CUDA=1, but there is no complete CUDA toolkit: {'; '.join(notes)}. Or put the nvcc of one on PATH "
            "or set CUDA_HOME to its root; TANDEM_CUDA=0 builds the CPU kernels only."
        )
    return Plan(note="; ".join(notes))


def read_wish(env: Mapping[str, str]) -> str:
    """TANDEM_CUDA."""
    wish = env.get("TANDEM_CUDA") or "auto"
    if wish not in ("0", "1", "auto"):
        raise ValueError(f"TANDEM_CUDA={wish}: allowed are 0, 1 and auto")
    return wish


def listed(group: str) -> list[str]:
    """The values of a group of csrc/sources.txt."""
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    return [line.removeprefix(f"{group} ") for line in lines if line.startswith(f"{group} ")]


def _default_archs(toolkit: Toolkit) -> str:
    archs = dict(line.split() for line in listed("arch"))
    return ";".join(arch for arch, oldest in archs.items() if numbers(toolkit.version) >= numbers(oldest)) + "+PTX"


def _with_cuda(toolkit: Toolkit, listed: str, notes: list[str], wish: str) -> Plan:
    """The kernels for those of the listed compute capabilities that can run them."""
    archs = parse_archs(listed)
    served = tuple(arch for arch in archs if numbers(arch) >= OLDEST_ARCH)
    if left_out := [arch for arch in archs if arch not in served]:
        notes = [*notes, f"no kernels for {', '.join(left_out)}: they need compute capability 7.5 or newer"]
    if served:
        return Plan(toolkit, served, "; ".join(notes))
    if wish == "1":
        raise RuntimeError(f"TANDEM_CUDA=1, but TORCH_CUDA_ARCH_LIST={listed}: {notes[-1]}")
    return Plan(note="; ".join(notes))


def parse_archs(text: str) -> tuple[str, ...]:
    """Compute capabilities of a TORCH_CUDA_ARCH_LIST: ``"8.0;Hopper"`` -> ``("8.0", "9.0+PTX")``."""
    listed = [NAMES.get(name, name) for name in re.split(r"[;,\s]+", text.strip(";, \t"))]
    archs = tuple(dict.fromkeys(arch for name in listed for arch in name.split(";")))
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST={text}: {arch!r} is no compute capability such as 8.0, 9.0a or 9.0+PTX, and no "
                f"name among {', '.join(NAMES)}"
            )
    return archs


def default_jobs(cores: int, free_bytes: int) -> int:
    """Files compiled at the same time: a compiler needs up to 2 GB."""
    return max(1, min(cores, free_bytes // (2 << 30)))


def linker_flags(system: str, libtorch: Path, cudart: Path | None) -> list[str]:
    """The linker's flags on ``system``, as ``sys.platform`` names it.

    The module must list libtorch as needed although nothing but a weak symbol refers to it: on Linux the function that
    gives the CUDA stream is found through it. cudart is linked statically and its symbols are hidden, so that it does
    not interfere with torch's CUDA runtime.
    """
    if system == "darwin":  # a plug-in: the program that loads it provides Python's symbols
        return ["-bundle", "-undefined", "dynamic_lookup", f"-L{libtorch}", "-ltorch"]
    flags = ["-shared", f"-L{libtorch}", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]
    if cudart is None:
        return flags
    return [*flags, "-Wl,--exclude-libs,ALL", str(cudart), "-ldl", "-lrt", "-lpthread"]


def compiler_flags(system: str, env: Mapping[str, str]) -> list[str]:
    """The flags that the platform adds to every compile command: on macOS ARCHFLAGS, as for any extension."""
    return shlex.split(env.get("ARCHFLAGS", "")) if system == "darwin" else []
