"""Python in a process of its own, which finds the modules that this one finds."""

import os
import subprocess
import sys
from pathlib import Path


def start(*arguments, **environment):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(*arguments, **environment):
    """What it prints; it ends well."""
    process = start(*arguments, **environment)
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, "\n".join(out.splitlines()[-1:]) + err[-3000:]
    return out
