"""Batch norm in CUDA on the emulator: statistics with the CPU's bits where no sum rounds, and gradients."""

from typing import Any

import pytest
import torch
from harness import DTYPES, Emulator, Outputs, Struct, check_same, output
from neuron_layers import pack_mask
from products import check_banks

from tandem_ext.rule import square_root

# Rows and channels: one and several slices, whole and partial tiles, channels that are not a multiple of four.
SHAPES = [(1, 1), (2, 3), (40, 16), (65, 70), (7, 132), (1030, 8), (97, 260)]
STRUCTS = {"batch_norm_statistics": "BatchNormStatistics", "batch_norm_grad": "BatchNormGrad"}


def workspace_size(emulator: Emulator, rows: int, channels: int) -> int:
    return emulator.call("batch_norm_workspace", rows, channels)


class Problem:
    """Random rows whose sums do not round, and the parameters of a norm."""

    def __init__(self, emulator: Emulator, rows: int, channels: int, seed: int, offset: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.emulator, self.rows, self.channels = emulator, rows, channels
        self.seed, self.offset = seed, offset
        self.u = torch.randint(-512, 513, (rows, channels), generator=g) / 64
        one = lambda: torch.randint(-64, 65, (channels,), generator=g) / 64  # noqa: E731
        gain = [None, one(), torch.tensor([0.5])][seed % 3]
        gamma, beta = (one(), one()) if seed % 2 else (None, None)
        self.norm = {"gain": gain, "gain_size": 1 if gain is None else gain.numel(), "gamma": gamma, "beta": beta}

    def arguments(self, name: str, **fields: Any) -> dict[str, Any]:
        fields |= {"rows": self.rows, "channels": self.channels, "product": self.u, "norm": {**self.norm, "eps": 1e-5}}
        fields["workspace"] = output(workspace_size(self.emulator, self.rows, self.channels), dtype=torch.float64)
        return {"args": Struct(STRUCTS[name], fields)}

    def launch(self, name: str, exact: bool = False, **fields: Any) -> Outputs:
        """The outputs of the kernel, which must equal the CPU's if they are ``exact``."""
        given = self.arguments(name, **fields)
        self.emulator.begin(self.seed % 3)
        out = self.emulator.launch(name, self.offset, ["product", "grad", "grad_product"], **given)
        del out["workspace"]
        if exact:
            check_same(out, self.emulator.on_cpu(name, **given))
        return out

    def statistics(self, factor: float = 1.0, exact: bool = True) -> Outputs:
        wanted = {key: output(self.channels, dtype=torch.float32) for key in ("mean", "var", "scale", "shift")}
        return self.launch("batch_norm_statistics", exact, factor=factor, **wanted)


@pytest.mark.parametrize("offset", [0, 1])
def test_statistics(checked: Emulator, offset: int) -> None:
    for seed, (rows, channels) in enumerate(SHAPES):
        Problem(checked, rows, channels, seed, offset).statistics(1.0 + 2 * (seed % 3))
        assert checked.touches("product")[:2] == (1, 1)


def test_a_mean_far_from_zero(plain: Emulator) -> None:
    """Eight rows are summed in float32 with what that loses, so that the mean's square does not drown the variance. A
    thread has ten rows here."""
    p = Problem(plain, rows := 20_000, channels := 32, seed=0, offset=1)
    p.u = 1000 + torch.randn(rows, channels, generator=torch.Generator().manual_seed(0))
    out = p.statistics(exact=False)
    torch.testing.assert_close(out["mean"], p.u.double().mean(0).float(), rtol=0, atol=0)
    torch.testing.assert_close(out["var"].double(), p.u.double().var(0, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_gradients(checked: Emulator, grad_dtype: torch.dtype, offset: int) -> None:
    """Half types move fourteen bytes per neuron: twice the gradient's two and twice u's four are read, two are
    written."""
    for seed, (rows, channels) in enumerate(SHAPES):
        p = Problem(checked, rows, channels, seed, offset)
        g = torch.Generator().manual_seed(seed)
        grad = torch.randint(-64, 65, (rows, channels), generator=g) / 64
        open_ = torch.rand(rows, channels, generator=g) < 0.5
        known = p.statistics()
        out = p.launch(
            "batch_norm_grad",
            grad=grad.to(grad_dtype),
            mask=pack_mask(open_),
            mean=known["mean"],
            var=known["var"],
            threshold=0.5,
            grad_dtype=DTYPES[grad_dtype],
            grad_product=output(rows, channels, dtype=grad_dtype),
            grad_gamma=output(channels, dtype=torch.float32),
            grad_beta=output(channels, dtype=torch.float32),
        )
        gz, one = torch.where(open_, grad / 0.5, torch.zeros_like(grad)), torch.ones(channels)
        gain, mean = one if p.norm["gain"] is None else one * p.norm["gain"], known["mean"]
        rstd = 1 / square_root(gain * gain * known["var"] + 1e-5)
        exact = (gz.double() * (p.u.double() - mean.double())).sum(0) * gain.double() * rstd.double()
        assert torch.equal(out["grad_beta"], gz.double().sum(0).float())
        torch.testing.assert_close(out["grad_gamma"].double(), exact, rtol=1e-6, atol=1e-6)
        xhat = (gain * p.u - gain * mean) * rstd
        centred = gz - out["grad_beta"] / rows - xhat * out["grad_gamma"] / rows
        assert torch.equal(out["grad_product"], (known["scale"] * centred).to(grad_dtype)), f"{rows} x {channels}"
        for name in ("grad", "product"):  # once for the sums, once for the gradient
            assert checked.touches(name)[:2] == (2, 2), name


def test_traffic(checked: Emulator) -> None:
    """Memory is read by whole sectors; shared memory has no bank conflicts."""
    rows, channels = 256, 64
    Problem(checked, rows, channels, 0).statistics()
    read = checked.traffic("product")
    assert read.bytes == 4 * rows * channels
    assert read.sectors == read.least_sectors == read.bytes // 32
    assert read.requests == read.bytes // 512
    check_banks(checked)


@pytest.mark.parametrize(("rows", "channels", "slices"), [
    (1, 1, 1), (63, 8, 1), (64, 8, 2), (1030, 8, 32), (10**6, 128, 256), (10**6, 512, 256), (10**6, 641, 171),
    (10**6, 1024, 128),
])  # fmt: skip
def test_slices(plain: Emulator, rows: int, channels: int, slices: int) -> None:
    """There are enough blocks to fill a GPU, with 32 rows or more each."""
    assert workspace_size(plain, rows, channels) == 2 * slices * channels


def test_the_sums_do_not_depend_on_the_schedule(plain: Emulator) -> None:
    """Sums that round have the same bits under every schedule."""
    results = []
    for seed in range(3):
        p = Problem(plain, 500, 12, 0)
        p.u, p.seed = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)), seed
        results.append(torch.cat([*p.statistics(exact=False).values()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0][:12], p.u.mean(0), rtol=1e-5, atol=1e-6)
