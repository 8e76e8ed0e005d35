"""Errors of the user, and interruptions. Each message is one line and says what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """Wrong input, such as a name, a file or an option. The command line prints it without a traceback."""


class Interrupted(Exception):
    """A run received ``signal``, a request to stop, and stopped after writing a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def listing(names: Iterable[object], most: int = 12) -> str:
    """Return names as text for an error message, shortened to the first ``most``."""
    shown = [f"{name!s:.60}" for name in names]
    return ", ".join(shown[:most]) + f" and {len(shown) - most} more" * (len(shown) > most)


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UserError, with the nearest known name, unless ``name`` is in ``known``.

    >>> check_name("data set", "digit", ["digits", "mnist"])
    Traceback (most recent call last):
    tandem_snn.errors.UserError: unknown data set 'digit': did you mean 'digits'? (known: digits, mnist)
    """
    known = list(known)
    if name not in known:
        by_letters = {other.lower(): other for other in known}
        near = difflib.get_close_matches(name.lower(), by_letters, n=1, cutoff=0.5)
        hint = f": did you mean {by_letters[near[0]]!r}?" if near else ""
        raise UserError(f"unknown {kind} {name!r:.80}{hint} (known: {', '.join(known)})")


def extra(module: str, purpose: str) -> ModuleType:
    """Import an optional dependency; raise UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = (error.name or module).split(".")[0]  # it may be a dependency of the module
        package = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"}.get(absent, absent)
        raise UserError(f'{purpose} needs {package} ({error}): pip install "tandem-ext[all]"') from error
