"""``tandem-snn info``: what a bug report needs."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table

from tandem_ext import build_info

_OPTIONAL = ("matplotlib", "rich", "safetensors", "scikit-learn", "torchvision", "typer")


def info() -> None:
    """Print how the package was built and what it runs on."""
    table = Table(show_header=False)
    for name, value in build_info().items():
        table.add_row(name, "none" if value is None else " ".join(value) if isinstance(value, list) else str(value))
    table.add_section()
    table.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none visible to torch"
    table.add_row("GPU", gpu)
    table.add_row("Python", f"{platform.python_version()} on {platform.platform()}")
    table.add_row("TANDEM_DATA", os.environ.get("TANDEM_DATA", "not set"))
    table.add_section()
    for package in _OPTIONAL:
        table.add_row(package, _version(package))
    Console().print(table)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
