"""What was built, for which processor and card, and what else matters in a report of a bug."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import tandem_ext

from .machine import commit, machine

# Of the extras, and the libraries that networks are exchanged with.
PACKAGES = ("aedat", "matplotlib", "nir", "nirtorch", "norse", "numpy", "onnx", "onnxruntime", "safetensors", "sinabs",
            "snntorch", "spikingjelly", "tonic", "torchvision")  # fmt: skip
STEERING = ("ATEN_", "CUDA_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "PYTORCH_", "TANDEM_", "TORCH")


def info() -> str:
    """Return the facts as lines of text, ``python -m tandem_snn`` prints them: build, machine, torch, environment
    variables that steer them, and packages.

    >>> "cpu_capability" in info()
    True
    """
    build = tandem_ext.build_info() | {"folder": str(Path(tandem_ext.__file__).parent), "commit": commit()}
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(STEERING)}
    sections = (build, _machine(), environment, {package: _version(package) for package in PACKAGES})
    width = max(len(name) for section in sections for name in section)
    blocks = ("\n".join(f"{name:{width}}  {_text(value)}" for name, value in one.items()) for one in sections if one)
    return "\n\n".join(blocks)


def _machine() -> dict[str, str]:
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]
    return {name: str(value) for name, value in machine().items()} | {
        "Python": f"{platform.python_version()}, {sys.executable}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA {_text(torch.version.cuda)}",
        "GPU": "; ".join(gpus) or "none visible to torch",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _text(value: Any) -> str:
    return "none" if value is None else " ".join(value) if isinstance(value, list) else str(value)
