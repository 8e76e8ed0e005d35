"""Save and load a frozen network as one file: its program, the program's data, and the names of its layers.

The file contains no code, and the executor checks the program.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from ..container import atomically, pack, unpack
from ..errors import UserError
from .program import Facts, decode, encode
from .stages import CannotLower, Stages

FORMAT = "tandem_snn frozen 3"


def write(path: str | PathLike[str], stages: Stages, facts: Facts) -> None:
    """Write the file atomically.

    Raises:
        ValueError: the network cannot be saved; the message names the layer.
    """
    program, numbers = encode(stages, facts)
    names = "\n".join(stage.name for stage in stages.stages).encode()
    tensors = {"program": program, "numbers": numbers, "names": torch.frombuffer(bytearray(names), dtype=torch.uint8)}
    content = pack(tensors, {}, FORMAT)
    atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def read(path: str | PathLike[str]) -> tuple[Stages, Facts]:
    """Read a file, and check its sizes, checksum and program.

    Raises:
        UserError: the file does not exist, is not a frozen network, is damaged, has another version, or its network is
            not valid.
    """
    path = Path(path)
    tensors, _ = unpack(path, FORMAT, "frozen network", "FrozenNetwork.save()")
    try:
        if set(tensors) != {"program", "numbers", "names"}:
            raise ValueError(f"it has the tensors {sorted(tensors)}")
        names = bytes(tensors["names"].tolist()).decode().split("\n")
        if not all(name.isprintable() for name in names):
            raise ValueError("a layer's name is no text")
        return decode(tensors["program"], tensors["numbers"], names)
    except Exception as error:  # an untrusted file may make torch raise anything
        why = f"layer {error.layer!r:.80}: {error.why}" if isinstance(error, CannotLower) else str(error)
        raise UserError(f"{path} is not a frozen network that can be: {why[:300]}") from error
