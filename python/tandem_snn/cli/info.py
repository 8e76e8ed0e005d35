"""``tandem-snn info``: what a bug report needs."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import tandem_ext

from ..machine import commit, machine

# The extra "all", numpy, and the libraries that networks are exchanged with.
PACKAGES = ("aedat", "matplotlib", "nir", "nirtorch", "norse", "numpy", "onnx", "onnxruntime", "pyyaml", "rich",
            "safetensors", "scikit-learn", "sinabs", "snntorch", "spikingjelly", "tensorboard", "tonic", "torchvision",
            "typer")  # fmt: skip
STEERING = ("ATEN_", "CUDA_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "PYTORCH_", "TANDEM_", "TORCH")


def info() -> None:
    """Print all that a bug report needs: build, machine, torch, environment variables and packages."""
    table = Table(show_header=False)
    for section in _build(), _machine(), _environment(), _packages():
        for name, value in section.items():
            table.add_row(name, value)
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a pasted report has no broken lines


def _build() -> dict[str, str]:
    built = tandem_ext.build_info() | {"folder": str(Path(tandem_ext.__file__).parent), "commit": commit()}
    return {name: _text(value) for name, value in built.items()}


def _machine() -> dict[str, str]:
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]
    return {name: str(value) for name, value in machine().items()} | {
        "Python": f"{platform.python_version()}, {sys.executable}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA {_text(torch.version.cuda)}",
        "GPU": "; ".join(gpus) or "none visible to torch",
    }


def _environment() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(STEERING)}


def _packages() -> dict[str, str]:
    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {package: version(package) for package in PACKAGES}


def _text(value: Any) -> str:
    return "none" if value is None else " ".join(value) if isinstance(value, list) else str(value)
