"""Load the compiled extension, which registers torch.ops.tandem.

The environment variable ``TANDEM_LIBRARY`` may name another build of it, even one for another version of Python,
because the ops do not depend on that version.
"""

import os
import warnings
from typing import Any

import torch  # before _C, which links against torch's libraries

from ._torch import has_kernel


def _load(library: str | None) -> dict[str, Any]:
    if library is not None:
        torch.ops.load_library(library)
        cuda = has_kernel("tandem::if_scan", "CUDA")
        return {"library": library, "cuda_archs": ["unknown"] if cuda else None}
    try:
        from . import _C
    except ImportError as error:
        if "TANDEM_" in str(error):  # a variable with a value that is not allowed
            raise
        raise ImportError(
            f"tandem_ext's compiled part could not be loaded ({error}). If {os.path.dirname(__file__)} is a source "
            "folder, build it first: `pip install .` (or `make ext` to build in place), or run from another folder to "
            "use the installed package."
        ) from error
    info: dict[str, Any] = _C.build_info()
    if (versions := info.pop("cuda_versions", None)) is not None and (note := _old_driver(*versions)):
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


BUILD_INFO = _load(os.environ.get("TANDEM_LIBRARY"))
CUDA_ARCHS: list[str] | None = BUILD_INFO["cuda_archs"]
KERNELS = os.environ.get("TANDEM_KERNELS") != "0"


def has_kernels(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether this build has kernels for a device and the dtype of weights or currents; else torch computes."""
    compiled = device.type == "cpu" or (device.type == "cuda" and CUDA_ARCHS is not None)
    return KERNELS and compiled and dtype != torch.float64


def build_info() -> dict[str, Any]:
    """Return how this extension was built.

    Returns:
        A dict: ``version``, ``torch_target`` (the oldest supported torch), ``cuda_archs`` (a list, or None for a
        build without CUDA kernels), ``cpu_capability`` (the instruction set chosen on this machine) and ``compiler``.

    >>> te.build_info()["cpu_capability"] in ("default", "v3", "v4")
    True
    """
    return dict(BUILD_INFO)
