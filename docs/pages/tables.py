"""Pages of which programs write a part: the text between two comments."""

from collections.abc import Iterable, Sequence


def with_table(page: str, name: str, lines: Iterable[str]) -> str:
    """The page with other text between the comments that begin and end the table ``name``.

    >>> with_table("<!-- begin a -->\\nold\\n<!-- end a -->", "a", ["new"])
    '<!-- begin a -->\\nnew\\n<!-- end a -->'
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    text = "\n".join(lines).strip()
    return f"{before}{begin}{text}\n{end}{after}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, and an empty one."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def machine_of(result: dict[str, object]) -> str:
    """Where it was measured, in words."""
    machine = result["machine"]
    assert isinstance(machine, dict)
    return f"{machine['cpu']}, family {machine['family']}, {machine['cores']} cores"
