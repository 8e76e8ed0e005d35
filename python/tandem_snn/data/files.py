"""The folders of files, errors for missing and damaged files, and a cache for slow conversions."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..container import atomically, pack, unpack
from ..errors import UserError, listing

Folder = str | os.PathLike[str]
IMAGES = (".jpeg", ".jpg", ".png")
Listing = tuple[list[Path], list[int]]  # files, and the class of each


def data_root(name: str, data_dir: Folder | None) -> Path:
    root = data_dir or os.environ.get("TANDEM_DATA")
    if not root:
        raise UserError(f"data set {name!r} needs files: give their folder with --data-dir or TANDEM_DATA")
    return Path(root)


def missing(name: str, path: Path, how: str) -> UserError:
    kind = "file" if path.suffix else "folder"
    return UserError(f"data set {name!r}: no {kind} {path}: {explained(how)}")


def damaged(name: str, path: Path, why: object, how: str) -> UserError:
    return UserError(f"data set {name!r}: damaged file {path} ({why}): delete it, then {explained(how)}")


def explained(how: str) -> str:
    """``how``, with what its DIR is."""
    return f"{how}, where DIR is your --data-dir or TANDEM_DATA" if "DIR" in how else how


def class_folders(
    name: str, folder: Path, suffixes: Sequence[str], how: str, expected: Sequence[str] | None = None
) -> tuple[tuple[str, ...], Listing]:
    """(classes, (files, class of each file)) of a folder with one folder per class, in alphabetical order."""
    if not folder.is_dir():
        raise missing(name, folder, how)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [sorted(path for path in (folder / c).iterdir() if path.suffix.lower() in suffixes) for c in classes]
    wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
    if not any(files):
        raise UserError(f"data set {name!r}: no file {folder}/CLASS/{wanted}: {explained(how)}")
    empty = [c for c, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise UserError(f"data set {name!r}: no {wanted} in {folder / empty[0]}: {explained(how)}")
    if expected is not None and (differing := sorted({*classes}.symmetric_difference(expected))):
        unlike = f"unlike the expected classes in {listing(differing)}"
        raise UserError(f"data set {name!r}: {folder} holds {listing(classes)}, {unlike}: {explained(how)}")
    targets = [i for i, found in enumerate(files) for _ in found]
    return tuple(classes), ([path for found in files for path in found], targets)


Tensors = dict[str, Tensor]
_FORMAT = "tandem_snn data 2"


def cache_folder() -> Path:
    """``TANDEM_CACHE``, else ``tandem_snn`` in the user's cache folder."""
    named = os.environ.get("TANDEM_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tandem_snn"


def cached(name: str, parameters: dict[str, Any], files: Iterable[Path], make: Callable[[], Tensors]) -> Tensors:
    """The result of ``make``, from the cache if it is there.

    The key of an entry is its parameters and the names, sizes and modification times of its source ``files``: if one
    changes, the entry is made again. Entries are written atomically, with a checksum; a damaged one is made again. If
    the cache cannot be written, that is a warning.
    """
    facts = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()]]
    key = json.dumps([_FORMAT, parameters, facts], sort_keys=True)
    path = cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"
    with suppress(UserError):  # there is none, or it is damaged
        return unpack(path, _FORMAT, "entry", "the cache")[0]
    tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomically(path, lambda temporary: temporary.write_bytes(pack(tensors, {}, _FORMAT)))
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}): {name} is prepared again next time", stacklevel=2)
    return tensors
