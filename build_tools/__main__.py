"""``python -m build_tools [FILE]``: the extension for any Python, without bindings, which TANDEM_LIBRARY names."""

import sys
from pathlib import Path

from .compile import GROUPS, build, make_plan

if __name__ == "__main__":
    library = Path(*sys.argv[1:2] or ["build/tandem_ops.so"])
    build(make_plan(), GROUPS[1:], library)
    print(library)
