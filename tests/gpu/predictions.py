"""What layers should cost on a GPU, by arithmetic: no GPU has run them. docs/cuda.md shows table(); gpu-check puts its
measurements beside predict()."""

import math
import re
from typing import NamedTuple


class Card(NamedTuple):
    schedulers: int  # four on a multiprocessor
    clock: float  # GHz
    mma: float  # clocks of a scheduler for an m16n8k32 of bytes
    memory: float  # TB/s that a copy reaches
    library: float  # 10^12 operations a second that cuBLAS reaches in 16 bits


CARDS = {
    "H100": Card(528, 1.755, 6.25, 3.0, 650),
    "A100": Card(432, 1.41, 10, 1.75, 240),
    "4090": Card(512, 2.52, 18, 0.92, 150),
    "T4": Card(160, 1.59, 16, 0.3, 32),
}
T = 8


class Layer(NamedTuple):
    name: str
    neurons: int
    inputs: int  # of a neuron
    weights: int
    others: tuple[float, float]  # instructions of a scheduler for each mma with window timing, of two digits and three


LINEAR = Layer("Linear 4096², B = 64", 64 * 4096, 4096, 4096**2, (4.9, 5.4))
CONV = Layer("conv 256→512, 3×3, stride 2, 16×16, B = 64", 64 * 512 * 64, 2304, 512 * 2304, (6.7, 7.2))
SCAN = "scan of float32 currents [8, 16.8 million], training"
SCANNED, SCAN_BYTES = 2**24, 37.125  # neurons, and what each of them moves: currents, planes, counts, the gate
ANN, STEP, WINDOW, OURS = "the ANN's layer", "step timing", "window timing", "tandem"
MAKING = "making the digits"  # which a training step does in every layer
SHOWN = (ANN, f"{STEP}, 2 digits", f"{WINDOW}, 2 digits", OURS)


def card_of(name: str) -> Card | None:
    """By the name that the driver gives: "NVIDIA A100-SXM4-80GB"."""
    return next((card for key, card in CARDS.items() if re.search(rf"(?<![A-Za-z0-9]){key}(?![0-9])", name)), None)


def layer_us(card: Card, layer: Layer, way: str, digits: int = 2) -> float:
    """µs: the largest of what the tensor cores, the instructions and the memory take."""
    if way == ANN:
        operations = 2 * layer.neurons * layer.inputs
        return max(operations / card.library / 1e6, 2 * layer.weights / card.memory / 1e6)
    if way == MAKING:  # of weights of two or four bytes
        return (2 * digits - 2 + digits) * layer.weights / card.memory / 1e6
    mma = layer.neurons * layer.inputs * digits * (T if way == STEP else 1) / (16 * 8 * 32)
    others = 0.0 if way == STEP else layer.others[digits - 2]
    compute = mma * max(card.mma, others) / (card.schedulers * card.clock * 1e3)
    return max(compute, digits * layer.weights / card.memory / 1e6)


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
