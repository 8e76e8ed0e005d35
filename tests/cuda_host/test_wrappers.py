"""The instructions of ptx.cuh on the machine: the results that `make gpu-check` asks of the hardware."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from gpu import check, golden, timing
from harness import ROOT, Emulator, build, machine_parts
from neuron_layers import Layer, pack
from products import LINEAR, fire

from build_tools.decide import Plan, Toolkit


@pytest.fixture(scope="module")
def wrappers(toolkit: Toolkit) -> Path:
    return build("wrappers", machine_parts([ROOT / "tests" / "gpu" / "wrappers.cu"]), toolkit)


@pytest.mark.parametrize("name", golden.GOLDEN)
def test_golden(wrappers: Path, name: str) -> None:
    stream = ctypes.CDLL(str(wrappers)).emulation_stream
    stream.restype = ctypes.c_void_p
    golden.check(wrappers, name, torch.device("cpu"), stream())


def test_either_tile_by_force(wrappers: Path, plain: Emulator) -> None:
    """Those of gpu-check's timings: the same spikes, in blocks of other sizes."""
    g = torch.Generator().manual_seed(0)
    spikes, weight = torch.rand(8, 33, 1, 1, 48, generator=g) < 0.3, torch.randn(64, 1, 1, 48, generator=g)
    given = Layer(torch.zeros(8, 33, 64), 8)
    want = fire(plain, LINEAR, given, spikes, weight)["planes"]
    digits, planes = plain.buffers["prepared"][1], pack(spikes).view(1, 33, 48)
    found = {}
    for tile, multiprocessors in timing.TILES.items():
        plain.begin()
        card, stream = (multiprocessors, 100 * 1024), plain.stream.value
        got = timing.forced_linear(plain.lib._name, wrappers, planes, digits, 64, card, stream)
        assert torch.equal(got.view_as(want), want)
        found[tile] = plain.counted("product_if")[2]
    assert found == {"wide": 2 * 8, "deep": 3 * 2 * 8}


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
