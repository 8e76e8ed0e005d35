"""Products of real-valued inputs are torch's convolutions: never one that reads or writes foreign memory, and the same
bits in evaluation, frozen and in a stream. Each check is a process of its own, since torch may end it.
"""

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from first_layers import Shape

ROOT = Path(__file__).parents[1]
# glibc's own checks of the heap, which find most writes beyond an array.
CHECKED = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    checked = CHECKED if sys.platform == "linux" and ctypes.util.find_library("c_malloc_debug") else {}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "python"), str(ROOT / "tests")])
    env = {**os.environ, **checked, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)


def one_column(dtype: str, layout: str) -> Shape:
    """Of outputs: torch's channels-last convolution reads foreign memory."""
    return Shape(8, 1, 16, (9, 5), (5, 5), (1, 3), (0, 0), (1, 1), 1, dtype, layout)


def strided_point(channels: int, size: int = 128) -> Shape:
    """torch's channels-last gradient of the weight writes beyond it."""
    return Shape(4, channels, 48, (size, size), (1, 1), (2, 2), (0, 0), (1, 1))


FAULTS = [
    *(one_column(dtype, layout) for dtype in ("float32", "bfloat16") for layout in ("contiguous", "channels last")),
    *map(strided_point, (2, 3, 15)),
    Shape(1, 3, 32, (64, 64), (3, 3), (1, 1), (1, 1), (1, 1)),  # another layout has other bits
]


@pytest.mark.parametrize("shape", FAULTS, ids=str)
def test_what_torch_gets_wrong_channels_last(shape: Shape) -> None:
    done = run("-c", f"from first_layers import *; torch.manual_seed(0); check({shape})")
    assert done.returncode == 0, done.stderr[-2000:]


def test_some_shapes() -> None:
    done = run("tests/first_layers.py", "0", "100")
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 12_000, 1000))
def test_ten_thousand_shapes(first: int) -> None:
    done = run("tests/first_layers.py", str(first), str(first + 1000))
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr[-2000:]
