"""Checkpoints: safetensors files that carry facts as JSON and a checksum, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, extra
from .recipe import Recipe

Facts = dict[str, Any]
_FORMAT = "tandem_snn 1"
_FIELD = b'"checksum":"'
_ZEROS = b"0" * 64  # a SHA-256 in hexadecimal stands in their place


def atomically(path: Path, write: Callable[[Path], object], *, keep: Path | None = None) -> None:
    """Has ``write`` write to a temporary file beside ``path``, which then takes its place at once.

    File and folder are flushed to the disk, so that a power failure too leaves the old file or the new one.

    Args:
        keep: where the old file goes, if there is one, once the new one is complete.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        _flush(temporary)
        if keep is not None and path.exists():
            path.replace(keep)
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


def pack(tensors: Mapping[str, Tensor], facts: Facts) -> bytes:
    """A checkpoint's bytes.

    Args:
        tensors: copied to the CPU; they may share memory.
        facts: what JSON can hold, by name.
    """
    save = extra("safetensors.torch", "a checkpoint").save
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = {name: json.dumps(value) for name, value in facts.items()}
    content = bytearray(save(copies, {**text, "format": _FORMAT, "checksum": _ZEROS.decode()}))
    start = content.index(_FIELD + _ZEROS) + len(_FIELD)
    content[start : start + len(_ZEROS)] = hashlib.sha256(content).hexdigest().encode()
    return bytes(content)


def unpack(path: Path) -> tuple[dict[str, Tensor], Facts]:
    """The tensors and facts of a checkpoint, after its checksum was compared.

    Raises:
        UserError: no such file, not a checkpoint, or any byte differs from what was written.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: `tandem-snn train` writes one")
    content = bytearray(path.read_bytes())
    try:
        length = int.from_bytes(content[:8], "little")
        facts = json.loads(content[8 : 8 + length])["__metadata__"]
        checksum = facts.pop("checksum").encode()
        start = content.index(_FIELD + checksum, 8, 8 + length) + len(_FIELD)
    except KeyError:
        raise UserError(f"{path} was not written by tandem-snn: it carries no checksum") from None
    except (ValueError, AttributeError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is damaged: its header cannot be read") from error
    content[start : start + len(_ZEROS)] = _ZEROS
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        raise UserError(f"{path} is damaged: its {len(content)} bytes do not have the checksum they were written with")
    if facts.pop("format") != _FORMAT:
        raise UserError(f"{path} was written by another version of tandem-snn")
    tensors = extra("safetensors.torch", "a checkpoint").load(bytes(content))
    return tensors, {name: json.loads(text) for name, text in facts.items()}


def save_checkpoint(path: Path, net: nn.Module, recipe: Recipe, **facts: Any) -> None:
    """Writes the network's state_dict, with the recipe and further facts.

    Args:
        path: a file name ending in .safetensors.
        facts: what JSON can hold.
    """
    content = pack(net.state_dict(), {"recipe": recipe.to_dict(), **facts})
    atomically(path, lambda temporary: temporary.write_bytes(content))


def read_recipe(path: Path) -> Recipe:
    """The recipe a checkpoint was trained by.

    Raises:
        UserError: no such file, not a checkpoint, or damaged.
    """
    _, facts = unpack(path)
    return recipe_of(path, facts)


def recipe_of(path: Path, facts: Facts) -> Recipe:
    if "recipe" not in facts:
        raise UserError(f"{path} carries no recipe")
    return Recipe.from_dict(facts["recipe"])


def load_checkpoint(path: Path, net: nn.Module) -> Facts:
    """Loads a checkpoint's weights into ``net``.

    Returns:
        The checkpoint's facts.

    Raises:
        UserError: no such file, damaged, or the checkpoint of another model.
    """
    tensors, facts = unpack(path)
    load_weights(path, tensors, net)
    return facts


def load_weights(path: Path, state: Mapping[str, Tensor], net: nn.Module) -> None:
    """Copies ``state``, read from ``path``, into ``net``, if every entry fits."""
    own = net.state_dict()
    differing = [name for name in {**own, **state} if _shape(own, name) != _shape(state, name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} is the checkpoint of another model: {name} is {_shape(state, name)} there and {_shape(own, name)} "
            f"in the model ({len(differing)} of {len(own)} entries differ)"
        )
    net.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(list(state[name].shape)) if name in state else "absent"


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating-point value is a number."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
