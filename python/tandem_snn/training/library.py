"""Recipes as YAML: the package's own by name, from recipes.yaml, others by the path of a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError, check_name
from .keys import from_yaml
from .recipe import Recipe

PACKAGE = Path(__file__).with_name("recipes.yaml")


@cache
def _package() -> dict[str, dict[str, Any]]:
    """The package's recipes by name: their keys, and a description under ``about``."""
    return dict(sorted(_read(PACKAGE).items()))


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package.

    >>> "digits" in list_recipes()
    True
    """
    return list(_package())


def describe(name: str) -> str:
    """A short description of one of the package's recipes.

    >>> describe("mnist")
    '32C3-64C3s2-128C3s2-FC256 on MNIST, as fashion-mnist is trained.'
    """
    about: str = _package()[name]["about"]
    return about


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by name, or from a YAML file.

    A file holds keys of :class:`Recipe`; missing keys have their defaults. ``base`` is another recipe whose keys come
    first: a name, or a path relative to the file.

    Args:
        name: one of :func:`list_recipes`, or a path, which has a slash or ends in .yaml.

    Raises:
        UserError: unknown name, no such file, not YAML, an unknown key.

    >>> load_recipe("digits").data
    'digits'
    """
    return Recipe.from_dict(_keys(str(name), Path(), ()))


def _keys(name: str, folder: Path, derived: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a recipe and of its base."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = folder / name
        what, folder = f"recipe {path}", path.parent
        keys = _read(path)
    else:
        check_name("recipe", name, list_recipes())
        what = f"recipe {name}"
        keys = {key: value for key, value in _package()[name].items() if key != "about"}
    if what in derived:
        raise UserError(f"{what}: its base refers to itself")
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
        keys = from_yaml(path.read_text(errors="replace"), f"recipe {path}")
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from error
    keys = {} if keys is None else keys
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"recipe {path}: expected lines `key: value`")
    return keys
