"""The results page, made from what training runs have written: ``python -m tandem_snn.results --help``."""

from .page import write
from .result import Result, read

__all__ = ["Result", "read", "write"]
