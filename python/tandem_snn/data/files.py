"""Where files are looked for, and what is said when they are not there."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError

Folder = str | os.PathLike[str]


def data_root(name: str, data_dir: Folder | None) -> Path:
    """The folder under which all data sets lie."""
    root = data_dir or os.environ.get("TANDEM_DATA")
    if not root:
        raise UserError(f"data set {name!r} is read from files: give their folder with --data-dir or TANDEM_DATA")
    return Path(root)


def missing(name: str, path: Path, how: str) -> UserError:
    """For a file or folder that is not there."""
    kind = "file" if path.suffix or "ubyte" in path.name or path.name.startswith(("data_", "test_")) else "folder"
    return UserError(f"data set {name!r}: no {kind} {path}: {how}, DIR being your --data-dir or TANDEM_DATA")


def damaged(name: str, path: Path, why: object, how: str) -> UserError:
    """For a file that cannot be read."""
    return UserError(f"data set {name!r}: damaged file {path} ({why}): delete it, then {how}")


def class_folders(name: str, folder: Path, suffix: str, how: str) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Classes, files and their classes, of a folder that holds one folder per class; all in alphabetical order."""
    if not folder.is_dir():
        raise missing(name, folder, how)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [sorted((folder / c).glob(f"*{suffix}")) for c in classes]
    if not any(files):
        raise UserError(f"data set {name!r}: no file {folder}/CLASS/*{suffix}: {how}")
    empty = [c for c, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise UserError(f"data set {name!r}: no *{suffix} in {folder / empty[0]}: {how}")
    targets = [i for i, found in enumerate(files) for _ in found]
    return tuple(classes), [path for found in files for path in found], targets
