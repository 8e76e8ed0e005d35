"""The machine, versions and commit of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import tandem_ext
from tandem_ext import build_info

LIBRARIES = ("numpy", "spikingjelly", "snntorch")


def machine() -> dict[str, Any]:
    """CPU, cores, caches and memory, as far as Linux reports them."""
    cpu = _table(Path("/proc/cpuinfo"))
    memory = _table(Path("/proc/meminfo")).get("MemTotal", "")
    known = {
        "cpu": cpu.get("model name") or _arm_name(cpu) or platform.processor(),
        "family": f"{cpu['cpu family']}, model {cpu['model']}" if "cpu family" in cpu else "",
        "cores": os.cpu_count(),
        "caches": _caches(),
        "memory": f"{int(memory.split()[0]) / 2**20:.0f} GiB" if memory else "",
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
    """The commit of the build, or of the source tree if the package is imported from one; with "+" if files differ from
    it. None if it is not known.
    """
    written = Path(tandem_ext.__file__).with_name("commit.txt")  # by build_tools/compile.py, in an installed package
    if written.exists():
        return written.read_text().strip()
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An installed package may lie in the tree of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changes.strip())


def short(commit: str | None, digits: int = 10) -> str:
    """The first digits of :func:`commit`, and its "+".

    >>> short("0123456789abcdef+")
    '0123456789+'
    """
    return "unknown" if commit is None else commit[:digits] + "+" * commit.endswith("+")


_ARM_CORES = {
    "0x41": {"0xd08": "Cortex-A72", "0xd0c": "Neoverse N1", "0xd40": "Neoverse V1", "0xd49": "Neoverse N2",
             "0xd4f": "Neoverse V2"},
}  # fmt: skip


def _arm_name(cpu: dict[str, str]) -> str:
    """The name of an ARM processor. Linux reports numbers; the most common ones have names here.

    >>> _arm_name({"CPU implementer": "0x41", "CPU part": "0xd49"})
    'ARM Neoverse N2'
    >>> _arm_name({"CPU implementer": "0x48", "CPU part": "0xd01"})
    'ARM, implementer 0x48, part 0xd01'
    """
    if "CPU implementer" not in cpu:
        return ""
    implementer, part = cpu["CPU implementer"], cpu.get("CPU part", "?")
    name = _ARM_CORES.get(implementer, {}).get(part)
    return f"ARM {name}" if name else f"ARM, implementer {implementer}, part {part}"


def _table(path: Path) -> dict[str, str]:
    """The first value of each name in lines "name : value"."""
    if not path.exists():
        return {}
    table: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        table.setdefault(name.strip(), value.strip())
    return table


def _caches() -> str:
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found)
