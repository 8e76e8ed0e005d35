"""python/examples/cpp: a program without Python and torch gives the counts that Python gives."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import own_counts, trained
from torch import Tensor, nn

import tandem_snn as ts
import tandem_snn.nn as tnn

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "python" / "examples" / "cpp"
pytest.importorskip("safetensors", reason="safetensors is not installed")


def text(frozen: ts.FrozenNetwork, x: Tensor, answers: bool = False) -> str:
    """What the program prints."""
    counts, answer = own_counts(frozen.net, x)
    firing = [n for n, m in frozen.net.named_modules() if isinstance(m, (tnn.SpikingLayer, tnn.AvgPool2d))]
    lines = [f"layer {name}: {int(c.sum())} spikes" for name, c in zip(firing, counts, strict=True)]
    for i, row in enumerate(answer):
        numbers = "".join(f" {value:.9g}" for value in row.tolist()) if answers else ""
        lines.append(f"sample {i}: class {int(row.argmax())}{numbers}")
    return "\n".join(lines) + "\n"


def digits() -> Tensor:
    return torch.frombuffer(bytearray((EXAMPLE / "digits.f32").read_bytes()), dtype=torch.float32).view(-1, 1, 8, 8)


def test_the_example_s_expected_output_is_python_s() -> None:
    """The C++ tests compare the program's output with this file."""
    expected = (EXAMPLE / "digits.txt").read_text()
    assert text(ts.load_frozen(EXAMPLE / "digits.tandem"), digits()) == expected
    assert expected in (ROOT / "docs" / "deploy.md").read_text()


@torch.no_grad()
def dyadic(net: nn.Module) -> nn.Module:
    """Weights in 64ths: the sums of the first layer and of the readout, which are floats there and here, are exact."""
    for layer in net.modules():
        if isinstance(layer, (tnn.SpikingLayer, tnn.Readout)):
            layer.weight.copy_((layer.weight * 128).round() / 64)
            if layer.bias is not None:
                layer.bias.copy_((layer.bias * 64).round() / 64)
    return net.eval()


def convolutional() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.Encoder(11),
        tnn.Conv2d(3, 12, 3, padding="same", dilation=2, norm=True),
        tnn.MaxPool2d(3, 2, 1),
        tnn.Conv2d(12, 24, 3, stride=2, padding=(2, 1), groups=3, norm=True, leak=0.75, v_init=0.25),
        tnn.AvgPool2d(2, v_init=0.25),
        tnn.Residual(tnn.Conv2d(24, 24, 3, padding=1, threshold=torch.rand(24) + 0.5, v_init=0.5)),
        tnn.Dropout(),
        tnn.Flatten(),
        tnn.Linear(24 * 4, 20, gate="resu"),
        tnn.Readout(20, 10),
    )
    return dyadic(trained(net, torch.rand(4, 3, 11, 15))), torch.randint(0, 16, (5, 3, 11, 15)) / 16


def vector() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.Encoder(4, mode="zero_expand", gain=2.0), tnn.Linear(9, 12, gain=0.5), tnn.Linear(12, 7), tnn.Readout(7, 3)
    )
    return dyadic(net), torch.randint(0, 64, (3, 9)) / 16


def converted() -> tuple[nn.Module, Tensor]:
    ann = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randint(0, 16, (6, 1, 8, 8)) / 16
    return dyadic(ts.convert(ann, 8)), x


@pytest.fixture(scope="module")
def classify(tmp_path_factory: Any) -> Path:
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("cmake or ninja is not installed")
    folder = tmp_path_factory.mktemp("cpp")

    def cmake(*arguments: object) -> None:
        subprocess.run(["cmake", *map(str, arguments)], check=True, capture_output=True, text=True)

    def build(source: Path, name: str, *options: str) -> None:
        cmake("-S", source, "-B", folder / name, "-G", "Ninja", *options)
        cmake("--build", folder / name, "--parallel", os.environ.get("MAX_JOBS", "2"))

    build(ROOT, "kernels", "-DTANDEM_CUDA=0", "-DTANDEM_TESTS=OFF")
    cmake("--install", folder / "kernels", "--prefix", folder / "prefix")
    build(EXAMPLE, "example", f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}")
    return folder / "example" / "classify"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("make", [convolutional, vector, converted])
def test_networks(make: Any, bits: int | None, classify: Path, tmp_path: Path) -> None:
    net, x = make()
    frozen = ts.freeze(net, weight_bits=bits)
    if bits is not None:  # the steps are not dyadic: make the numbers so
        for name, grid in frozen.grids.items():
            grid.step.copy_(2.0 ** grid.step.log2().round())
            frozen.net.get_submodule(name).weight.data.copy_(grid.weight())
    frozen(x)
    frozen.save(tmp_path / "net.tandem")
    (tmp_path / "x.f32").write_bytes(x.numpy().tobytes())
    done = run(classify, tmp_path / "net.tandem", tmp_path / "x.f32", "--answers")
    assert done.stderr == ""
    counts = own_counts(frozen.net, x)[0]
    assert all(c.sum() > 0 for c in counts)
    assert done.stdout == text(frozen, x, answers=True)


@pytest.mark.slow
def test_files_that_are_not_ours(classify: Path, tmp_path: Path) -> None:
    content = (EXAMPLE / "digits.tandem").read_bytes()
    path, x = tmp_path / "net", EXAMPLE / "digits.f32"
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        done = run(classify, path, x)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    for position in range(0, 3000, 61):  # its header: no checksum is compared, so it may run, but never crashes
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert run(classify, path, x).returncode in (0, 1)
    assert run(classify, path).returncode == 2
    assert "cannot open" in run(classify, tmp_path / "none", x).stderr
    assert "number of samples" in run(classify, EXAMPLE / "digits.tandem", EXAMPLE / "digits.txt").stderr
