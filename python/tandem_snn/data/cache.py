"""A cache on disk for what takes long to make from files: decoded images, binned events."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..container import atomically
from ..errors import extra

Tensors = dict[str, Tensor]
_FORMAT = 1


def cache_folder() -> Path:
    """``TANDEM_CACHE``, else ``tandem_snn`` in the user's cache folder."""
    named = os.environ.get("TANDEM_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tandem_snn"


def cached(name: str, parameters: dict[str, Any], files: Iterable[Path], make: Callable[[], Tensors]) -> Tensors:
    """What ``make`` returns, from the cache where it has it.

    An entry belongs to its parameters and to the names, sizes and modification times of ``files``, the files that it
    was made from: when one changes, it is made anew. Entries are written whole or not at all and carry a checksum; a
    damaged one is made anew. A cache that cannot be written costs a warning and time.
    """
    facts = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()]]
    key = json.dumps([_FORMAT, parameters, facts], sort_keys=True)
    path = cache_folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.safetensors"
    tensors = _read(path)
    if tensors is None:
        tensors = make()
        try:
            _write(path, tensors)
        except OSError as error:
            warnings.warn(f"{path} could not be written ({error}): {name} is prepared again next time", stacklevel=2)
    return tensors


def _read(path: Path) -> Tensors | None:
    if not path.is_file():
        return None
    try:
        with extra("safetensors", "the cache").safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("checksum")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception:  # safetensors raises its own class, which its versions name differently
        return None
    return tensors if expected == _checksum(tensors) else None


def _write(path: Path, tensors: Tensors) -> None:
    save_file = extra("safetensors.torch", "the cache").save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"checksum": _checksum(tensors)}))


def _checksum(tensors: Tensors) -> str:
    value = 0
    for key in sorted(tensors):
        value = zlib.crc32(tensors[key].contiguous().numpy().data, zlib.crc32(key.encode(), value))
    return f"{value:08x}"
