"""Checkpoints: a network's weights, with the recipe that trained it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import container
from ..container import Facts, atomically
from ..errors import UserError
from .recipe import Recipe

_FORMAT = "tandem_snn 1"
pack = partial(container.pack, format=_FORMAT)
unpack = partial(container.unpack, format=_FORMAT, kind="checkpoint", writer="`tandem-snn train`")


def save_checkpoint(path: str | os.PathLike[str], net: nn.Module, recipe: Recipe, **facts: Any) -> None:
    """Writes the network's state_dict, with the recipe and further facts.

    Args:
        path: a file name ending in .safetensors.
        facts: values that JSON can represent.

    Raises:
        UserError: the file cannot be written.

    >>> save_checkpoint("net.safetensors", torch.nn.Linear(3, 2), Recipe(), note="any JSON value")
    """
    content = pack(net.state_dict(), {"recipe": recipe.to_dict(), **facts})
    atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe a checkpoint was trained by.

    Raises:
        UserError: no such file, not a checkpoint, or damaged.

    >>> net = torch.nn.Linear(3, 2)
    >>> save_checkpoint("net.safetensors", net, Recipe(T=4))
    >>> read_recipe("net.safetensors").T
    4
    """
    path = Path(path)
    _, facts = unpack(path)
    return recipe_of(path, facts)


def recipe_of(path: Path, facts: Facts) -> Recipe:
    if "recipe" not in facts:
        raise UserError(f"{path} contains no recipe")
    return Recipe.from_dict(facts["recipe"])


def load_checkpoint(path: str | os.PathLike[str], net: nn.Module) -> Facts:
    """Loads a checkpoint's weights into ``net``.

    Returns:
        The checkpoint's facts.

    Raises:
        UserError: no such file, a damaged one, or the checkpoint of another model.

    >>> recipe = Recipe(model="FC16")
    >>> net = recipe.build(recipe.load())
    >>> save_checkpoint("net.safetensors", net, recipe, epoch=3)
    >>> load_checkpoint("net.safetensors", net)["epoch"]
    3
    """
    path = Path(path)
    tensors, facts = unpack(path)
    load_weights(path, tensors, net)
    return facts


def load_weights(path: Path, state: Mapping[str, Tensor], net: nn.Module) -> None:
    """Copies ``state``, read from ``path``, into ``net``. Every entry must fit."""
    own = net.state_dict()
    differing = [name for name in {**own, **state} if _shape(own, name) != _shape(state, name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} is the checkpoint of another model: {name} is {_shape(state, name)} there and {_shape(own, name)} "
            f"in the model ({len(differing)} entries differ)"
        )
    net.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(list(state[name].shape)) if name in state else "absent"


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every floating-point value is finite."""
    return all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())
