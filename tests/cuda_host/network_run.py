"""Networks with weights of no grid, in evaluation, frozen, and as a stream; prints what comes of them.

    python tests/cuda_host/network_run.py

Run by test_emulated_ops.py with the emulated CUDA kernels and with the CPU's: the digests have to agree. All sums of
spikes are exact, and what is left to torch, the first product of an image and the readout's, is done by the same
operators.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import torch
from torch import nn

import tandem_snn
import tandem_snn.nn as tnn
from tandem_ext import SpikeTrain
from tandem_snn.frozen.graph import capture


def show(name: str, *tensors: torch.Tensor) -> None:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    print(name, digest.hexdigest()[:16])


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
    """What stands for a CUDA graph: the evaluation itself."""

    def replay(self) -> None: ...


def main() -> None:
    torch.cuda.CUDAGraph, torch.cuda.graph = Once, lambda graph, stream: contextlib.nullcontext()  # type: ignore
    torch.cuda.Stream = torch.cuda.current_stream = lambda device: type("", (), {"wait_stream": id})()  # type: ignore
    torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore
    for make, shape in NETS.items():
        for timing in ("step", "window"):
            torch.manual_seed(0)
            net, x = make(timing), torch.rand(6, *shape)
            for module in net.modules():  # statistics of batches differ in their last bits: sums of another order
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
            show(f"{make.__name__} {timing}", answer, *trains)
            frozen = tandem_snn.freeze(net)
            with torch.inference_mode():
                graph = capture(frozen._program(x).layers, x)
                assert graph is not None
                assert torch.equal(graph._answer, answer)
            show("frozen", frozen(x))
            show("stream", *(frozen.step(x) for _ in range(frozen.latency)))


if __name__ == "__main__":
    main()
