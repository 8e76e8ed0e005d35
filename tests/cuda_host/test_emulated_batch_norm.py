"""Statistics and gradients of batch norm in CUDA on the emulation."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from harness import DTYPES as CODES
from harness import OUTPUT, Emulator, pointer
from neuron_layers import pack_mask
from torch import Tensor

from tandem_ext.rounding import square_root

# Rows and channels: one slice and several, of whole and broken tiles; channels that are no multiple of four.
SHAPES = [(1, 1), (2, 3), (40, 16), (65, 70), (7, 132), (1030, 8), (97, 260)]
DTYPES = {torch.float32: ("", ctypes.c_float), torch.float64: ("64", ctypes.c_double)}


def structure(**fields: type) -> type[ctypes.Structure]:
    return type("Structure", (ctypes.Structure,), {"_fields_": [*fields.items()]})


def pointers(names: Iterable[str]) -> dict[str, type]:
    return dict.fromkeys(names, ctypes.c_void_p)


SIZES = {"rows": ctypes.c_int64, "channels": ctypes.c_int64}


class Problem:
    """Random rows and the parameters of a norm, in the emulator's guarded memory."""

    def __init__(
        self, emulator: Emulator, rows: int, channels: int, dtype: torch.dtype, seed: int, offset: int
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        emulator.begin(seed % 3)
        self.emulator, self.rows, self.channels, self.dtype = emulator, rows, channels, dtype
        self.suffix, self.real = DTYPES[dtype]
        self.u = (torch.randint(-512, 513, (rows, channels), generator=g) / 64).to(dtype)
        one = lambda: (torch.randint(-64, 65, (channels,), generator=g) / 64).to(dtype)  # noqa: E731
        self.gain = [None, one(), torch.tensor([0.5], dtype=dtype)][seed % 3]
        self.gamma, self.beta = (one(), one()) if seed % 2 else (None, None)
        self.placed_u = emulator.place("u", self.u, offset=offset)
        gain, gamma, beta = (pointer(emulator.place(name, getattr(self, name))) for name in ("gain", "gamma", "beta"))
        # csrc/kernels/norm/batch_norm.h: BatchNorm<real>.
        fields = {"gain": ctypes.c_void_p, "gain_size": ctypes.c_int64, **pointers(["gamma", "beta"]), "eps": self.real}
        self.Norm = structure(**fields)
        self.norm = self.Norm(gain, 1 if self.gain is None else self.gain.numel(), gamma, beta, 1e-5)

    def statistics(self, factor: float = 1.0) -> dict[str, Tensor]:
        out = self.outputs("mean", "var", "scale", "shift")
        fields = {**SIZES, "product": ctypes.c_void_p, "factor": self.real, "norm": self.Norm, **pointers(out)}
        sizes, product = (self.rows, self.channels), pointer(self.placed_u)
        self.run(
            "batch_norm_statistics",
            structure(**fields)(*sizes, product, factor, self.norm, *map(pointer, out.values())),
        )
        return out

    def outputs(self, *names: str) -> dict[str, Tensor]:
        return {name: self.emulator.output(name, [self.channels], self.dtype) for name in names}

    def run(self, name: str, args: Any) -> None:
        needed = self.emulator.lib.emulated_batch_norm_workspace
        needed.restype = ctypes.c_int64
        size = needed(ctypes.c_int64(self.rows), ctypes.c_int64(self.channels))
        workspace = self.emulator.place("workspace", torch.empty(size, dtype=torch.float64), OUTPUT)
        status = getattr(self.emulator.lib, f"emulated_{name}{self.suffix}")(ctypes.byref(args), pointer(workspace))
        reports = self.emulator.reports()
        assert status == 0, reports
        assert not reports

    def expected(self, factor: float = 1.0) -> dict[str, Tensor]:
        """Moments, and scale and shift, with the roundings of the definition."""
        one = torch.ones(self.channels, dtype=self.dtype)
        wide = (factor * self.u).double()
        mean = wide.sum(0) / self.rows
        var = ((wide * wide).sum(0) / self.rows - mean * mean).clamp_min(0)
        mean, var = mean.to(self.dtype), var.to(self.dtype)
        gain = one if self.gain is None else one * self.gain
        rstd = 1 / square_root(gain * gain * var + 1e-5)
        slope = rstd if self.gamma is None else self.gamma * rstd
        shift = (0 * one if self.beta is None else self.beta) - gain * mean * slope
        found = {"mean": mean, "var": var, "scale": slope * gain, "shift": shift}
        return found | {"gain": gain, "rstd": rstd}


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_statistics(checked: Emulator, dtype: torch.dtype, offset: int) -> None:
    """The sums of these numbers do not round, so that every output has the definition's bits."""
    for seed, (rows, channels) in enumerate(SHAPES):
        p = Problem(checked, rows, channels, dtype, seed, offset)
        factor = 1.0 + 2 * (seed % 3)
        out = p.statistics(factor)
        want = p.expected(factor)
        for name, got in out.items():
            assert torch.equal(got, want[name]), f"{name} of {rows} x {channels}"
        touches = checked.touches("u")
        assert (touches.least_reads, touches.most_reads) == (1, 1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gradients(checked: Emulator, grad_dtype: torch.dtype, offset: int) -> None:
    """Fourteen bytes a neuron for halves: of the gradient two, twice, of u four, twice, and two of what is written."""
    dtype = torch.promote_types(grad_dtype, torch.float32)
    for seed, (rows, channels) in enumerate(SHAPES):
        p = Problem(checked, rows, channels, dtype, seed, offset)
        g = torch.Generator().manual_seed(seed)
        grad = (torch.randint(-64, 65, (rows, channels), generator=g) / 64).to(dtype)
        open_ = torch.rand(rows, channels, generator=g) < 0.5
        known = p.expected()
        given = {
            "grad": checked.place("grad", grad.to(grad_dtype), offset=offset),
            "mask": checked.place("mask", pack_mask(open_)),
            "product": p.placed_u,
            "mean": checked.place("mean", known["mean"]),
            "var": checked.place("var", known["var"]),
        }
        out = {
            "grad_product": checked.output("grad_product", [rows, channels], grad_dtype, offset),
            **p.outputs("grad_gamma", "grad_beta"),
        }
        settings = {"norm": p.Norm, "threshold": p.real, "dtype": ctypes.c_int32}
        args = structure(**SIZES, **pointers(given), **settings, **pointers(out))(
            rows, channels, *map(pointer, given.values()), p.norm, 0.5, CODES[grad_dtype], *map(pointer, out.values())
        )
        p.run("batch_norm_grad", args)

        gz = torch.where(open_, grad / 0.5, torch.zeros_like(grad))
        gain, rstd, mean = known["gain"], known["rstd"], known["mean"]
        beta = gz.double().sum(0)
        exact = (gz.double() * (p.u.double() - mean.double())).sum(0) * gain.double() * rstd.double()
        assert torch.equal(out["grad_beta"], beta.to(dtype))
        torch.testing.assert_close(out["grad_gamma"].double(), exact, rtol=1e-6, atol=1e-6)
        xhat = (gain * p.u - gain * mean) * rstd
        centred = gz - out["grad_beta"] / rows - xhat * out["grad_gamma"] / rows
        assert torch.equal(out["grad_product"], (known["scale"] * centred).to(grad_dtype)), f"{rows} x {channels}"
        for name in ("grad", "u"):  # once for the sums, once for the gradient
            touches = checked.touches(name)
            assert (touches.least_reads, touches.most_reads) == (2, 2), name


def test_traffic(checked: Emulator) -> None:
    """Whole sectors; shared memory without conflicts."""
    rows, channels = 256, 64
    p = Problem(checked, rows, channels, torch.float32, 0, 0)
    p.statistics()
    read = checked.traffic("u")
    assert read.bytes == 4 * rows * channels
    assert read.sectors == read.least_sectors == read.bytes // 32
    assert read.requests == read.bytes // 512
    for write in (False, True):
        shared = checked.traffic("shared dynamic shared memory", write)
        assert shared.waves == shared.least_waves


@pytest.mark.parametrize(
    ("rows", "channels", "slices"),
    [
        (1, 1, 1),
        (63, 8, 1),
        (64, 8, 2),
        (1030, 8, 32),
        (10**6, 128, 256),
        (10**6, 512, 256),
        (10**6, 641, 171),
        (10**6, 1024, 128),
    ],
)
def test_slices(plain: Emulator, rows: int, channels: int, slices: int) -> None:
    """Blocks enough to fill a GPU, each of 32 rows or more."""
    needed = plain.lib.emulated_batch_norm_workspace
    needed.restype = ctypes.c_int64
    assert needed(ctypes.c_int64(rows), ctypes.c_int64(channels)) == 2 * slices * channels


def test_the_sums_do_not_depend_on_the_schedule(plain: Emulator) -> None:
    """Numbers whose sums do round, in every order of threads the same bits."""
    u = torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    results = []
    for seed in range(3):
        p = Problem(plain, 500, 12, torch.float32, 0, 0)
        p.placed_u.copy_(u)
        plain.lib.emulation_begin(ctypes.c_uint64(seed))
        results.append(torch.cat([t.clone() for t in p.statistics().values()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0][:12], u.mean(0), rtol=1e-5, atol=1e-6)
