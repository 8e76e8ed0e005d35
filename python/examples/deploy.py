"""Deploy the network of train.py: 8-bit weights, early answers, files for other programs.

    python python/examples/train.py && python python/examples/deploy.py

It writes snn.tandem and images.f32, which the program in cpp/ reads, into the same folder, and snn.onnx and snn.nir if
the packages onnx and nir are installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import tandem_snn as ts
from train import accuracy, arguments, digits, spiking


def export(path: Path, package: str, write: Callable[[Path], None]) -> None:
    if importlib.util.find_spec(package):
        write(path)
        print(f"wrote {path}: {path.stat().st_size / 1000:.0f} kB")
    else:
        print(f"no {path}: {package} is not installed")


def write_nir(path: Path, net: nn.Module, images: Tensor) -> None:
    import nir

    nir.write(str(path), ts.to_nir(net, images))


def main() -> None:
    options = arguments(__doc__).parse_args()
    if not (options.out / "snn.pt").exists():
        sys.exit(f"no {options.out / 'snn.pt'}: python python/examples/train.py writes it")
    saved = torch.load(options.out / "snn.pt", weights_only=True)
    _, images, labels = digits()
    net = spiking(saved["T"]).eval()
    net.load_state_dict(saved["weights"])

    print(f"test accuracy as trained: {accuracy(net, images, labels):.2f} %")
    frozen = ts.freeze(net, weight_bits=8)  # batch norm folded, weights packed, the whole network in one call
    print(f"test accuracy with 8-bit weights: {accuracy(frozen, images, labels):.2f} %")

    logits, steps = frozen.anytime(images, confidence=0.9)  # each image stops at a confidence of 90 %
    right = 100 * (logits.argmax(1) == labels).float().mean().item()
    print(
        f"stopped when 90 % sure: {right:.2f} % of {len(images)} after {steps.float().mean():.1f} of {frozen.T} steps"
    )

    for _ in range(saved["T"]):
        so_far = frozen.step(images[:10])  # one step at a time, as with an event camera or a chip
    assert torch.equal(so_far, frozen(images[:10]))

    export(options.out / "snn.tandem", "safetensors", frozen.save)
    export(options.out / "snn.onnx", "onnx", lambda path: ts.to_onnx(frozen, path, images))
    export(options.out / "snn.nir", "nir", lambda path: write_nir(path, net, images))
    (options.out / "images.f32").write_bytes(images[:10].numpy().tobytes())
    assert torch.equal(ts.load(options.out / "snn.tandem")(images), frozen(images))


if __name__ == "__main__":
    main()
