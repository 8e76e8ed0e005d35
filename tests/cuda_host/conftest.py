from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from harness import Emulator, build, find_toolkit, library_parts

from build_tools.decide import Toolkit


@pytest.fixture(scope="session")
def toolkit() -> Toolkit:
    found = find_toolkit()
    if found is None:
        pytest.skip("needs a CUDA toolkit (nvcc and its headers)")
    if shutil.which("g++") is None:
        pytest.skip("the emulation needs g++")
    return found


def emulate(request: pytest.FixtureRequest, checked: bool) -> Emulator:
    name = "checked" if checked else "plain"
    if folder := os.environ.get("TANDEM_EMULATED"):  # what mutate.py has built
        library = Path(folder) / f"{name}.so"
        if not library.exists():
            pytest.skip(f"{name} is not built")
        return Emulator(library, checked)
    return Emulator(build(name, library_parts(checked), request.getfixturevalue("toolkit").include), checked)


@pytest.fixture(scope="session")
def plain(request: pytest.FixtureRequest) -> Emulator:
    """The kernels, emulated at full speed."""
    return emulate(request, checked=False)


@pytest.fixture(scope="session")
def checked(request: pytest.FixtureRequest) -> Emulator:
    """The kernels, every access watched."""
    return emulate(request, checked=True)
