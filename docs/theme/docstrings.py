"""Docstrings for the site: roles such as :func:`name` become code, examples with >>> become code blocks; the help
of a recipe's key is its docstring.
"""

import ast
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|data|attr|mod):`~?([^`]+)`")
EXAMPLE = re.compile(r"(?:^[ ]*(?:>>>|\.\.\.)[^\n]*\n?(?:^[ ]*[^\s>][^\n]*\n?)*)+", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        """``name: type = key(default, "help")``."""
        call = getattr(node, "value", None)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "key":
            attr.docstring = griffe.Docstring(ast.literal_eval(call.args[1]), parent=attr)
            attr.value = ast.unparse(call.args[0])

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    text = ROLE.sub(r"`\1`", text)
    return EXAMPLE.sub(lambda match: f"\n```python\n{match[0].rstrip()}\n```\n", text)
