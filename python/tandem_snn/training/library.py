"""Recipes as YAML files: those that come with the package, by name, and any other, by path.

A file of the package may hold ``variants``: ``t4`` in fashion-mnist.yaml is the recipe fashion-mnist-t4, with all keys
of fashion-mnist that it does not give itself; ``about`` is its description.
"""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError, check_name
from .keys import LARGEST, from_yaml
from .recipe import Recipe

FOLDER = Path(__file__).parents[1] / "recipes"


@cache
def _package() -> dict[str, tuple[str, dict[str, Any]]]:
    """Descriptions and keys of the recipes that come with the package, by name."""
    found = {}
    for path in FOLDER.glob("*.yaml"):
        keys = _read(path)
        variants = keys.pop("variants", {})
        comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        found[path.stem] = " ".join(line.strip("# ") for line in comment), keys
        for name, changes in variants.items():
            found[f"{path.stem}-{name}"] = changes.pop("about"), {"base": path.stem} | changes
    return dict(sorted(found.items()))


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package.

    >>> "digits" in list_recipes()
    True
    """
    return list(_package())


def describe(name: str) -> str:
    """What a recipe of the package is, in a sentence or two.

    >>> describe("mnist")
    '32C3-64C3s2-128C3s2-FC256 on MNIST, as fashion-mnist is trained.'
    """
    return _package()[name][0]


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by name, or from a YAML file.

    A file holds keys of :class:`Recipe`; what it leaves out has the default. ``base`` names a recipe whose keys it
    takes over first, by name, or by a path that is relative to the file.

    Args:
        name: one of :func:`list_recipes`, or a path: something with a slash or the ending .yaml.

    Raises:
        UserError: unknown name, no such file, not YAML, an unknown key.

    >>> load_recipe("digits").data
    'digits'
    """
    return Recipe.from_dict(_keys(str(name), Path(), ()))


def _keys(name: str, folder: Path, derived: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a recipe, its base's included."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = folder / name
        what, folder = f"recipe {path}", path.parent
        keys = _read(path)
    else:
        check_name("recipe", name, list_recipes())
        what, keys = f"recipe {name}", dict(_package()[name][1])
    if what in derived:
        raise UserError(f"{what}: its base leads back to itself")
    base = keys.pop("base", None)
    if base is None:
        return keys
    if not isinstance(base, str):
        raise UserError(f"{what}: base: expected a recipe's name or path, got {base!r}")
    return _keys(base, folder, (*derived, what)) | keys


def _read(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise UserError(f"recipe {path} is not a file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from error
    keys = from_yaml(content.decode(errors="replace"), f"recipe {path}")
    keys = {} if keys is None else keys
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"recipe {path}: expected lines `key: value`")
    return keys
