"""Random layers of IF neurons for the tests of emulated kernels, and their arguments."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from harness import DTYPES, MARKS, OUTPUT, Buffer, Emulator, Outputs, Struct, output
from torch import Tensor

from tandem_ext.rule import pack

TRAIN, CONSTANT, IMPULSE = 0, 1, 2
GATES = ["relu", "clip"]


@dataclass
class Layer:
    """The inputs of a scan; currents are [T, B, C], or [B, C] if constant over time."""

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
    window: bool = False  # window timing: the residual is counts, or a sum of currents

    def neuron(self) -> Struct:
        """The arguments and outputs of a kernel."""
        shape, dtype = self.currents.shape[-2:], self.currents.dtype
        neurons = shape.numel()
        spikes = self.residual is not None and self.residual.dtype == torch.uint8
        stored = torch.zeros(1 if self.window else (self.T + 7) // 8, *shape, dtype=torch.uint8)
        fields = {
            "neurons": neurons, "channels": shape[-1], "T": self.T, "steps": self.steps or self.T,
            "threshold": self.threshold, "leak": self.leak, "gate": GATES.index(self.gate), "timing": int(self.window),
            "residual_stored" if spikes else "residual_currents": self.residual,
            "v_init_size": 0 if self.v_init is None else self.v_init.numel(),
            "stored": Buffer(stored, OUTPUT), "counts": output(neurons, dtype=dtype),
            "counts_dtype": DTYPES[dtype],
            "mask": output((neurons + 7) // 8, dtype=torch.uint8) if self.train else None,
            "v": output(neurons, dtype=torch.float32), "bad": Buffer(torch.zeros(shape[0]), MARKS), "sample": shape[-1],
        }  # fmt: skip
        given = {name: getattr(self, name) for name in ("scale", "shift", "residual_scale", "v_init")}
        return Struct("Neuron", fields | given)


def pack_mask(gates: Tensor) -> Tensor:
    """Packs gates to bits: gate n is bit n % 8 of byte n // 8."""
    flat = gates.flatten()
    return pack(torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8).T)[0]


def scan(
    emulator: Emulator, layer: Layer, seed: int = 0, offset: int = 0, shifted: Collection[str] | None = None
) -> Outputs:
    """The outputs of the scan, which must equal those of the CPU's."""
    dtype = layer.currents.dtype
    given = {"currents": layer.currents, "dtype": DTYPES[dtype], "source": layer.source, "neuron": layer.neuron()}
    return emulator.check("if_scan", seed, offset, shifted, **given)


def random_layer(
    seed: int, T: int, shape: tuple[int, int], dtype: torch.dtype, source: int, residual: str | None
) -> Layer:
    """A layer with parameters of every kind, present or absent, and currents on both sides of the gates."""
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=g)

    def chance() -> bool:
        return torch.rand((), generator=g).item() < 0.5

    C = shape[-1]
    layer = Layer((0.6 * draw(*([T] if source == TRAIN else []), *shape) + 0.1).to(dtype), T, source)
    layer.scale, layer.shift, layer.residual_scale = (draw(C) if chance() else None for _ in range(3))
    layer.v_init = [None, draw(), draw(C), draw(*shape)][seed % 4]
    layer.gate, layer.leak, layer.steps = GATES[seed % 3 % 2], 1.0 if chance() else 0.9, T if chance() else 3
    layer.threshold = 1.0 if chance() else 0.3
    if residual == "planes":
        layer.residual = pack(draw(T, *shape) > 0)
    elif residual == "currents":
        layer.residual = draw(T, *shape)
    else:
        layer.residual_scale = None
    return layer


def random_window(
    seed: int, T: int, shape: tuple[int, int], dtype: torch.dtype, source: int, residual: str | None
) -> Layer:
    """A layer of window timing, on both sides of the gates and of the largest count."""
    layer = random_layer(seed, T, shape, dtype, source, None)
    layer.window, layer.leak, layer.gate = True, 1.0, GATES[seed % 2]
    layer.steps = [T, 1 + seed * 37 % 255][seed // 2 % 2]
    if source == IMPULSE:
        layer.currents *= T
    if residual == "planes":
        layer.residual = torch.randint(0, 256, (1, *shape), dtype=torch.uint8)
        layer.residual_scale = torch.randn(shape[-1]) / 16 if seed % 3 else None
    elif residual == "currents":
        layer.residual = torch.randn(1, *shape)
    return layer
