"""Values from YAML that a stranger may have written: nothing is built before its size and kind are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import UserError, extra

LARGEST = 100_000  # bytes; recipes have a few hundred
_DEEPEST = 10


def from_yaml(text: str, what: str) -> Any:
    """What the text says, in plain lists, mappings, strings, numbers, dates and None.

    Args:
        what: names the text in messages.

    Raises:
        UserError: not YAML, a key given twice, longer than ``LARGEST``, nested more than ten times, or with aliases, by
            which a short text can stand for an endless value.

    >>> from_yaml("a: [1, true]", "this")
    {'a': [1, True]}
    """
    yaml = extra("yaml", "a recipe")
    if len(text) > LARGEST:
        raise UserError(f"{what} is longer than {LARGEST} characters")
    try:
        refused = _refused(yaml, text)
        if refused is None:
            return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that there is not
        raise UserError(f"{what} is not YAML: {error}") from error
    raise UserError(f"{what} {refused}")


def _refused(yaml: Any, text: str) -> str | None:
    """Why nothing is built from the text, if so."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            return f"is nested more than {_DEEPEST} times: write the values out"
        if isinstance(event, yaml.AliasEvent):
            return "has aliases (*): write the values out"
    twice = next(_repeated(yaml.compose(text, yaml.SafeLoader)), None)
    return None if twice is None else f"gives {twice} twice"


def _repeated(node: Any) -> Iterator[str]:
    """The keys that a mapping has more than once, throughout a composed text; YAML itself takes the last of them."""
    if node is None or node.id == "scalar":
        return
    if node.id == "sequence":
        for item in node.value:
            yield from _repeated(item)
        return
    seen: set[str] = set()
    for key, value in node.value:
        if key.id == "scalar" and key.value in seen:
            yield key.value
        seen.add(str(key.value))
        yield from _repeated(value)
