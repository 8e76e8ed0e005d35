"""Load the compiled extension, which registers torch.ops.tandem.

The environment variable ``TANDEM_LIBRARY`` may name another build of it, such as the one that ``python -m build_tools``
links: of the ops alone, for any version of Python.
"""

import ctypes
import os
import warnings
from typing import Any

import torch  # before _C, which links against torch's libraries


def _load(library: str | None) -> dict[str, Any]:
    if library is not None:
        torch.ops.load_library(library)
    else:
        try:
            from . import _C  # noqa: F401
        except ImportError as error:
            if "TANDEM_" in str(error):  # a variable with a value that is not allowed
                raise
            raise ImportError(
                f"tandem_ext's compiled part could not be loaded ({error}). If {os.path.dirname(__file__)} is a source "
                "folder, build it first: `pip install .` (or `make ext` to build in place), or run from another folder "
                "to use the installed package."
            ) from error
    lines = torch.ops.tandem.build_info.default().splitlines()
    info: dict[str, Any] = dict(line.split(" ", 1) for line in lines)
    info["cuda_archs"] = info["cuda_archs"].split() if "cuda_archs" in info else None
    if library is not None:
        info["library"] = library
    versions = (int(info.pop(name, 0)) for name in ("cuda_toolkit", "cuda_driver"))
    if note := _old_driver(*versions) or _no_kernels(info["cuda_archs"]):
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    return info


def _old_driver(toolkit: int, driver: int) -> str | None:
    """Return a warning if the driver is too old for the kernels. Version 13000 is CUDA 13.0; 0 means no driver."""
    if driver == 0 or driver // 1000 >= toolkit // 1000:
        return None
    has, needs = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, toolkit))
    return (
        f"tandem_ext's CUDA kernels were built with CUDA {needs} and need a driver that supports it; this machine's "
        f"supports CUDA {has}, and every call on a GPU will fail. Update the driver, or build tandem_ext with a "
        f"toolkit of CUDA {driver // 1000}."
    )


def _no_kernels(archs: list[str] | None) -> str | None:
    """Return a warning if torch sees GPUs, and kernels for ``archs`` run on none of them."""
    if not KERNELS or torch.version.cuda is None or not torch.cuda.device_count():
        return None
    again = "`TANDEM_CUDA=1 pip install .` builds them, or says what is missing"
    if archs is None:
        return f"torch sees a GPU; this tandem_ext has no kernels for it, torch's operators run there, slower: {again}"
    cards = _capabilities()
    if not cards or any(_runs(arch, card) for arch in archs for card in cards):
        return None
    has = ", ".join(f"{major}.{minor}" for major, minor in cards)
    return (
        f"the GPU has compute capability {has}, this tandem_ext has kernels for {', '.join(archs)}, and its calls will "
        f"fail; {again}, for 7.5 and newer"
    )


def _runs(arch: str, card: tuple[int, int]) -> bool:
    """Return whether code for an architecture, "8.0", "9.0a" or "9.0+PTX", runs on a card."""
    number = arch.removesuffix("+PTX")
    own = tuple(map(int, number.rstrip("af").split(".")))
    if number[-1] == "a":
        return own == card
    return own <= card and (own[0] == card[0] or arch != number)


def _capabilities() -> list[tuple[int, int]]:
    """Return the compute capabilities of all GPUs, by NVML: torch.cuda would start CUDA, and forks must come before."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count, device, major, minor = ctypes.c_uint(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    found: list[tuple[int, int]] = []
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return found
    for i in range(count.value):
        if not nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(device)):
            nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
            found.append((major.value, minor.value))
    return found


KERNELS = os.environ.get("TANDEM_KERNELS") != "0"
BUILD_INFO = _load(os.environ.get("TANDEM_LIBRARY"))
CUDA_ARCHS: list[str] | None = BUILD_INFO["cuda_archs"]


def has_kernels(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether this build has kernels for a device and the dtype of weights or currents; else torch computes."""
    compiled = device.type == "cpu" or (device.type == "cuda" and CUDA_ARCHS is not None)
    return KERNELS and compiled and dtype != torch.float64


def build_info() -> dict[str, Any]:
    """Return how this extension was built.

    Returns:
        A dict: ``version``, ``torch_target`` (the oldest supported torch), ``cuda_archs`` (a list, or None for a
        build without CUDA kernels), ``cpu_capability`` (the instruction set chosen on this machine), ``byte_products``
        (by which instructions bytes are multiplied) and ``compiler``.

    >>> te.build_info()["cpu_capability"] in ("default", "v3", "v4")
    True
    """
    return dict(BUILD_INFO)
