"""Values from YAML that a stranger may have written: nothing is built before its size and kind are known."""

from __future__ import annotations

from typing import Any

from ..errors import UserError, extra

LARGEST = 100_000  # bytes; recipes have a few hundred
_DEEPEST = 10


def from_yaml(text: str, what: str) -> Any:
    """What the text says, in plain lists, mappings, strings, numbers, dates and None.

    Args:
        what: names the text in messages.

    Raises:
        UserError: not YAML, longer than ``LARGEST``, nested more than ten times, or with aliases, by which a short text
            can stand for an endless value.

    >>> from_yaml("a: [1, true]", "this")
    {'a': [1, True]}
    """
    yaml = extra("yaml", "a recipe")
    if len(text) > LARGEST:
        raise UserError(f"{what} is longer than {LARGEST} characters")
    depth, refused = 0, None
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                refused = "has aliases (*)" if depth <= _DEEPEST else f"is nested more than {_DEEPEST} times"
                break
        else:
            return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that there is not
        raise UserError(f"{what} is not YAML: {error}") from error
    raise UserError(f"{what} {refused}: write the values out")
