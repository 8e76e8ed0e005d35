"""The scan's CUDA source on the emulation: the reference's bits, no report of the checker, each byte moved once."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass

import pytest
import torch
from harness import DTYPES, INOUT, OUTPUT, Emulator, NeuronArgs, pointer
from torch import Tensor

from tandem_ext.reference import integrate_and_fire, open_gate

TRAIN, CONSTANT, IMPULSE = 0, 1, 2
GATES = ["relu", "clip", "resu"]
# Neurons as [B, C]: tails of the block, of the warp, of a byte of the mask, of four neurons; channels that are no
# multiple of four; more than one block of each kernel.
SHAPES = [(1, 1), (3, 7), (2, 12), (5, 36), (1, 130), (3, 172), (4, 144)]


@dataclass
class Layer:
    """Everything that goes into a scan; currents are [T, B, C], or [B, C] if held."""

    currents: Tensor
    T: int
    source: int = TRAIN
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    residual_scale: Tensor | None = None
    v_init: Tensor | None = None
    steps: int = 0
    threshold: float = 1.0
    leak: float = 1.0
    gate: str = "relu"


def pack(spikes: Tensor) -> Tensor:
    planes = torch.zeros((spikes.shape[0] + 7) // 8, *spikes.shape[1:], dtype=torch.uint8)
    for t, spike in enumerate(spikes):
        planes[t // 8] |= (spike != 0).to(torch.uint8) << t % 8
    return planes


def unpack(planes: Tensor, T: int) -> Tensor:
    return torch.stack([planes[t // 8] >> t % 8 & 1 for t in range(T)])


def pack_mask(gates: Tensor) -> Tensor:
    """Bit n % 8 of byte n // 8."""
    flat = gates.flatten()
    return pack(torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8).T)[0]


Outputs = dict[str, Tensor]


def expected(layer: Layer) -> Outputs:
    """What the reference's neuron makes of the layer."""
    y = layer.currents.float()
    if layer.source != TRAIN:
        y = y.expand(layer.T, *y.shape).clone()
        if layer.source == IMPULSE:
            y[1:] = 0
    current = y if layer.scale is None else layer.scale * y
    if layer.shift is not None:
        current = current + layer.shift / (layer.steps or layer.T)
    if layer.residual is not None:
        r = layer.residual
        r = unpack(r, layer.T).float() if r.dtype == torch.uint8 else r
        current = current + (r if layer.residual_scale is None else layer.residual_scale * r)
    v = torch.zeros(()) if layer.v_init is None else layer.v_init
    spikes, z, v = integrate_and_fire(current, v.expand(y.shape[1:]), layer.threshold, layer.leak)
    if layer.gate == "resu":
        spikes = spikes * (z > 0)
    mask = pack_mask(open_gate(z, layer.gate, layer.threshold, layer.T))
    return {"planes": pack(spikes), "counts": spikes.sum(0).to(layer.currents.dtype), "mask": mask, "v": v}


