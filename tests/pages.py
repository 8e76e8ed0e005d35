"""The pages of the documentation, and the code on them."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
    """The code of a page in these languages, block by block."""
    return [textwrap.dedent(code) for _, language, code in FENCE.findall(page.read_text()) if language in languages]
