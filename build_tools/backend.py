"""PEP 517 backend: that of setuptools, except that torch is a build requirement only if it is not installed.

Naming torch in pyproject.toml would download a second torch into every isolated build environment; leaving it out would
break `pip install .`. setuptools' own hooks are not asked for requirements, because they run setup.py.
"""

import importlib.util
from typing import Any

from setuptools.build_meta import *  # noqa: F403  (the hooks that build)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """torch if it is missing, that is, in an isolated build environment."""
    return [] if importlib.util.find_spec("torch") else ["torch>=2.10"]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Nothing: an sdist compiles nothing."""
    return []
