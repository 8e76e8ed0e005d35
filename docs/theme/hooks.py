"""Links from the documents to files outside of them, which work on the repository, lead there on the site too."""

import re
from typing import Any

OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#]+|results/training[^)]*|results/[^)]+\.json)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The link's text remains."""
    return OUTSIDE.sub(lambda match: f'](#){{title="{match[1].lstrip("./")} in the repository"}}', markdown)
