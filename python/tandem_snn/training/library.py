"""Recipes as YAML files: those that come with the package, by name, and any other, by path."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from ..errors import UserError, check_name
from .recipe import Recipe
from .values import LARGEST, from_yaml

FOLDER = Path(__file__).parents[1] / "recipes"


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package.

    >>> "digits" in list_recipes()
    True
    """
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def describe(name: str) -> str:
    """What a recipe of the package is, in a sentence or two: the comment that its file begins with.

    >>> describe("mnist")
    '32C3-64C3s2-128C3s2-FC256 on MNIST, as fashion-mnist is trained.'
    """
    lines = _path(name, FOLDER).read_text().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.strip("# ") for line in comment)


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
    path = _path(str(name), Path())
    return Recipe.from_dict(_read(path, ()))


def _path(name: str, folder: Path) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        return folder / name
    check_name("recipe", name, list_recipes())
    return FOLDER / f"{name}.yaml"


def _read(path: Path, derived: tuple[Path, ...]) -> dict[str, Any]:
    if path in derived:
        raise UserError(f"recipe {path}: its base leads back to itself")
    if path.exists() and not path.is_file():
        raise UserError(f"recipe {path} is not a file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from error
    values = from_yaml(content.decode(errors="replace"), f"recipe {path}")
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"recipe {path}: expected lines `key: value`")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"recipe {path}: base: expected a recipe's name or path, got {base!r}")
    return _read(_path(base, path.parent), (*derived, path)) | values
