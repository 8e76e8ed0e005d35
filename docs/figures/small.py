"""Pictures small enough to be committed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image


def save(figure: Any, path: Path, dpi: int = 96) -> None:
    """Writes a figure of matplotlib as a PNG of 24 colours; the same figure gives the same bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(24).save(path, optimize=True)
