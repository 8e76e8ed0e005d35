"""Errors of the user. Each message is one line and says what to do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any


class UserError(ValueError):
    """Wrong input, such as a file, or a missing package."""


def listing(names: Iterable[object], most: int = 12) -> str:
    """Return names as text for an error message, shortened to the first ``most``."""
    shown = [f"{name!s:.60}" for name in names]
    return ", ".join(shown[:most]) + f" and {len(shown) - most} more" * (len(shown) > most)


def moved(module: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__``, which says where names that are gone went."""

    def missing(name: str) -> Any:
        if name in where:  # an ImportError, since `from module import name` replaces an AttributeError's text
            raise ImportError(f"{module}.{name} is gone since 0.2.0: {where[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing


def extra(module: str, purpose: str) -> ModuleType:
    """Import an optional dependency; raise UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = (error.name or module).split(".")[0]  # it may be a dependency of the module
        raise UserError(f'{purpose} needs {absent} ({error}): pip install "tandem-ext[all]"') from error
