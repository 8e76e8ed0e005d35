from __future__ import annotations

import os
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


def emulate(request: pytest.FixtureRequest, checked: bool) -> Emulator:
    if ready := os.environ.get("TANDEM_EMULATED"):  # what mutate.py has built
        return Emulator(Path(ready) / ("checked.so" if checked else "plain.so"), checked)
    toolkit, folder = request.getfixturevalue("toolkit"), request.getfixturevalue("build_folder")
    sources = [*kernel_sources(), HERE / "entry.cpp"]
    name = "checked" if checked else "plain"
    return Emulator(build(sources, toolkit.include, folder / name, checked), checked)


@pytest.fixture(scope="session")
def plain(request: pytest.FixtureRequest) -> Emulator:
    """The kernels, emulated at full speed."""
    return emulate(request, checked=False)


@pytest.fixture(scope="session")
def checked(request: pytest.FixtureRequest) -> Emulator:
    """The kernels, every access watched."""
    return emulate(request, checked=True)
