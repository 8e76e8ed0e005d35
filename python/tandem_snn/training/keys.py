"""Keys of a recipe, each declared once: default, help, allowed values; the checks of their values."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

from ..errors import UserError, check_name, extra

_LABELS = {"data": "data set", "bins": "kind of bins"}  # in messages


class Bound(NamedTuple):
    """A condition on a number, and how messages state it."""

    text: str
    holds: Callable[[float], bool]


POSITIVE = Bound("a positive number", lambda v: 0 < v < math.inf)
FROM_0 = Bound("0 or more", lambda v: 0 <= v < math.inf)
BELOW_1 = Bound("0 or more and less than 1", lambda v: 0 <= v < 1)
FINITE = Bound("a finite number", math.isfinite)


def within(low: float, high: float, unit: str = "") -> Bound:
    return Bound(f"{low:g} to {high:g}{unit}", lambda v: low <= v <= high)


def above_0_to(high: float) -> Bound:
    return Bound(f"more than 0 and at most {high:g}", lambda v: 0 < v <= high)


def key(
    default: Any, help: str, allowed: Bound | Iterable[str] | None = None, *, model: bool = False, neuron: bool = False
) -> Any:
    """A field of :class:`~tandem_snn.training.Recipe`, and an option of ``tandem-snn train``.

    Args:
        allowed: the allowed names, or the bound of a number.
        model: the key is an argument of the model; None leaves the choice to the model.
        neuron: the ANN ignores the key.
    """
    made: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    return field(**made, metadata={"help": help, "allowed": allowed, "model": model, "neuron": neuron})


def check(name: str, allowed: Bound | Iterable[str] | None, value: Any) -> None:
    """Raises UserError if a value of the right type is not allowed."""
    if value is None or allowed is None:
        return
    if not isinstance(allowed, Bound):
        check_name(_LABELS.get(name, name), value, allowed)
    elif not allowed.holds(value):
        raise UserError(f"{name}: expected {allowed.text}, got {value}")


def typed(name: str, hint: Any, value: Any) -> Any:
    """``value`` converted to the type ``hint`` of a field, or UserError."""
    kind, *others = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in others:
        return None
    if isinstance(value, int) and value.bit_length() > 64:
        raise UserError(f"{name}: a number of {value.bit_length()} bits")
    try:
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is int and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if get_origin(kind) is tuple and not isinstance(value, str | Mapping):
            return tuple(typed(name, get_args(kind)[0], item) for item in value)
    except (TypeError, ValueError, OverflowError):
        pass
    if kind is Any or (kind in (bool, str) and isinstance(value, kind)):
        return value
    if get_origin(kind) is dict and isinstance(value, Mapping) and not any(map(_is_many, value.values())):
        return {str(key): typed(str(key), Any, _number(item)) for key, item in value.items()}
    expected = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "a name",
        tuple[int, ...]: "a list of whole numbers, such as [10, 20]",
        tuple[str, ...]: "a list of names, such as [flip]",
        dict[str, Any]: "a mapping of names to single values",
    }
    raise UserError(f"{name}: expected {expected[kind]}, got {reprlib.repr(value)}")


def _is_many(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _number(value: Any) -> Any:
    """A string that is a number, as that number: to YAML 1.1, 1e-3 is a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def from_yaml(text: str, what: str) -> Any:
    """The content of a YAML text: plain lists, mappings, strings, numbers, dates and None."""
    yaml = extra("yaml", "a recipe")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
                raise UserError(f"{what} gives {twice[0]} twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        raise UserError(f"{what} is not YAML: {error}") from error