def run(emulator: Emulator, layer: Layer, seed: int = 0, offset: int = 0) -> Outputs:
    """What the kernel makes of it; buffers begin ``offset`` elements past an aligned address."""
    emulator.begin(seed)
    shape, dtype = layer.currents.shape[-2:], layer.currents.dtype
    names = ["currents", "scale", "shift", "residual", "residual_scale", "v_init"]
    given = {name: pointer(emulator.place(name, getattr(layer, name), offset=offset)) for name in names}
    planes = torch.zeros((layer.T + 7) // 8, *shape, dtype=torch.uint8)
    rewritten = layer.gate == "resu" and layer.T > 8  # a train that is silenced after its first planes are written
    out = {
        "planes": emulator.place("planes", planes, INOUT if rewritten else OUTPUT, offset),
        "counts": emulator.output("counts", shape, dtype, offset),
        "mask": emulator.output("mask", [(shape.numel() + 7) // 8], torch.uint8, offset),
        "v": emulator.output("v", shape, torch.float32, offset),
    }
    residual = given.pop("residual")
    if layer.residual is not None:
        given["residual_planes" if layer.residual.dtype == torch.uint8 else "residual_currents"] = residual
    currents = given.pop("currents")
    args = NeuronArgs(
        neurons=shape.numel(),
        channels=shape[-1],
        T=layer.T,
        steps=layer.steps or layer.T,
        threshold=layer.threshold,
        leak=layer.leak,
        gate=GATES.index(layer.gate),
        v_init_size=0 if layer.v_init is None else layer.v_init.numel(),
        counts_dtype=DTYPES[dtype],
        **given,
        **{name: pointer(tensor) for name, tensor in out.items()},
    )
    status = emulator.lib.emulated_if_scan(currents, DTYPES[dtype], layer.source, ctypes.byref(args))
    reports = emulator.reports()
    assert status == 0, reports
    assert not reports
    return out


def random_layer(
    seed: int, T: int, shape: tuple[int, int], dtype: torch.dtype, source: int, residual: str | None
) -> Layer:
    """Every kind of parameter, present or absent, and currents on both sides of the gates."""
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=g)

    def chance() -> bool:
        return torch.rand((), generator=g).item() < 0.5

    C = shape[-1]
    layer = Layer((0.6 * draw(*([T] if source == TRAIN else []), *shape) + 0.1).to(dtype), T, source)
    layer.scale, layer.shift, layer.residual_scale = (draw(C) if chance() else None for _ in range(3))
    layer.v_init = [None, draw(), draw(C), draw(*shape)][seed % 4]
    layer.gate, layer.leak, layer.steps = GATES[seed % 3], 1.0 if chance() else 0.9, T if chance() else 3
    layer.threshold = 1.0 if chance() else 0.3
    if residual == "planes":
        layer.residual = pack(draw(T, *shape) > 0)
    elif residual == "currents":
        layer.residual = draw(T, *shape)
    else:
        layer.residual_scale = None
    return layer


def check(emulator: Emulator, layer: Layer, seed: int = 0, offset: int = 0) -> None:
    want = expected(layer)
    for name, got in run(emulator, layer, seed, offset).items():
        assert torch.equal(got, want[name]), f"{name}: {(got != want[name]).sum()} of {got.numel()} differ"


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("source", [TRAIN, CONSTANT, IMPULSE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits(plain: Emulator, dtype: torch.dtype, source: int, residual: str | None) -> None:
    for i, (T, shape) in enumerate(itertools.product([1, 2, 4, 7, 8, 9, 16, 33, 255], SHAPES)):
        check(plain, random_layer(i, T, shape, dtype, source, residual), seed=i % 3, offset=i % 2)


@pytest.mark.parametrize("residual", [None, "planes", "currents"])
@pytest.mark.parametrize("source", [TRAIN, CONSTANT, IMPULSE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accesses(checked: Emulator, dtype: torch.dtype, source: int, residual: str | None) -> None:
    for i, (T, shape) in enumerate(itertools.product([4, 8, 16, 19], [(3, 7), (5, 36), (3, 172)])):
        check(checked, random_layer(i, T, shape, dtype, source, residual), seed=i % 3, offset=i % 2)
        for name in ("currents", "residual"):
            if name in checked.buffers:
                touches = checked.touches(name)
                assert (touches.least_reads, touches.most_reads) == (1, 1), name


@pytest.mark.parametrize("T", [4, 8, 16, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic(checked: Emulator, dtype: torch.dtype, T: int) -> None:
    """Whole sectors, by the widest instructions that four neurons allow."""
    layer = Layer(torch.randn(T, 16, 64).to(dtype), T)
    N, size = 16 * 64, layer.currents.element_size()
    check(checked, layer)
    read = checked.traffic("currents")
    assert read.bytes == T * N * size
    assert read.sectors == read.least_sectors == read.bytes // 32
    assert read.requests == T * N // (32 * 4)
    for name, bytes_out in {"planes": (T + 7) // 8 * N, "counts": N * size, "v": 4 * N, "mask": N // 8}.items():
        written = checked.traffic(name, write=True)
        assert written.bytes == bytes_out
        assert written.sectors == written.least_sectors, name


def test_special_values(plain: Emulator) -> None:
    """NaN never fires and closes every gate; infinities go where IEEE sends them."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-45, -0.0, 0.0])
    for gate in GATES:
        layer = Layer(special.repeat(8, 4, 1), 8, gate=gate)
        got, want = run(plain, layer), expected(layer)
        for name, tensor in got.items():
            assert torch.equal(tensor.nan_to_num(7.0), want[name].nan_to_num(7.0)), name
        assert got["counts"][0, 0] == 0


def test_empty(plain: Emulator) -> None:
    plain.begin()
    args = NeuronArgs(neurons=0, channels=4, T=8)
    assert plain.lib.emulated_if_scan(None, 0, TRAIN, ctypes.byref(args)) == 0
