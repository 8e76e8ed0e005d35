"""Where files are looked for, and what is said when they are not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

Folder = str | os.PathLike[str]
IMAGES = (".jpeg", ".jpg", ".png")


def data_root(name: str, data_dir: Folder | None) -> Path:
    """The folder under which all data sets lie."""
    root = data_dir or os.environ.get("TANDEM_DATA")
    if not root:
        raise UserError(f"data set {name!r} is read from files: give their folder with --data-dir or TANDEM_DATA")
    return Path(root)


def missing(name: str, path: Path, how: str) -> UserError:
    """For a file or folder that is not there."""
    kind = "file" if path.suffix or "ubyte" in path.name or path.name.startswith(("data_", "test_")) else "folder"
    return UserError(f"data set {name!r}: no {kind} {path}: {_explained(how)}")


def damaged(name: str, path: Path, why: object, how: str) -> UserError:
    """For a file that cannot be read."""
    return UserError(f"data set {name!r}: damaged file {path} ({why}): delete it, then {_explained(how)}")


def _explained(how: str) -> str:
    return f"{how}, DIR being your --data-dir or TANDEM_DATA" if "DIR" in how else how


def class_folders(
    name: str, folder: Path, suffixes: Sequence[str], how: str
) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Classes, files and their classes, of a folder that holds one folder per class; all in alphabetical order.

    Hidden folders are no classes. A file counts if its name ends in one of ``suffixes``, in capitals or not.
    """
    if not folder.is_dir():
        raise missing(name, folder, how)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [sorted(path for path in (folder / c).iterdir() if path.suffix.lower() in suffixes) for c in classes]
    wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
    if not any(files):
        raise UserError(f"data set {name!r}: no file {folder}/CLASS/{wanted}: {_explained(how)}")
    empty = [c for c, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise UserError(f"data set {name!r}: no {wanted} in {folder / empty[0]}: {_explained(how)}")
    targets = [i for i, found in enumerate(files) for _ in found]
    return tuple(classes), [path for found in files for path in found], targets
