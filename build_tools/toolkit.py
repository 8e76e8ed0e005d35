"""The CUDA toolkit: where it is looked for, what it must hold, and what pip brings where there is none."""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST = (11, 8)  # knows compute capability 9.0
USUAL = Path("/usr/local/cuda")
INCLUDE_DIRS = ("include", "targets/x86_64-linux/include", "targets/sbsa-linux/include")
LIBRARY_DIRS = ("lib64", "lib", "lib/x86_64-linux-gnu", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")

# pip's packages are a whole toolkit from 13.0 on. Later drivers run what it makes, whose runtime is linked statically.
PIP = "13.0"
PIP_NAMES = ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl")


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that holds all the build needs."""

    nvcc: Path
    include: Path
    cudart: Path  # libcudart_static.a
    version: str


def find_toolkit(
    env: Mapping[str, str],
    which: Callable[[str], str | None],
    run: Callable[[Sequence[str]], str],
    is_file: Callable[[Path], bool],
) -> tuple[Toolkit | None, list[str]]:
    """The first complete toolkit, and what is wrong with those before it. The arguments are those of ``decide``."""
    wrong: list[str] = []
    for origin, root in _candidates(env, which, run, is_file):
        toolkit, complaint = _inspect(root, run, is_file)
        if toolkit is not None:
            return toolkit, wrong
        wrong.append(f"{origin} {complaint}")
    return None, wrong or [f"no nvcc on PATH or in {USUAL}, CUDA_HOME not set"]


def driver_version() -> int:
    """The newest CUDA that this machine's NVIDIA driver supports, as 1000 major + 10 minor; 0 without a driver."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value if status == 0 else 0


def from_pip(driver: int, wanted: bool) -> tuple[tuple[str, ...], str]:
    """The packages that are a toolkit, where there is a driver or CUDA kernels are wanted in any case; and if pip has
    none that fits the driver, a sentence that says so."""
    if 0 < driver // 1000 < int(PIP.partition(".")[0]):
        has = f"{driver // 1000}.{driver % 1000 // 10}"
        return (), (
            f"the driver supports CUDA {has}, and pip has no whole toolkit before {PIP}: update the driver to 580 or "
            f"newer, or install NVIDIA's toolkit of CUDA {driver // 1000} and set CUDA_HOME"
        )
    return tuple(f"{name}=={PIP}.*" for name in PIP_NAMES if driver or wanted), ""


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _candidates(
    env: Mapping[str, str],
    which: Callable[[str], str | None],
    run: Callable[[Sequence[str]], str],
    is_file: Callable[[Path], bool],
) -> Iterator[tuple[str, Path]]:
    """(origin of the hint, root of a toolkit), most explicit first."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if env.get(name):
            yield f"{name}={env[name]}", Path(env[name])
    nvcc = which("nvcc")
    if nvcc is not None:
        # The nvcc on PATH may be a wrapper far from its toolkit; only nvcc itself knows the toolkit's folder.
        top = re.search(r"^#\$ TOP=(.+)$", run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]), re.MULTILINE)
        root = Path(os.path.normpath(top[1].strip())) if top else Path(nvcc).parent.parent
        yield f"the toolkit of {nvcc}", root
    for root in (USUAL, *(Path(folder, "nvidia", f"cu{PIP.partition('.')[0]}") for folder in sys.path)):
        if is_file(root / "bin" / "nvcc"):
            yield str(root), root


def _inspect(
    root: Path, run: Callable[[Sequence[str]], str], is_file: Callable[[Path], bool]
) -> tuple[Toolkit | None, str]:
    """The toolkit at ``root``, or None and what is wrong with it."""
    nvcc = root / "bin" / "nvcc"
    include = next((root / d for d in INCLUDE_DIRS if is_file(root / d / "cuda_runtime.h")), None)
    libraries = next((root / d for d in LIBRARY_DIRS if is_file(root / d / "libcudart_static.a")), None)
    if not is_file(nvcc):
        return None, "has no bin/nvcc"
    if include is None:
        return None, "has no cuda_runtime.h"
    if not any(is_file(include / folder / "nv" / "target") for folder in ("", "cccl")):
        return None, "has no nv/target, which CCCL brings"
    if libraries is None:
        return None, "has no libcudart_static.a"
    release = re.search(r"release (\d+\.\d+)", run([str(nvcc), "--version"]))
    if release is None:
        return None, "has no nvcc that runs"
    if numbers(release[1]) < OLDEST:
        return None, f"is of CUDA {release[1]}, and the kernels need {OLDEST[0]}.{OLDEST[1]} or newer"
    return Toolkit(nvcc, include, libraries / "libcudart_static.a", release[1]), ""
