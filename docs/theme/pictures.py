"""On the site, comments that name pictures become the pictures, which `make results` draws and nobody commits."""

import re
from pathlib import Path
from typing import Any

PICTURE = re.compile(r"<!-- picture: (\S+) \| (.+?) -->")


def on_page_markdown(markdown: str, config: Any, **kwargs: Any) -> str:
    def shown(match: re.Match[str]) -> str:
        return f"![{match[2]}]({match[1]})" if (Path(config["docs_dir"]) / match[1]).is_file() else ""

    return PICTURE.sub(shown, markdown)
