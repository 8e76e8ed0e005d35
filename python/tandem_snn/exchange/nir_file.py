"""NIR files that a stranger may have written: nothing is allocated before the file is known to hold as much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import memory
from ..errors import UserError, extra

_DENSEST = 1100  # gzip packs at most 1,032 bytes into one
_DEEPEST = 16


def read_nir(path: Path) -> tuple[Any, tuple[int, ...]]:
    """The graph in a file, and the version of nir that wrote it.

    Raises:
        UserError: no file, not one of NIR's, or one that declares more numbers than it holds, leads to other files, or
            is nested beyond reason.
    """
    nir = extra("nir", "the import of NIR")
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with extra("h5py", "the import of NIR").File(path, "r") as file:
            _check(file, "", 0)
        version = extra("nir.serialization", "the import of NIR").read_version(path)
        return nir.read(path), tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    except Exception as error:  # h5py and nir raise what they meet
        raise UserError(f"{path} is not a NIR file that can be read ({type(error).__name__}: {error})") from error


def _check(group: Any, where: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"groups are nested more than {_DEEPEST} times")
    for name in group:
        place = f"{where}/{name}"
        if type(group.get(name, getlink=True)).__name__ != "HardLink":
            raise ValueError(f"{place} is a link to another place")
        if group.get(name, getclass=True).__name__ == "Group":
            _check(group[name], place, depth + 1)
        else:
            _check_values(group[name], place)


def _check_values(values: Any, place: str) -> None:
    if values.external or values.is_virtual:
        raise ValueError(f"{place} lies in another file")
    stored = values.id.get_storage_size()
    if values.nbytes > _DENSEST * stored or values.nbytes > memory.total():
        raise ValueError(f"{place} declares {values.nbytes:,} bytes, and the file holds {stored:,} for it")
