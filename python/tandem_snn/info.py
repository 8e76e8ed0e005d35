"""What was built, for which processor and card: for reports of bugs and beside measurements."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import tandem_ext
from tandem_ext._load import has_kernels

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
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]
    software = {
        "Python": f"{platform.python_version()}, {sys.executable}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA {torch.version.cuda or 'none'}",
        "GPU": "; ".join(gpus) or "none visible to torch",
    }
    kernels = [device for device in ("cpu", "cuda") if has_kernels(torch.device(device))]
    built = {"kernels": f"{', '.join(kernels) or 'none'}; elsewhere and in float64 torch's operators run"}
    sections: tuple[dict[str, Any], ...] = (
        tandem_ext.build_info() | built | {"folder": str(Path(tandem_ext.__file__).parent), "commit": commit()},
        machine() | software,
        {name: value for name, value in sorted(os.environ.items()) if name.startswith(STEERING)},
        {package: _version(package) or "not installed" for package in PACKAGES},
    )
    width = max(len(name) for section in sections for name in section)
    blocks = ("\n".join(f"{name:{width}}  {_text(value)}" for name, value in part.items()) for part in sections if part)
    return "\n\n".join(blocks)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(value: Any) -> str:
    return "none" if value is None else " ".join(value) if isinstance(value, list) else str(value)


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
    found = {"python": platform.python_version(), "torch": torch.__version__, "tandem_ext": tandem_ext.build_info()}
    return found | {package: version for package in PACKAGES if (version := _version(package))}


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
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * changed


def origin(command: str) -> dict[str, Any]:
    """Return the origin of a result: command, machine, versions and commit."""
    return {"command": command, "commit": commit(), "machine": machine(), "versions": versions()}


def total_memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
