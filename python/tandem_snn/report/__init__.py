"""The report of a run: one HTML page that needs nothing else."""

from .contents import Contents, gather
from .page import page, write_report

__all__ = ["Contents", "gather", "page", "write_report"]
