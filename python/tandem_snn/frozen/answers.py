"""The answers of a network: numbers, in dicts, lists and tuples."""

from collections.abc import Iterator
from typing import Any

from .instruction import CannotLower

Path = tuple[str, ...]  # keys, and numbers of items: "(0)" of a tuple, "[0]" of a list


def named(answer: Any, path: Path = ()) -> Iterator[tuple[str, Any]]:
    """Yield what an answer holds, by its path as a name, such as "boxes.[0]"; of a single answer the name is ""."""
    if isinstance(answer, dict):
        for key, item in answer.items():
            if not _is_key(key):
                raise CannotLower("net", f"it returns a dict with the key {key!r}: expected names")
            yield from named(item, (*path, key))
    elif isinstance(answer, list | tuple):
        for n, item in enumerate(answer):
            yield from named(item, (*path, f"[{n}]" if isinstance(answer, list) else f"({n})"))
    else:
        yield ".".join(path), answer


def numbered(answer: Any, numbers: Iterator[int]) -> Any:
    """Return the structure of an answer, with numbers as leaves; of its types only those of tuples with names stay."""
    if isinstance(answer, dict):
        return {key: numbered(item, numbers) for key, item in answer.items()}
    if not isinstance(answer, list | tuple):
        return next(numbers)
    items = [numbered(item, numbers) for item in answer]
    if hasattr(answer, "_fields"):
        return type(answer)(*items)
    return items if isinstance(answer, list) else tuple(items)


def structured(names: list[str]) -> Any:
    """Return the structure of answers with these names, with their numbers as leaves; ValueError if there is none."""
    return _structured([(tuple(name.split(".")) if name else (), n) for n, name in enumerate(names)])


def _structured(paths: list[tuple[Path, int]]) -> Any:
    if len(paths) == 1 and not paths[0][0]:
        return paths[0][1]
    parts: dict[str, Any] = {}
    for path, number in paths:
        if not path:
            raise ValueError("the names of its answers are no structure")
        parts.setdefault(path[0], []).append((path[1:], number))
    items = {key: _structured(part) for key, part in parts.items()}
    if list(items) == [f"({n})" for n in range(len(items))]:
        return tuple(items.values())
    if list(items) == [f"[{n}]" for n in range(len(items))]:
        return list(items.values())
    if not all(map(_is_key, items)):
        raise ValueError("the names of its answers are no structure")
    return items


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and key.isprintable() and "." not in key and key[:1] not in ("", "(", "[")
