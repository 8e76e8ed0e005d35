"""Files of tensors and metadata: safetensors with JSON and a checksum, written atomically and verified when read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import UserError, extra

Metadata = dict[str, Any]
_FIELD = b'"checksum":"'
_ZEROS = b"0" * 64  # a placeholder for the SHA-256 in hexadecimal
_LARGEST_HEADER = 100_000_000  # bytes, safetensors' own limit


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: ``write`` is given a temporary path in the same folder, which then replaces ``path``.

    File and folder are flushed to the disk, so that even after a power failure ``path`` is the old file or the new one.
    An OSError names ``path``.
    """
    try:
        _atomically(path, write)
    except OSError as error:
        raise error if error.errno is None else OSError(error.errno, error.strerror, str(path)) from error


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack(tensors: Mapping[str, Tensor], facts: Metadata, format: str) -> bytes:
    """Return the bytes of a file of tensors, which may share memory, and of facts, values that JSON can represent."""
    save = extra("safetensors.torch", "writing a file").save
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = {name: json.dumps(value) for name, value in facts.items()}
    content = save(copies, {**text, "format": format, "checksum": _ZEROS.decode()})
    end = 8 + int.from_bytes(content[:8], "little")
    # safetensors writes the metadata in any order
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    start, body = len(header).to_bytes(8, "little"), memoryview(content)[end:]
    signed = header.replace(_FIELD + _ZEROS, _FIELD + _digest(start, header, body).encode(), 1)
    return b"".join((start, signed, body))


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def unpack(path: Path, format: str, kind: str, writer: str) -> tuple[dict[str, Tensor], Metadata]:
    """Return the tensors and metadata of a file, after verifying its sizes and its checksum.

    An untrusted file is safe to read: no code in it is executed, and no more memory than the file's size is allocated.

    Args:
        format: the expected name and version of the file format.
        kind, writer: the kind of file and the command that writes it, for error messages.

    Raises:
        UserError: the file does not exist, has another format, or is damaged.
    """
    if not path.is_file():
        raise UserError(f"no {kind} {path}: {writer} writes one")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{path} is damaged, or not a {kind}: its header cannot be read")
        header = file.read(length)
        facts, end = _parse(path, header, kind)
        if size != 8 + length + end:
            raise UserError(f"{path} is damaged: it has {size} bytes, and its header says {8 + length + end}")
        body = file.read()
    checksum = facts.pop("checksum")
    unsigned = header.replace(_FIELD + checksum.encode(), _FIELD + _ZEROS, 1)
    if _digest(start, unsigned, body) != checksum:
        raise UserError(f"{path} is damaged: its {size} bytes do not have the checksum they were written with")
    found = facts.pop("format", "none")
    if found != format:
        which = f"its format is {found!r:.80}, this version reads {format!r}"
        raise UserError(f"{path} is not a {kind}, or one that another version of tandem_snn wrote: {which}")
    try:
        tensors = extra("safetensors.torch", f"a {kind}").load(b"".join((start, header, body)))
        return tensors, {name: json.loads(text) for name, text in facts.items()}
    except UserError:
        raise
    except Exception as error:  # safetensors' error class depends on its version; JSON may raise RecursionError
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error


def _parse(path: Path, header: bytes, kind: str) -> tuple[dict[str, str], int]:
    """Return the metadata in a header, as text, and the size of the tensors that the header describes."""
    try:
        entries = json.loads(header)
        facts = dict(entries.pop("__metadata__", {}))
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if not all(isinstance(text, str) for text in facts.values()):
            raise TypeError("facts are text")
    except (ValueError, AttributeError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged, or not a {kind}: its header cannot be read") from error
    if "checksum" not in facts:
        raise UserError(f"{path} was not written by tandem_snn: it carries no checksum")
    return facts, end
