"""A training run; prints digests of its spikes.

test_emulated_ops.py runs it with the emulated CUDA kernels and with the CPU kernels: the digests have to agree. All
sums of spikes are exact, and torch's operators compute the rest in both runs.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

import tandem_snn.nn as tnn
from tandem_ext import SpikeTrain


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()[:16]


def training() -> None:
    """A small training run whose weights stay on a dyadic grid, so that no sum of the gradients rounds."""
    torch.manual_seed(0)
    net = nn.Sequential(
        tnn.Conv2d(2, 16, 3, padding=1, norm=True),
        tnn.MaxPool2d(2),
        tnn.Residual(tnn.Conv2d(16, 16, 3, padding=1, norm=True)),
        tnn.Conv2d(16, 24, 3, stride=2, padding=1, threshold=0.5, leak=0.5),
        tnn.Flatten(),
        tnn.Linear(24 * 2 * 2, 32, v_init=0.5),
        tnn.Readout(32, 4),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=1 / 16, momentum=0.5)
    labels = torch.arange(12) % 4
    rates = 0.1 + 0.2 * labels.view(1, -1, 1, 1, 1)
    trains: list[torch.Tensor] = []

    def record(module: nn.Module, inputs: Any, out: Any) -> None:
        trains.append(out.planes if isinstance(out, SpikeTrain) else out)

    for layer in net:
        layer.register_forward_hook(record)
    for step in range(6):
        spikes = torch.rand(10, 12, 2, 8, 8, generator=torch.Generator().manual_seed(step)) < rates
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_((parameter * 64).round() / 64)
        loss = nn.functional.cross_entropy(net(SpikeTrain.from_dense(spikes)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"{loss.item():.6f}", digest(*trains))


if __name__ == "__main__":
    training()
