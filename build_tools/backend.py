"""PEP 517 backend: that of setuptools, except that torch and a CUDA toolkit are build required where missing.

Naming torch in pyproject.toml would download a second torch into every isolated build environment; leaving it out would
break `pip install .`. setuptools' own hooks are not asked for requirements, because they run setup.py.
"""

from typing import Any

from setuptools.build_meta import *  # noqa: F403  (the hooks that build)

from .compile import installed_torch, is_old, missing_toolkit
from .toolkit import PIP


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """torch, and, if there is a driver or TANDEM_CUDA=1, a CUDA toolkit."""
    torch, toolkit = installed_torch(), missing_toolkit()
    if toolkit:
        print(f"tandem_ext: no CUDA toolkit here, so pip brings that of CUDA {PIP} (100 MB); TANDEM_CUDA=0 declines")
    return [*(["torch>=2.10"] if torch is None or is_old(torch[1]) else []), *toolkit]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Nothing: an sdist compiles nothing."""
    return []
