"""Statistics and gradients of batch norm in CUDA on the emulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import DTYPES as CODES
from harness import Buffer, Emulator, Outputs, Struct, output
from neuron_layers import pack_mask

from tandem_ext.rounding import square_root

# Rows and channels: one slice and several, of whole and broken tiles; channels that are no multiple of four.
SHAPES = [(1, 1), (2, 3), (40, 16), (65, 70), (7, 132), (1030, 8), (97, 260)]
DTYPES = [torch.float32, torch.float64]


def workspace_size(emulator: Emulator, rows: int, channels: int) -> int:
    return int(emulator.call("batch_norm_workspace", rows, channels))


class Problem:
    """Random rows and the parameters of a norm."""

    def __init__(
        self, emulator: Emulator, rows: int, channels: int, dtype: torch.dtype, seed: int, offset: int
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.emulator, self.rows, self.channels, self.dtype = emulator, rows, channels, dtype
        self.seed, self.offset = seed, offset
        self.u = (torch.randint(-512, 513, (rows, channels), generator=g) / 64).to(dtype)
        one = lambda: (torch.randint(-64, 65, (channels,), generator=g) / 64).to(dtype)  # noqa: E731
        self.gain = [None, one(), torch.tensor([0.5], dtype=dtype)][seed % 3]
        self.gamma, self.beta = (one(), one()) if seed % 2 else (None, None)

    def run(self, name: str, struct: str, shifted: list[str], **fields: Any) -> Outputs:
        """What the kernel writes. The buffers ``shifted`` begin ``offset`` elements past an aligned address."""
        norm = {"gain": self.gain, "gain_size": 1 if self.gain is None else self.gain.numel(), "eps": 1e-5}
        norm |= {"gamma": self.gamma, "beta": self.beta}
        fields |= {"rows": self.rows, "channels": self.channels, "product": self.u, "norm": norm}
        size = workspace_size(self.emulator, self.rows, self.channels)
        self.emulator.begin(self.seed % 3)
        return self.emulator.launch(
            name + "64" * (self.dtype == torch.float64),
            self.offset,
            ["product", *shifted],
            args=Struct(struct, fields, self.dtype),
            workspace=output(size, dtype=torch.float64),
        )

    def outputs(self, *names: str) -> dict[str, Buffer]:
        return {name: output(self.channels, dtype=self.dtype) for name in names}

    def statistics(self, factor: float = 1.0) -> Outputs:
        wanted = self.outputs("mean", "var", "scale", "shift")
        out = self.run("batch_norm_statistics", "BatchNormStatistics", [], factor=factor, **wanted)
        return {name: out[name] for name in wanted}

    def expected(self, factor: float = 1.0) -> Outputs:
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
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(checked: Emulator, dtype: torch.dtype, offset: int) -> None:
    """The sums of these numbers do not round, so that every output has the definition's bits."""
    for seed, (rows, channels) in enumerate(SHAPES):
        p = Problem(checked, rows, channels, dtype, seed, offset)
        factor = 1.0 + 2 * (seed % 3)
        out = p.statistics(factor)
        want = p.expected(factor)
        for name, got in out.items():
            assert torch.equal(got, want[name]), f"{name} of {rows} x {channels}"
        assert checked.touches("product")[:2] == (1, 1)


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
        out = p.run(
            "batch_norm_grad",
            "BatchNormGrad",
            ["grad", "grad_product"],
            grad=grad.to(grad_dtype),
            mask=pack_mask(open_),
            mean=known["mean"],
            var=known["var"],
            threshold=0.5,
            grad_dtype=CODES[grad_dtype],
            grad_product=output(rows, channels, dtype=grad_dtype),
            **p.outputs("grad_gamma", "grad_beta"),
        )
        gz = torch.where(open_, grad / 0.5, torch.zeros_like(grad))
        gain, rstd, mean = known["gain"], known["rstd"], known["mean"]
        beta = gz.double().sum(0)
        exact = (gz.double() * (p.u.double() - mean.double())).sum(0) * gain.double() * rstd.double()
        assert torch.equal(out["grad_beta"], beta.to(dtype))
        torch.testing.assert_close(out["grad_gamma"].double(), exact, rtol=1e-6, atol=1e-6)
        xhat = (gain * p.u - gain * mean) * rstd
        centred = gz - out["grad_beta"] / rows - xhat * out["grad_gamma"] / rows
        assert torch.equal(out["grad_product"], (known["scale"] * centred).to(grad_dtype)), f"{rows} x {channels}"
        for name in ("grad", "product"):  # once for the sums, once for the gradient
            assert checked.touches(name)[:2] == (2, 2), name


def test_traffic(checked: Emulator) -> None:
    """Whole sectors; shared memory without conflicts."""
    rows, channels = 256, 64
    p = Problem(checked, rows, channels, torch.float32, 0, 0)
    p.statistics()
    read = checked.traffic("product")
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
    assert workspace_size(plain, rows, channels) == 2 * slices * channels


def test_the_sums_do_not_depend_on_the_schedule(plain: Emulator) -> None:
    """Numbers whose sums do round, in every order of threads the same bits."""
    results = []
    for seed in range(3):
        p = Problem(plain, 500, 12, torch.float32, 0, 0)
        p.u, p.seed = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)), seed
        results.append(torch.cat([*p.statistics().values()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0][:12], p.u.mean(0), rtol=1e-5, atol=1e-6)
