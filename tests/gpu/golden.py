"""What the instructions wrapped in csrc/kernels/cuda/ptx.cuh must do with given operands."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Operands = tuple[Tensor, Tensor, Tensor, Tensor]  # A, B, what D holds before, what it must hold after


def mma(g: torch.Generator) -> Operands:
    """D = A Bᵀ + C."""
    A = torch.randint(-128, 128, (16, 32), generator=g).to(torch.int8)
    B = torch.randint(0, 256, (8, 32), generator=g).to(torch.uint8)
    C = torch.arange(128, dtype=torch.int32).view(16, 8)
    return A, B, C, A.int() @ B.int().t() + C


def dot(g: torch.Generator) -> Operands:
    A = torch.randint(-128, 128, (32, 4), generator=g).to(torch.int8)
    B = torch.randint(0, 256, (32, 4), generator=g).to(torch.uint8)
    return A, B, torch.zeros(32, dtype=torch.int32), (A.int() * B.int()).sum(1, dtype=torch.int32)


def cp_async(g: torch.Generator) -> Operands:
    A = torch.randint(1, 256, (32, 16), generator=g).to(torch.uint8)
    want = A.clone()
    want[1::2] = 0
    return A, A, torch.full_like(A, 7), want


def add_wide(g: torch.Generator) -> Operands:
    """The sum plus 256 times a number of 32 bits."""
    A = torch.randint(-(2**31), 2**31, (32, 2), generator=g)
    A[:, 0] *= 2**20
    return A, A, torch.zeros(32, dtype=torch.int64), A[:, 0] + 256 * A[:, 1]


def fire(g: torch.Generator, leaky: bool = False) -> Operands:
    """v, threshold and leak of each lane; v and the spikes after it. NaN does not fire."""
    A = (torch.randint(-64, 65, (32, 3), generator=g) / 16).float()
    A[:, 1:] = A[:, 1:].abs() + 0.25
    A[0, 0], A[1, 0], A[2, :2] = float("nan"), float("inf"), 1.0
    v, threshold, leak = A.unbind(1)
    fires = v >= threshold
    kept = leak * v if leaky else v
    after = torch.where(fires, kept - threshold, kept)
    return A, A, torch.zeros(32, 2), torch.stack([after, 1 + 32.0 * fires], 1)


def ldmatrix(g: torch.Generator, matrices: int = 4, row: int = 0) -> Operands:
    """Lane 4 r + w gets word w of row r of each matrix; the first begins at this row."""
    A = torch.randint(0, 256, (32, 16), generator=g).to(torch.uint8)
    words = A[row : row + 8 * matrices].contiguous().view(torch.int32).view(matrices, 8, 4)
    want = words.permute(1, 2, 0).reshape(32, matrices).clone()
    return A, A, torch.zeros_like(want), want


GOLDEN: dict[str, Callable[[torch.Generator], Operands]] = {
    **{f.__name__: f for f in (mma, dot, ldmatrix, add_wide, fire)},
    "fire_leaky": lambda g: fire(g, leaky=True),
    "ldmatrix_2": lambda g: ldmatrix(g, 2, 1),
    **{f"cp_async_{size}": cp_async for size in (16, 8, 4, 1)},
}


def check(library: Path, name: str, device: torch.device, stream: int | None = None) -> None:
    """Runs one wrapper of ``library``, built from wrappers.cu, on ``stream``, by default the device's default stream.
    Raises AssertionError where it does something else."""
    function = getattr(ctypes.CDLL(str(library)), f"wrapper_{name}")
    for seed in range(3):
        A, B, C, want = GOLDEN[name](torch.Generator().manual_seed(seed))
        a, b, d = (t.contiguous().to(device) for t in (A, B, C.clone()))
        status = function(*(ctypes.c_void_p(t.data_ptr()) for t in (a, b, d)), ctypes.c_void_p(stream))
        assert status == 0, f"{name}: CUDA error {status}"
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        differing = (d.cpu().nan_to_num(0.5) != want.nan_to_num(0.5)).sum().item()
        assert differing == 0, f"{name}: {differing} of {want.numel()} differ"
