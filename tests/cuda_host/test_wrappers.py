"""The instructions of ptx.cuh on the machine: the results that `make gpu-check` asks of the hardware."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from gpu import check, golden
from harness import ROOT, build, machine_parts

from build_tools.decide import Plan, Toolkit


@pytest.fixture(scope="module")
def library(toolkit: Toolkit) -> Path:
    return build("wrappers", machine_parts([ROOT / "tests" / "gpu" / "wrappers.cu"]), toolkit)


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_golden(library: Path, name: str) -> None:
    stream = ctypes.CDLL(str(library)).emulation_stream
    stream.restype = ctypes.c_void_p
    golden.check(library, name, torch.device("cpu"), stream())


def test_every_wrapper_has_one() -> None:
    text = (ROOT / "csrc" / "kernels" / "cuda" / "ptx.cuh").read_text()
    for name in ("cp_async", "ldmatrix", "mma", "dot", "fire", "add_wide"):
        assert f" {name}(" in text
    # seven of them copy, two each are ldmatrix, mma, fire, and empty
    assert len(re.findall(r"\basm\b", text)) == 17
    copies = ["cp_async_1", "cp_async_16", "cp_async_4", "cp_async_8"]
    assert sorted(golden.GOLDEN) == ["add_wide", *copies, "dot", "fire", "fire_leaky", "ldmatrix", "ldmatrix_2", "mma"]


def test_they_compile_for_gpus(toolkit: Toolkit, tmp_path: Path) -> None:
    assert check.build_wrappers(tmp_path / "wrappers.so", Plan(toolkit, ("7.5", "9.0+PTX"))) is None
