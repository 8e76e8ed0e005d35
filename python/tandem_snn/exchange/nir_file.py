"""Read NIR files, which may be untrusted: sizes are checked before memory is allocated. Convert their arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import memory
from ..errors import UserError, extra

_DENSEST = 1100  # the largest compression ratio to accept; gzip's is 1,032
_DEEPEST = 16


def read_nir(path: Path) -> tuple[Any, tuple[int, ...]]:
    """Return the graph in a file, and the version of nir that wrote it; raise UserError if the file is not valid."""
    nir = extra("nir", "the import of NIR")
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with extra("h5py", "the import of NIR").File(path, "r") as file:
            _check(file, "", 0)
        version = extra("nir.serialization", "the import of NIR").read_version(path)
        return nir.read(path), tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    except Exception as error:  # h5py and nir may raise anything for an invalid file
        raise UserError(f"{path} is not a NIR file that can be read ({type(error).__name__}: {error})") from error


def _check(group: Any, where: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"groups are nested more than {_DEEPEST} times")
    for name in group:
        place = f"{where}/{name}"
        if type(group.get(name, getlink=True)).__name__ != "HardLink":
            raise ValueError(f"{place} is a link to another place")
        values = group[name]
        if group.get(name, getclass=True).__name__ == "Group":
            _check(values, place, depth + 1)
            continue
        if values.external or values.is_virtual:
            raise ValueError(f"{place} lies in another file")
        stored = values.id.get_storage_size()
        if values.nbytes > _DENSEST * stored or values.nbytes > memory.total():
            raise ValueError(f"{place} declares {values.nbytes:,} bytes, and the file holds {stored:,} for it")


def plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))


def numbers(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return plain(value)
    array = np.asarray(value)
    return int(array) if array.ndim == 0 else tuple(int(v) for v in array)


def uniform(name: str, what: str, values: Any) -> float:
    first, *others = np.unique(np.asarray(values))
    if others:
        raise ValueError(f"node {name!r}: {what} must be the same for all neurons")
    return float(first)


def near_one(factor: float) -> float:
    """Return 1 if the factor differs from 1 only by the rounding of float32, else the factor."""
    return 1.0 if math.isclose(factor, 1.0, rel_tol=2**-23) else factor


def compact(scale: Tensor) -> Tensor:
    """Return a 0-dim factor if all factors are equal, else all factors."""
    first = scale.flatten()[0]
    return first if bool((scale == first).all()) else scale


def by_channel(values: Tensor) -> float | Tensor | None:
    """Return one number if all values are equal, [C] if each channel has one value, else None."""
    values = compact(values)
    if not values.dim():
        return values.item()
    rows = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    return rows[:, 0].clone() if bool((rows == rows[:, :1]).all()) else None


def per_channel(name: str, what: str, values: float | Tensor) -> float | Tensor:
    found = by_channel(torch.as_tensor(values))
    if found is None:
        raise ValueError(f"node {name!r}: {what} must be the same throughout a channel")
    return found
