"""Can the gradients of a convolution at spike counts be had for less than torch asks for them?

    python tests/benchmarks/convolution_backward.py

Counts are small integers, exact in bfloat16, and a gradient is the sum of three bfloat16: three products on a matrix
unit would do. Or the windows of the counts are unfolded and multiplied as a matrix. Each next to torch's own call, one
thread, process CPU time, medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem_snn.bench.timing import Protocol, interleave

B, C, N, SIZE, STRIDE = 16, 64, 128, 32, 2


def gradients(grad: Tensor, counts: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool) -> None:
    torch.ops.aten.convolution_backward.default(
        grad, counts, weight, None, [STRIDE] * 2, [1, 1], [1, 1], False, [0, 0], 1, [needs_input, needs_weight, False]
    )


def three_parts(grad: Tensor) -> list[Tensor]:
    """bfloat16 tensors whose sum is ``grad``."""
    parts = []
    for _ in range(3):
        parts.append(grad.bfloat16())
        grad = grad - parts[-1].float()
    return parts


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    last = torch.channels_last
    counts = torch.randint(0, 5, (B, C, SIZE, SIZE)).float().to(memory_format=last)
    weight = torch.randn(N, C, 3, 3).to(memory_format=last)
    grad = torch.randn(B, N, SIZE // STRIDE, SIZE // STRIDE).to(memory_format=last)
    grad = grad * (torch.rand_like(grad) < 0.5)  # closed gates
    counts_half, weight_half = counts.bfloat16(), weight.bfloat16()

    def unfolded() -> None:
        windows = F.unfold(counts, 3, padding=1, stride=STRIDE)
        torch.einsum("bnl,bkl->nk", grad.flatten(2), windows)

    def in_bfloat16() -> None:
        for part in three_parts(grad):
            gradients(part, counts_half, weight_half, False, True)

    ways: dict[str, Callable[[], object]] = {
        "forward": lambda: F.conv2d(counts, weight, None, STRIDE, 1),
        "both gradients": lambda: gradients(grad, counts, weight, True, True),
        "the input's": lambda: gradients(grad, counts, weight, True, False),
        "the weight's": lambda: gradients(grad, counts, weight, False, True),
        "the weight's, windows unfolded": unfolded,
        "the weight's, three products in bfloat16": in_bfloat16,
    }
    times = interleave({name: lambda i, way=way: way() for name, way in ways.items()}, Protocol())
    whole = statistics.median(times["both gradients"])
    for name, samples in times.items():
        print(f"{name:42} {1e3 * statistics.median(samples):7.2f} ms  {statistics.median(samples) / whole:5.2f}")


if __name__ == "__main__":
    main()
