"""pack, unpack, counts and gate_grad in CUDA on the emulator: the outputs of the CPU kernels."""

from typing import Any

import pytest
import torch
from harness import DTYPES, Buffer, Emulator, Outputs, output
from neuron_layers import pack, pack_mask
from torch import Tensor

SIZES = [1, 7, 32, 100, 1028]
DENSE = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float32, torch.bfloat16, torch.float16, torch.float64]


def check(emulator: Emulator, name: str, once: str | None, **arguments: Any) -> Outputs:
    """The outputs of a kernel, the same for every alignment of inputs and outputs. Each byte of ``once`` is read
    once."""
    inputs, outputs = (
        [key for key, value in arguments.items() if isinstance(value, kind)] for kind in (Tensor, Buffer)
    )
    out: Outputs = {}
    for offset, shifted in [(0, None), (1, None), (1, outputs), (1, inputs), (2, None)]:
        out = emulator.check(name, 0, offset, shifted, **arguments)
        assert once is None or emulator.touches(once)[:2] == (1, 1)
    return out


def one_of(dtype: torch.dtype) -> int:
    """The bits of the number 1."""
    return int.from_bytes(torch.ones(1, dtype=dtype).view(torch.uint8).numpy().tobytes(), "little")


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("T", [1, 8, 13])
@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_pack_and_unpack(checked: Emulator, dtype: torch.dtype, T: int, N: int) -> None:
    g = torch.Generator().manual_seed(N + T)
    spikes = (torch.rand(T, N, generator=g) < 0.3).to(dtype)
    values = spikes.clone()
    if not dtype.is_floating_point and dtype != torch.bool:
        values[-1] *= torch.iinfo(dtype).min or 128  # the highest bit alone is a spike
    if dtype.is_floating_point:
        values[spikes == 0] = -0.0  # silent like 0
        values[0, spikes[0] != 0] = float("nan")  # not zero, so a spike
    given = {"size": dtype.itemsize, "is_float": dtype.is_floating_point, "T": T, "neurons": N}
    packed = output((T + 7) // 8, N, dtype=torch.uint8)
    planes = check(checked, "pack", "spikes", spikes=values, **given, planes=packed)["planes"]
    assert torch.equal(planes, pack(spikes))
    given = {"T": T, "neurons": N, "spikes": output(T, N, dtype=dtype), "size": dtype.itemsize, "one": one_of(dtype)}
    assert torch.equal(check(checked, "unpack", "planes", planes=planes.clone(), **given)["spikes"], spikes)


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("T", [1, 8, 13, 255])
def test_count_bytes_and_burst_planes(checked: Emulator, T: int, N: int) -> None:
    """A burst has its count; counts above T are cut to T."""
    want = torch.randint(256, (N,), dtype=torch.uint8, generator=torch.Generator().manual_seed(N))
    bursts = pack(torch.arange(T).view(T, 1) < want)
    planes = output(*bursts.shape, dtype=torch.uint8)
    out = check(checked, "burst_planes", None, counts=want, T=T, neurons=N, planes=planes)
    assert torch.equal(out["planes"], bursts)
    counts = output(N, dtype=torch.uint8)
    out = check(checked, "count_bytes", "planes", planes=bursts, P=len(bursts), neurons=N, counts=counts)
    assert torch.equal(out["counts"], want.clamp(max=T))


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("P", [1, 2, 32, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts(checked: Emulator, dtype: torch.dtype, P: int, N: int) -> None:
    planes = torch.randint(256, (P, N), dtype=torch.uint8, generator=torch.Generator().manual_seed(N))
    planes[:, 0] = 255
    counts = output(N, dtype=dtype)
    check(checked, "counts", "planes", planes=planes, P=P, neurons=N, counts=counts, dtype=DTYPES[dtype])


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_grad(checked: Emulator, dtype: torch.dtype, N: int) -> None:
    g = torch.Generator().manual_seed(N)
    grad = torch.randn(N, generator=g).to(dtype)
    is_open = torch.rand(N, generator=g) < 0.5
    grad[~is_open] = float("nan")  # a closed gate lets nothing through
    given = {"grad": grad, "dtype": DTYPES[dtype], "mask": pack_mask(is_open), "threshold": 0.3, "neurons": N}
    want = torch.where(is_open, grad.float() / torch.tensor(0.3), 0).to(dtype)
    for offset, shifted in [(0, None), (1, None), (1, ["grad_z"]), (1, ["grad"]), (2, None)]:
        checked.begin()
        out = checked.launch("gate_grad", offset, shifted, **given, grad_z=output(N, dtype=dtype))
        assert torch.equal(out["grad_z"], want)
        assert checked.touches("grad")[:2] == (1, 1)


def test_four_neurons_to_a_thread(checked: Emulator) -> None:
    """Aligned arrays are moved four neurons per thread, by instructions of that width."""
    N, warps = 2048, 2048 // 128

    def check(name: str, buffer: str, write: bool = False, kernel: str = "", **arguments: Any) -> None:
        checked.begin()
        checked.launch(name, **arguments)
        assert checked.traffic(buffer, write).requests == checked.counted(f"{kernel or name}_")[2] == warps, name

    planes, bytes_ = torch.zeros(1, N, dtype=torch.uint8), output(N, dtype=torch.uint8)
    for dtype in DENSE:
        size, dense = dtype.itemsize, torch.zeros(8, N, dtype=dtype)
        check("pack", "planes", True, spikes=dense, size=size, is_float=False, T=8, neurons=N, planes=bytes_)
        given = {"T": 8, "neurons": N, "spikes": output(8, N, dtype=dtype), "size": size, "one": one_of(dtype)}
        check("unpack", "planes", planes=planes, **given)
    for dtype, code in DTYPES.items():
        check("counts", "planes", planes=planes, P=1, neurons=N, counts=output(N, dtype=dtype), dtype=code)
        given = {"grad": torch.zeros(N, dtype=dtype), "dtype": code, "mask": torch.zeros(N), "threshold": 1.0}
        check("gate_grad", "mask", **given, neurons=N, out=output(N, dtype=dtype))
    check("count_bytes", "counts", True, "counts", planes=planes, P=1, neurons=N, counts=bytes_)
    checked.begin()
    checked.launch("burst_planes", counts=planes, T=8, neurons=N, planes=bytes_)
    assert checked.counted("burst")[2] == 4 * warps
