"""The machine, versions and commit of a measurement; the memory of this process, on Linux."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import tandem_ext
from tandem_ext import build_info

LIBRARIES = ("numpy", "spikingjelly", "snntorch")


def machine() -> dict[str, Any]:
    """Return CPU, cores, caches and memory, as far as lscpu reports them."""
    try:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    except OSError:
        lines = ""
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines.splitlines())}
    caches = [f"{name.removesuffix(' cache')} {cpu[name]}" for name in cpu if re.fullmatch(r"L\d[d]? cache", name)]
    known = {
        "cpu": cpu.get("Model name") or platform.processor(),
        "family": f"{cpu['CPU family']}, model {cpu.get('Model', '?')}" if "CPU family" in cpu else "",
        "cores": os.cpu_count(),
        "caches": ", ".join(caches),
        "memory": f"{total_memory() / 2**30:.0f} GiB",
        "system": platform.platform(),
    }
    return {name: value for name, value in known.items() if value}


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tandem_ext": build_info(),
    }
    return found | {library: metadata.version(library) for library in LIBRARIES if find_spec(library)}


def commit() -> str | None:
    """Return the commit of the build, or of the source tree from which the package is imported; None if unknown.

    A "+" is appended if files differ from the commit.
    """
    written = Path(tandem_ext.__file__).with_name("commit.txt")  # build_tools/compile.py writes it for installations
    if written.exists():
        return written.read_text().strip()
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installed package may be inside the source tree of another project.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changes.strip())


def origin(command: str) -> dict[str, Any]:
    """Return the origin of a result: command, machine, versions and commit."""
    return {"command": command, "commit": commit(), "machine": machine(), "versions": versions()}


def short(commit: str | None, digits: int = 10) -> str:
    """Return the first digits of :func:`commit`, and its "+"."""
    return "unknown" if commit is None else commit[:digits] + "+" * commit.endswith("+")


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_option = getattr(ctypes.CDLL(None), "mallopt", None)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h


def total_memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident(key: str = "VmRSS") -> int:
    """Return the memory in use now (VmRSS) or at the peak (VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status does not contain {key}")


def return_freed() -> None:
    """Return freed memory that glibc keeps to the system.

    glibc rarely reuses it for aligned blocks such as torch's tensors (glibc bug 14581), so that unused memory can grow
    to gigabytes within minutes of training.
    """
    if _trim is not None:
        _trim(0)


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Within this context the process keeps freed memory until :func:`return_freed` or the end of the context.

    Otherwise glibc returns large blocks immediately, and the system clears the same pages in every training step, which
    takes a seventh of the step for a small convolutional network. The setting affects the whole process, so only the
    command line uses it.
    """
    if _option is not None:
        _option(_MMAP_MAX, 0)
        _option(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        if _option is not None:
            _option(_MMAP_MAX, 1 << 16)  # glibc's default
            _option(_TRIM_THRESHOLD, 1 << 26)  # the largest value that glibc sets by itself
            return_freed()


class PeakMemory:
    """A context that measures ``grown``, in bytes: the peak growth of the process, or of torch's GPU allocations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.grown: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            try:
                gc.collect()
                return_freed()  # growth into freed memory would not be visible
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
                self._before = resident()
            except OSError:
                self._before = -1
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.grown = torch.cuda.max_memory_allocated(self.device) - self._before
        elif self._before >= 0:
            self.grown = resident("VmHWM") - self._before
