import shutil
from pathlib import Path

import pytest
from harness import Emulator, build_kernels, find_toolkit

from build_tools.decide import Toolkit


@pytest.fixture(scope="session")
def toolkit() -> Toolkit:
    found = find_toolkit()
    if found is None:
        pytest.skip("needs a CUDA toolkit (nvcc and its headers)")
    if shutil.which("g++") is None:
        pytest.skip("the machine that runs PTX needs g++")
    return found


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Path:
    """All kernels, as PTX, and the machine that executes it."""
    return build_kernels(request.getfixturevalue("toolkit"))


@pytest.fixture
def plain(library: Path) -> Emulator:
    """The kernels; the checker watches only shared memory."""
    return Emulator(library, checked=False)


@pytest.fixture
def checked(library: Path) -> Emulator:
    """The kernels; the checker watches every access."""
    return Emulator(library, checked=True)
