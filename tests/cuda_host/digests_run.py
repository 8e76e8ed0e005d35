"""A training run, and networks in evaluation, frozen and as a stream; prints digests of the results.

    python tests/cuda_host/digests_run.py training|networks

test_emulated_ops.py runs it with the emulated CUDA kernels and with the CPU kernels: the digests have to agree. All
sums of spikes are exact, and torch's operators compute the rest (the first product of an image, and the readout) in
both runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from typing import Any

import torch
from torch import nn

import tandem_snn
import tandem_snn.nn as tnn
from tandem_ext import SpikeTrain
from tandem_snn.frozen.graph import capture


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


def mlp(timing: str) -> nn.Module:
    return nn.Sequential(
        tnn.Encoder(T=8),
        tnn.Linear(20, 72, norm=True, timing=timing),
        tnn.Linear(72, 40, timing=timing),
        tnn.Linear(40, 24, weight_bits=4, timing=timing),
        tnn.Readout(24, 5),
    )


def images(timing: str) -> nn.Module:
    return nn.Sequential(
        tnn.Encoder(T=11),
        tnn.Conv2d(2, 16, 3, padding=1, timing=timing),
        tnn.Residual(tnn.Conv2d(16, 16, 3, padding=1, norm=True, timing=timing)),
        tnn.Conv2d(16, 16, 3, padding=1, groups=16, norm=True, timing=timing),
        tnn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2, norm=True, timing=timing),
        tnn.Flatten(),
        tnn.Linear(32 * 16, 24, norm=True, timing=timing),
        tnn.Readout(24, 5),
    )


def line(timing: str) -> nn.Module:
    return nn.Sequential(
        tnn.Encoder(T=5),
        tnn.Conv1d(3, 16, 3, padding=1, timing=timing),
        tnn.Conv1d(16, 24, 5, stride=2, norm=True, timing=timing),
        tnn.Flatten(),
        tnn.Readout(24 * 4, 5),
    )


NETS: Any = {mlp: (20,), images: (2, 8, 8), line: (3, 11)}


class Once:
    """Replaces a CUDA graph: the evaluation itself."""

    def replay(self) -> None: ...


def networks() -> None:
    torch.cuda.CUDAGraph, torch.cuda.graph = Once, lambda graph, stream: contextlib.nullcontext()  # type: ignore
    torch.cuda.Stream = torch.cuda.current_stream = lambda device: type("", (), {"wait_stream": id})()  # type: ignore
    torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore
    for make, shape in NETS.items():
        for timing in ("step", "window"):
            torch.manual_seed(0)
            net, x = make(timing), torch.rand(6, *shape)
            for module in net.modules():  # batch statistics would differ in their last bits: another order of sums
                if isinstance(module, nn.Module) and getattr(module, "running_var", None) is not None:
                    module.running_mean.normal_(0, 0.5)
                    module.running_var.uniform_(0.3, 3)
            net.eval()
            trains: list[torch.Tensor] = []
            answer: Any = x
            for layer in net:
                answer = layer(answer)
                trains += [answer.stored] if isinstance(answer, SpikeTrain) else []
            assert sum(int((train != 0).sum()) for train in trains) > 100
            print(make.__name__, timing, digest(answer, *trains))
            frozen = tandem_snn.freeze(net)
            with torch.inference_mode():
                graph = capture(frozen._program(x).layers, x)
                assert graph is not None
                assert torch.equal(graph._answer, answer)
            print("frozen", digest(frozen(x)))
            print("stream", digest(*(frozen.step(x) for _ in range(frozen.latency))))


if __name__ == "__main__":
    {"training": training, "networks": networks}[sys.argv[1]]()
