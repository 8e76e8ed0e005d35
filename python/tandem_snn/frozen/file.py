"""A frozen network as one file: how its layers are wired and what they are set to as JSON, their numbers as tensors.

The file holds no code and no compiled program: the program is made anew by the library that loads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..container import atomically, pack, unpack
from ..errors import UserError
from ..nn.quantise import check_bits
from .layers import layer_of, settings_of
from .quantise import Grid
from .wiring import INPUT, Use, Wired, wiring

FORMAT = "tandem_snn frozen 1"
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_STEP = ".step"  # of weights on a grid: the file has their integers, and one step per output channel


@dataclass(frozen=True)
class Contents:
    """What the file holds; see :class:`tandem_snn.FrozenNetwork`."""

    net: nn.Module
    T: int | None
    shape: tuple[int, ...] | None
    weight_bits: int | None
    grids: Mapping[str, Grid]


def write(path: str | PathLike[str], contents: Contents) -> None:
    """Writes the file, whole or not at all.

    Raises:
        ValueError: a file cannot hold the network; the message names the layer.
    """
    uses = wiring(contents.net)
    layers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(use.layer for use in uses):
        layer = contents.net.get_submodule(name)
        own = {key: value.detach().cpu() for key, value in (*layer.named_parameters(), *layer.named_buffers())}
        own = {key: own[key] for key in layer.state_dict()}
        try:
            layers[name] = settings_of(layer)
            layer_of(layers[name], own)  # what cannot be read shall not be written
        except (TypeError, ValueError) as error:
            raise ValueError(f"net: layer {name!r} cannot be saved: {error}") from error
        if name in contents.grids:
            grid = contents.grids[name]
            own |= {"weight": grid.q.to(torch.int8), "weight" + _STEP: grid.step}
        tensors |= {f"{name}.{key}": value for key, value in own.items()}
    facts = {
        "layers": layers,
        "uses": [[use.layer, use.x, use.residual, use.fire] for use in uses],
        "T": contents.T,
        "shape": contents.shape,
        "weight_bits": contents.weight_bits,
    }
    content = pack(tensors, facts, FORMAT)
    atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def read(path: str | PathLike[str]) -> Contents:
    """What a file holds, after its sizes, its checksum and every setting were checked.

    Raises:
        UserError: no such file, not a frozen network, damaged, of another version, or a network that cannot be.
    """
    path = Path(path)
    tensors, facts = unpack(path, FORMAT, "frozen network", "FrozenNetwork.save()")
    try:
        return _contents(facts, tensors)
    except Exception as error:  # a hostile file may fail in ways that torch's constructors choose
        raise UserError(f"{path} is not a frozen network that can be: {error}") from error


def _contents(facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> Contents:
    T, bits = facts["T"], facts["weight_bits"]
    check_bits(bits)
    if T is not None and (type(T) is not int or not 1 <= T <= 255):
        raise ValueError(f"T: expected an int from 1 to 255, got {T!r:.80}")
    layers: dict[str, nn.Module] = {}
    grids: dict[str, Grid] = {}
    for name, settings in facts["layers"].items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"a layer's name has letters, digits, _ and dots, got {name!r:.80}")
        keys = [key for key in tensors if key.startswith(f"{name}.")]
        own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in keys}
        if "weight" + _STEP in own:
            grids[name] = Grid(own["weight"], own.pop("weight" + _STEP))
            own["weight"] = grids[name].weight()
        try:
            layers[name] = layer_of(settings, own)
        except (TypeError, ValueError) as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    if tensors:
        raise ValueError(f"tensor {min(tensors)!r:.80} belongs to no layer")
    return Contents(Wired(layers, _uses(facts["uses"], layers)), T, _shape(facts["shape"]), bits, grids)


def _shape(sizes: Any) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, list) or len(sizes) > 4 or any(type(n) is not int or not 0 < n < 2**16 for n in sizes):
        raise ValueError(f"shape: expected up to 4 sizes, got {sizes!r:.80}")
    if math.prod(sizes) > 2**31:
        raise ValueError(f"shape: {sizes} has more than 2^31 features")
    return tuple(sizes)


def _uses(rows: Any, layers: Mapping[str, nn.Module]) -> list[Use]:
    uses = []
    for number, (name, x, residual, fire) in enumerate(rows):
        if name not in layers or type(fire) is not bool:
            raise ValueError(f"use {number}: no layer {name!r:.80}")
        for value in (x, residual):
            if value is not None and (type(value) is not int or not INPUT <= value < number):
                raise ValueError(f"use {number}: expected the number of an earlier use, got {value!r:.80}")
        if x is None:
            raise ValueError(f"use {number}: it has no input")
        uses.append(Use(name, x, residual, fire))
    if not uses:
        raise ValueError("it has no layers")
    return uses
