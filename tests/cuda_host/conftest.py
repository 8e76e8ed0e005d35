from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import HERE, Emulator, build, find_toolkit, kernel_sources

from build_tools.decide import Toolkit


@pytest.fixture(scope="session")
def toolkit() -> Toolkit:
    found = find_toolkit()
    if found is None:
        pytest.skip("needs a CUDA toolkit (nvcc and its headers)")
    return found


@pytest.fixture(scope="session")
def build_folder(toolkit: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("the emulation needs g++")
    return tmp_path_factory.mktemp("cuda_host")


@pytest.fixture(scope="session")
def plain(toolkit: Toolkit, build_folder: Path) -> Emulator:
    """The kernels, emulated at full speed."""
    sources = [*kernel_sources(), HERE / "entry.cpp"]
    return Emulator(build(sources, toolkit.include, build_folder / "plain", checked=False), checked=False)


@pytest.fixture(scope="session")
def checked(toolkit: Toolkit, build_folder: Path) -> Emulator:
    """The kernels, every access watched."""
    sources = [*kernel_sources(), HERE / "entry.cpp"]
    return Emulator(build(sources, toolkit.include, build_folder / "checked", checked=True), checked=True)
