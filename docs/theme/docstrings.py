"""Docstrings for the site: roles such as :func:`name` become code, examples with >>> become code blocks."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|data|attr|mod):`~?([^`]+)`")
EXAMPLE = re.compile(r"(?:^[ ]*(?:>>>|\.\.\.)[^\n]*\n?(?:^[ ]*[^\s>][^\n]*\n?)*)+", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    text = ROLE.sub(r"`\1`", text)
    return EXAMPLE.sub(lambda match: f"\n```python\n{match[0].rstrip()}\n```\n", text)
