"""Files of tensors: safetensors with a format and a checksum, written atomically and verified when read."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .errors import UserError, extra

_FIELD = b'"checksum":"'
_ZEROS = b"0" * 64  # a placeholder for the SHA-256 in hexadecimal
_LARGEST_HEADER = 100_000_000  # bytes, safetensors' own limit


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that even after a power failure ``path`` is the old file or the new one.

    An OSError names ``path``.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder, path.name)
            temporary.write_bytes(content)
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
    except OSError as error:
        raise error if error.errno is None else OSError(error.errno, error.strerror, str(path)) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack(tensors: Mapping[str, Tensor], format: str) -> bytes:
    """Return the bytes of a file of tensors, which may share memory."""
    save = extra("safetensors.torch", "writing a file").save
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, {"format": format, "checksum": _ZEROS.decode()})
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


def unpack(path: Path, format: str, kind: str, writer: str) -> dict[str, Tensor]:
    """Return the tensors of a file, after verifying its sizes and its checksum.

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
    unsigned = header.replace(_FIELD + facts["checksum"].encode(errors="replace"), _FIELD + _ZEROS, 1)
    if _digest(start, unsigned, body) != facts["checksum"]:
        raise UserError(f"{path} is damaged: its {size} bytes do not have the checksum they were written with")
    if (found := facts.get("format", "none")) != format:
        reason = f"its format is {found!r:.80}, this version reads {format!r}"
        raise UserError(f"{path} is not a {kind}, or one that another version of tandem_snn wrote: {reason}")
    load = extra("safetensors.torch", f"a {kind}").load
    try:
        tensors: dict[str, Tensor] = load(b"".join((start, header, body)))
    except Exception as error:  # the class of safetensors' error depends on its version
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    return tensors


def _parse(path: Path, header: bytes, kind: str) -> tuple[dict[str, str], int]:
    """Return the format and checksum in a header, and the size of the tensors that the header describes."""
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
