"""The machine, versions and commit of a measurement."""

from __future__ import annotations

import os
import platform
import re
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


def total_memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
