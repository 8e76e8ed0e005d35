"""Optional packages: a test that needs one which is not installed is skipped, and says which extra has it."""

from typing import Any

import pytest

OTHERS = {
    "docs": ("mkdocs", "mkdocstrings"),
    "test": ("onnxruntime",),
    "all": ("aedat", "h5py", "matplotlib", "nir", "onnx", "safetensors", "scipy", "sklearn", "tonic", "torchvision"),
}


def extra_of(module: str) -> str:
    """Tools that drive or check our networks are in "clients"."""
    package = module.partition(".")[0]
    return next((extra for extra, packages in OTHERS.items() if package in packages), "clients")


def needs(module: str) -> Any:
    """Return the module, or skip the test."""
    return pytest.importorskip(module, reason=f"{module} is not installed: extra {extra_of(module)}")
