"""Checkpoints: safetensors files that carry their recipe, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..errors import UserError, extra
from .recipe import Recipe


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` write to a temporary file beside ``path``, which then takes its place at once."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, net: nn.Module, recipe: Recipe, **metadata: str) -> None:
    """Writes the network's state_dict, with the recipe and further strings as metadata."""
    save_file = extra("safetensors.torch", "a checkpoint").save_file
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    facts = {"format": "tandem_snn 1", "recipe": json.dumps(recipe.to_dict()), **metadata}
    atomically(path, lambda temporary: save_file(state, temporary, metadata=facts))


def read_recipe(path: Path) -> Recipe:
    """The recipe a checkpoint was trained by.

    Raises:
        UserError: no such file, not a checkpoint, or damaged.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: `tandem-snn train` writes one")
    try:
        with extra("safetensors", "a checkpoint").safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
        return Recipe.from_dict(json.loads(facts["recipe"]))
    except KeyError:
        raise UserError(f"{path} was not written by tandem-snn: it carries no recipe") from None
    except UserError:
        raise
    except Exception as error:  # safetensors raises its own class, which its versions name differently
        raise UserError(f"{path} is damaged ({error}): train again") from error


def load_checkpoint(path: Path, net: nn.Module) -> None:
    """Loads a checkpoint's weights into ``net``.

    Raises:
        UserError: no such file, damaged, or the checkpoint of another model.
    """
    read_recipe(path)
    try:
        state = extra("safetensors.torch", "a checkpoint").load_file(path)
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged ({error}): train again") from error
    own = net.state_dict()
    differing = [name for name in {**own, **state} if _shape(own, name) != _shape(state, name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{path} is the checkpoint of another model: {name} is {_shape(state, name)} there and {_shape(own, name)} "
            f"in the model ({len(differing)} of {len(own)} entries differ)"
        )
    net.load_state_dict(state)


def _shape(state: dict, name: str) -> str:  # type: ignore[type-arg]
    return str(list(state[name].shape)) if name in state else "absent"
