"""Pages of which programs write a part: the text between two comments."""

from __future__ import annotations


def with_table(page: str, name: str, table: str) -> str:
    """The page with another text between the comments that begin and end the table ``name``.

    >>> with_table("<!-- begin a -->\\nold\\n<!-- end a -->", "a", "new")
    '<!-- begin a -->\\nnew\\n<!-- end a -->'
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{table.strip()}\n{end}{after}"
