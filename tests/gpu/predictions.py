"""What layers should cost on a GPU, by arithmetic: no GPU has run them. docs/cuda.md shows table(); gpu-check puts its
measurements beside predict()."""

import math
import re
from typing import NamedTuple


class Card(NamedTuple):
    multiprocessors: int  # of four schedulers
    clock: float  # GHz
    mma: float  # clocks of a scheduler for an m16n8k32 of bytes
    shared: int  # bytes of shared memory that a multiprocessor reads or writes in a clock
    cache: float  # TB/s from the L2 cache
    memory: float  # TB/s that a copy reaches
    library: float  # 10^12 operations a second that cuBLAS reaches in 16 bits
    waits: bool = False  # for copies to shared memory, which are not asynchronous


CARDS = {
    "H100": Card(132, 1.755, 6.25, 128, 5.6, 3.0, 650),
    "A100": Card(108, 1.41, 10, 128, 4.3, 1.75, 240),
    "4090": Card(128, 2.52, 18, 128, 5.0, 0.92, 150),
    "T4": Card(40, 1.59, 16, 64, 1.27, 0.3, 32, waits=True),
}
LATENCY = 300  # clocks of a load from the L2 cache
T = 8


class Kernel(NamedTuple):
    """A block's tile, and what an mma costs in the loop over the depth of a convolution, with two digits and three: the
    emulator counts it (tests/cuda_host/test_emulated_costs.py)."""

    outputs: int
    pixels: int
    shared: tuple[float, ...]  # bytes of shared memory, read or written
    cache: tuple[float, ...]  # bytes from the L2 cache
    instructions: tuple[float, ...]
    waits: tuple[float, ...]  # of a warp of a T4 for loads
    warps: int  # that share a T4's multiprocessor and wait at the same time


class Layer(NamedTuple):
    name: str
    pixels: int
    outputs: int
    inputs: int  # of a neuron

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


LINEAR = Layer("Linear 4096², B = 64", 64, 4096, 4096)
CONV = Layer("conv 256→512, 3×3, stride 2, 32×32, B = 64", 64 * 16 * 16, 512, 2304)
SCAN = "scan of float32 currents [8, 16.8 million], training"
SCANNED, SCAN_BYTES = 2**24, 37.125  # neurons, and what each of them moves: currents, planes, counts, the gate
ANN, STEP, WINDOW, OURS = "the ANN's layer", "step timing", "window timing", "tandem"
MAKING = "making the digits"  # which a training step does in every layer
# By way: a layer takes the first whose blocks occupy three quarters of the multiprocessors, else the last.
KERNELS: dict[str, dict[str, Kernel]] = {
    STEP: {"wide": Kernel(64, 32, (168, 168), (24, 24), (4.1, 4.1), (0, 0), 8)},
    WINDOW: {
        "large": Kernel(128, 256, (128,), (32,), (6.9,), (0,), 8),
        "wide": Kernel(128, 128, (176, 448 / 3), (48, 128 / 3), (4.7, 6.3), (0, 0), 8),
        "narrow": Kernel(32, 64, (448, 1216 / 3), (128, 320 / 3), (8.8, 9.4), (0, 0), 8),
    },
}
SHOWN = (ANN, f"{STEP}, 2 digits", f"{WINDOW}, 2 digits", OURS)


def card_of(name: str) -> Card | None:
    """By the name that the driver gives: "NVIDIA A100-SXM4-80GB"."""
    return next((card for key, card in CARDS.items() if re.search(rf"(?<![A-Za-z0-9]){key}(?![0-9])", name)), None)


def blocks(layer: Layer, kernel: Kernel) -> int:
    return math.ceil(layer.outputs / kernel.outputs) * math.ceil(layer.pixels / kernel.pixels)


def tile_of(card: Card, layer: Layer, way: str, digits: int) -> str:
    def fills(kernel: Kernel) -> bool:
        half = 2 * layer.pixels > kernel.pixels and 2 * layer.outputs > kernel.outputs
        return len(kernel.shared) > digits - 2 and half and 4 * blocks(layer, kernel) >= 3 * card.multiprocessors

    return next((name for name, kernel in KERNELS[way].items() if fills(kernel)), list(KERNELS[way])[-1])


def layer_us(card: Card, layer: Layer, way: str, digits: int = 2) -> float:
    """µs: the largest of what the multiprocessors that have a block, the L2 cache and the memory take. In a
    multiprocessor it is the largest of tensor cores, instructions and shared memory, then the waits."""
    if way == ANN:
        operations = 2 * layer.pixels * layer.outputs * layer.inputs
        return max(operations / card.library / 1e6, 2 * layer.weights / card.memory / 1e6)
    if way == MAKING:  # of weights of two or four bytes
        return (2 * digits - 2 + digits) * layer.weights / card.memory / 1e6
    kernel, n = KERNELS[way][tile_of(card, layer, way, digits)], digits - 2
    mma = layer.pixels * layer.weights * digits * (T if way == STEP else 1) / (16 * 8 * 32)
    clocks = max(card.mma / 4, kernel.instructions[n] / 4, kernel.shared[n] / card.shared)
    clocks += card.waits * LATENCY * kernel.waits[n] / kernel.warps
    busy = min(blocks(layer, kernel), card.multiprocessors)
    compute = mma * clocks / (busy * card.clock * 1e3)
    return max(compute, mma * kernel.cache[n] / card.cache / 1e6, digits * layer.weights / card.memory / 1e6)


def predict(name: str, case: str, way: str) -> float | None:
    """µs of a row of gpu-check on the card of this name; None where nothing is predicted."""
    card = card_of(name)
    if card is None:
        return None
    if (case, way) == (SCAN, OURS):
        return SCANNED * SCAN_BYTES / card.memory / 1e6
    layer = next((layer for layer in (LINEAR, CONV) if layer.name == case), None)
    kind, _, digits = way.partition(", ")
    if layer is None or kind not in (ANN, STEP, WINDOW, MAKING) or (digits == "") != (kind == ANN):
        return None
    return layer_us(card, layer, kind, int(digits[0]) if digits else 2)


def rounded(value: float) -> str:
    """Three digits, of small numbers two."""
    digits = 2 - max(1, math.floor(math.log10(value)))
    return f"{round(value, digits):,.0f}"


def table() -> str:
    """The page's, in µs: two digits / three."""
    lines = [f"| | {' | '.join(CARDS)} |", "| --- |" + " ---: |" * len(CARDS)]
    for layer in (LINEAR, CONV):
        cells = [rounded(layer_us(card, layer, ANN)) for card in CARDS.values()]
        lines.append(f"| {layer.name}: {ANN} | {' | '.join(cells)} |")
        for way in (STEP, WINDOW, MAKING):
            pairs = [[rounded(layer_us(card, layer, way, n)) for n in (2, 3)] for card in CARDS.values()]
            lines.append(f"| {way} | {' | '.join(' / '.join(pair) for pair in pairs)} |")
    cells = [rounded(SCANNED * SCAN_BYTES / card.memory / 1e6) for card in CARDS.values()]
    return "\n".join([*lines, f"| {SCAN} | {' | '.join(cells)} |"])
