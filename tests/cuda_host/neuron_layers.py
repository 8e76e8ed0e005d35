"""Layers of IF neurons for the tests of emulated kernels: random ones, what the reference makes of them, and their
arguments in guarded memory."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from dataclasses import dataclass

import torch
from harness import DTYPES, INOUT, MARKS, OUTPUT, Emulator, NeuronArgs, NeuronArgs64, pointer
from torch import Tensor

from tandem_ext.reference import fire_after_window, integrate_and_fire, open_gate, pack

TRAIN, CONSTANT, IMPULSE = 0, 1, 2
GATES = ["relu", "clip", "resu"]


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
    train: bool = True
    window: bool = False  # the timing; the residual then is counts or a sum


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def unpack(planes: Tensor, T: int) -> Tensor:
    return torch.stack([planes[t // 8] >> t % 8 & 1 for t in range(T)])


def pack_mask(gates: Tensor) -> Tensor:
    """Bit n % 8 of byte n // 8."""
    flat = gates.flatten()
    return pack(torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8).T)[0]


Outputs = dict[str, Tensor]


def expected_window(layer: Layer) -> Outputs:
    """Integrates the window, then fires: every line rounds once."""
    y = layer.currents.to(compute_dtype(layer.currents.dtype))
    u = y.unbind()[0] if layer.source == TRAIN else y
    for more in y.unbind()[1:] if layer.source == TRAIN else []:
        u = u + more
    if layer.source == CONSTANT:
        u = u * layer.T
    z = u if layer.scale is None else layer.scale * u
    if layer.shift is not None:
        z = z + layer.shift
    if layer.residual is not None:
        r = layer.residual[0].to(y.dtype)
        z = z + (r if layer.residual_scale is None else layer.residual_scale * r)
    v = z + (0 if layer.v_init is None else layer.v_init)
    counts, v = fire_after_window(v, layer.threshold, layer.T)
    mask = pack_mask(open_gate(z, layer.gate, layer.threshold, layer.T))
    planes = counts.to(torch.uint8).unsqueeze(0)
    bad = (v - v).float().sum(1)
    return {"planes": planes, "counts": counts.to(layer.currents.dtype), "mask": mask, "v": v, "bad": bad}


def expected(layer: Layer) -> Outputs:
    """What the reference's neuron makes of the layer."""
    if layer.window:
        return expected_window(layer)
    y = layer.currents.to(compute_dtype(layer.currents.dtype))
    if layer.source != TRAIN:
        y = y.expand(layer.T, *y.shape).clone()
        if layer.source == IMPULSE:
            y[1:] = 0
    current = y if layer.scale is None else layer.scale * y
    if layer.shift is not None:
        current = current + layer.shift / (layer.steps or layer.T)
    if layer.residual is not None:
        r = layer.residual
        r = unpack(r, layer.T).to(y.dtype) if r.dtype == torch.uint8 else r
        current = current + (r if layer.residual_scale is None else layer.residual_scale * r)
    v = torch.zeros((), dtype=y.dtype) if layer.v_init is None else layer.v_init
    spikes, z, v = integrate_and_fire(current, v.expand(y.shape[1:]), layer.threshold, layer.leak)
    if layer.gate == "resu":
        spikes = spikes * (z > 0)
    mask = pack_mask(open_gate(z, layer.gate, layer.threshold, layer.T))
    counts, bad = spikes.sum(0).to(layer.currents.dtype), (v - v).float().sum(1)
    return {"planes": pack(spikes), "counts": counts, "mask": mask, "v": v, "bad": bad}


def place_neurons(
    emulator: Emulator, layer: Layer, offset: int = 0, shifted: Collection[str] | None = None
) -> tuple[ctypes.Structure, Outputs]:
    """Arguments and outputs of a kernel. The buffers ``shifted``, by default all, begin ``offset`` elements past an
    aligned address."""

    def shift(name: str) -> int:
        return offset if shifted is None or name in shifted else 0

    shape, dtype = layer.currents.shape[-2:], layer.currents.dtype
    names = ["scale", "shift", "residual", "residual_scale", "v_init"]
    given = {name: pointer(emulator.place(name, getattr(layer, name), offset=shift(name))) for name in names}
    residual = given.pop("residual")
    if layer.residual is not None:
        given["residual_planes" if layer.residual.dtype == torch.uint8 else "residual_currents"] = residual
    planes = torch.zeros(1 if layer.window else (layer.T + 7) // 8, *shape, dtype=torch.uint8)
    rewritten = layer.gate == "resu" and layer.T > 8  # a train that is silenced after its first planes are written
    out = {
        "planes": emulator.place("planes", planes, INOUT if rewritten else OUTPUT, shift("planes")),
        "counts": emulator.output("counts", shape, dtype, shift("counts")),
        "v": emulator.output("v", shape, compute_dtype(dtype), shift("v")),
        "bad": emulator.place("bad", torch.zeros(shape[0]), MARKS),
    }
    if layer.train:
        out["mask"] = emulator.output("mask", [(shape.numel() + 7) // 8], torch.uint8, shift("mask"))
    args = (NeuronArgs64 if dtype == torch.float64 else NeuronArgs)(
        neurons=shape.numel(),
        channels=shape[-1],
        T=layer.T,
        steps=layer.steps or layer.T,
        threshold=layer.threshold,
        leak=layer.leak,
        gate=GATES.index(layer.gate),
        timing=int(layer.window),
        v_init_size=0 if layer.v_init is None else layer.v_init.numel(),
        counts_dtype=DTYPES[dtype],
        sample=shape[-1],
        **given,
        **{name: pointer(tensor) for name, tensor in out.items()},
    )
    return args, out


def check_outputs(layer: Layer, out: Outputs) -> None:
    want = expected(layer)
    for name, got in out.items():
        assert torch.equal(got, want[name]), f"{name}: {(got != want[name]).sum()} of {got.numel()} differ"


def random_layer(
    seed: int, T: int, shape: tuple[int, int], dtype: torch.dtype, source: int, residual: str | None
) -> Layer:
    """Every kind of parameter, present or absent, and currents on both sides of the gates."""
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=g).to(compute_dtype(dtype))

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
