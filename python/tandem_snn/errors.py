"""Errors of the user. Each message is one line and says what to do."""

import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """Wrong input, such as a file, or a missing package."""


def abridged(names: Iterable[object], most: int = 12) -> str:
    """Return names as text for an error message, shortened to the first ``most``."""
    shown = [f"{name!s:.60}" for name in names]
    return ", ".join(shown[:most]) + f" and {len(shown) - most} more" * (len(shown) > most)


def extra(module: str, purpose: str) -> ModuleType:
    """Import an optional dependency; raise UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = (error.name or module).split(".")[0]  # it may be a dependency of the module
        raise UserError(f'{purpose} needs {absent} ({error}): pip install "tandem-ext[all]"') from error
