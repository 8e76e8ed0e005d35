"""Every kernel on small layers, in half a minute: the bits of the rule, as tandem_ext/rule.py computes it on the
CPU. Which tiles a layer gets is not left to the card, but forced. tests/cuda_host/test_emulated_smoke.py asserts that
these cases run every kernel that is compiled.
"""

import itertools
import math
import re
import warnings
from collections.abc import Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from cases import dyadic
from torch import Tensor

import tandem_ext as te
from tandem_ext import reference, rule
from tandem_ext.composite import images, pack_bits, rows

from .correctness import Case, equal
from .structures import library, run_on

OPS = torch.ops.tandem
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# The types of weights by their digits: float32 has three or four.
DIGITS = {1: (torch.int8,), 2: (torch.float16, torch.bfloat16), 3: (torch.float32,)}
# How many multiprocessors a card has that takes these tiles, and the pixels of a layer; with window timing for counts.
TILES = {"wide": (1, 36), "deep": (2**20, 36), "narrow": (1, 6)}
COUNT_TILES = {"large counts": (1, 132), "wide counts": (1, 66), "narrow counts": (2**20, 36)}
RESULTS = ("spikes", "counts", "gates", "potentials", "bad")


class Shape(NamedTuple):
    """A convolution to images of one pixel or six, and what its neurons have."""

    inputs: int
    outputs: int
    size: tuple[int, int] = (2, 3)
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    residual: str = ""
    leak: float = 1.0
    gate: str = "relu"
    v_init: bool = False


SHAPES = {  # copies of 16 bytes, of 4, 16, 8 and 1
    "matrix": Shape(1104, 24, (1, 1)),  # more stages than the ring of any card has slots
    "ring": Shape(1100, 24, residual="spikes", gate="clip"),  # the same
    "taps": Shape(32, 72, kernel=3, residual="spikes"),
    "stride": Shape(24, 40, (3, 5), kernel=3, stride=2, residual="currents", leak=0.5),
    "dilation": Shape(36, 40, kernel=3, dilation=2, groups=2, v_init=True),  # gates as bytes
}
PLAIN = {"depthwise": Shape(12, 12, kernel=3, groups=12), "few outputs": Shape(8, 24, groups=2, residual="spikes")}


def draw(shape: Shape, T: int, pixels: int, dtype: torch.dtype, timing: str) -> dict[str, Any]:
    """Arguments of OPS.conv_if: weights of no grid, and neurons of which some fire and some do not."""
    k, window = shape.kernel, timing == "window"
    fan = shape.inputs // shape.groups * k * k
    batch, out = (pixels, (1, 1)) if shape.size == (1, 1) else (pixels // 6, (2, 3))

    def stored(*sizes: int) -> Tensor:
        counts = torch.randint(T + 1, (1, *sizes), dtype=torch.uint8)
        return images(counts if window else rule.pack(torch.rand(T, *sizes) < 0.3), 2)

    weight, scale = torch.randn(shape.outputs, k, k, fan // k**2), torch.rand(shape.outputs) * 3 / math.sqrt(fan)
    if dtype == torch.int8:
        weight, scale = (40 * weight).clamp(-128, 127), scale / 40
    residual = None
    if shape.residual == "spikes":
        residual = stored(batch, *out, shape.outputs)
    elif shape.residual:
        residual = images(torch.randn(1 if window else T, batch, *out, shape.outputs), 2)
    return {
        "stored": stored(batch, *shape.size, shape.inputs), "T": T, "weight": images(weight.to(dtype), 1),
        "stride": [shape.stride] * 2, "padding": [k // 2 * shape.dilation] * 2, "dilation": [shape.dilation] * 2,
        "groups": shape.groups, "steps": T, "threshold": 1.0, "leak": 1.0 if window else shape.leak, "gate": shape.gate,
        "timing": timing, "train": True, "return_v": True, "scale": scale, "shift": torch.randn(shape.outputs),
        "residual": residual, "residual_scale": torch.rand(shape.outputs) / 4 if shape.residual else None,
        "v_init": images(torch.rand(*out, shape.outputs), 0) if shape.v_init else None,
    }  # fmt: skip


def by_rule(a: dict[str, Any]) -> tuple[Tensor, ...]:
    """The five results of OPS.conv_if by the reference: sums of spikes are exact in float64, whatever the weights."""
    window = a["timing"] == "window"
    train = te.SpikeTrain.unchecked(a["stored"], a["T"], timing=a["timing"])
    geometry = a["stride"], a["padding"], a["dilation"], a["groups"]
    y, u, *_ = reference._currents(train, a["weight"], geometry, torch.float32, a["timing"])
    scale, shift, factor = (None if a[k] is None else a[k][:, None, None] for k in ("scale", "shift", "residual_scale"))
    r, residual = a["residual"], None
    if r is not None:
        r = r if r.dtype != torch.uint8 else r.float() if window else rule.spikes_of(r, a["T"], "step", torch.float32)
        residual = rule.Residual(r, reduce(torch.add, r), factor)
    start = start_of(a)
    v = torch.zeros(u.shape) if start is None else start.expand(u.shape)
    stored, counts, v, is_open = rule.fire(
        y, u, scale, shift, residual, v, a["T"], a["steps"], a["threshold"], a["leak"], a["gate"], a["timing"],
    )  # fmt: skip
    return stored, counts, pack_bits(rows(is_open, 1).flatten()), v, torch.zeros(len(u))


def start_of(a: dict[str, Any]) -> Tensor | None:
    """The potential before the first step, which the op makes of none with window timing: half a threshold."""
    if a.get("v_init") is not None or a["timing"] == "step":
        return a.get("v_init")
    return torch.full((), a["threshold"] / 2, device=a["stored"].device)


def by_force(multiprocessors: int, a: dict[str, Any]) -> tuple[Tensor | None, ...]:
    """The same by the kernel that a card of so many multiprocessors would take, without the op."""
    weight, stored = a["weight"], rows(a["stored"], 2)
    _, batch, *size, channels = stored.shape
    axes = zip(size, weight.shape[2:], a["stride"], a["padding"], a["dilation"], strict=True)
    out = batch, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes), len(weight)
    spikes, v = stored.new_empty(len(stored), *out), stored.new_empty(out, dtype=torch.float32)
    counts, gates = torch.empty_like(v), stored.new_empty((v.numel() + 7) // 8)
    bad = torch.zeros(batch, device=stored.device)
    residual, v_init = a.get("residual"), start_of(a)
    residual, v_init = None if residual is None else rows(residual, 2), None if v_init is None else rows(v_init, 0)
    neuron = {key: a.get(key) for key in ("T", "steps", "threshold", "leak", "scale", "shift", "residual_scale")} | {
        "neurons": v.numel(), "channels": len(weight), "gate": int(a["gate"] == "clip"),
        "timing": int(a["timing"] == "window"), "stored": spikes, "bad": bad, "sample": v[0].numel(),
        "v_init": v_init, "v_init_size": 1 if v_init is None else v_init.numel(),
    }  # fmt: skip
    if residual is not None:
        neuron["residual_stored" if residual.dtype == torch.uint8 else "residual_currents"] = residual
    if a["train"]:
        neuron |= {"counts": counts, "mask": gates, "open": torch.empty_like(v, dtype=torch.uint8), "v": v}
    geometry = {key: tuple(a[key]) for key in ("stride", "padding", "dilation")} | {
        "batch": batch, "height": size[0], "width": size[1], "channels": channels, "outputs": len(weight),
        "groups": a["groups"], "kernel": tuple(weight.shape[2:]),
    }  # fmt: skip
    digits = OPS.frozen_digits(weight, a["groups"]) if a.get("digits") is None else a["digits"]
    dtype = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 4}[weight.dtype]
    layer = {"geometry": geometry, "weights": {"dtype": dtype}, "prepared": digits, "stored": stored, "neuron": neuron}
    run_on(multiprocessors, weight.device, layer)
    return images(spikes, 2), images(counts, 1), gates, images(v, 1), bad


def tile_of(case: str) -> str | None:
    """The tiles that a case forces, as the name of its kernel has them: Wide8."""
    tile, T = case.split(", ")[0], re.search(r"T = (\d+)", case)
    if tile in COUNT_TILES:
        return tile.title().replace(" ", "")
    if tile not in TILES or T is None:
        return None
    return f"{tile.title()}{next(n for n in (4, 8, 16) if int(T[1]) <= n or n == 16)}"


def moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def products() -> Iterator[Case]:
    """Fused layers, by every kind of tile; in a rehearsal without CUDA kernels by the op."""

    def run(device: torch.device, shape: Shape, T: int, dtype: torch.dtype, timing: str, card: tuple[int, int]) -> None:
        multiprocessors, pixels = card
        a = draw(shape, T, pixels, dtype, timing)
        given = {key: moved(value, device) for key, value in a.items()}
        forced = device.type == "cuda" or hasattr(library(), "emulation_shared")
        results = by_force(multiprocessors, given) if forced else OPS.conv_if(**given)
        for name, got, want in zip(RESULTS, results, by_rule(a), strict=True):
            equal(name, got, want)
        fired = results[1].count_nonzero()
        assert 0 < fired < results[1].numel(), f"{fired} neurons fire"

    filling = {name: shape._replace(outputs=72 * shape.groups) for name, shape in SHAPES.items()}
    windows = itertools.product(COUNT_TILES.items(), (8, 21), ("window",), filling.items())
    steps = itertools.product(TILES.items(), (4, 8, 16, 21), ("step",), SHAPES.items())
    plain = itertools.product([("plain", (1, 36))], (8, 21), ("step", "window"), PLAIN.items())
    for (tile, card), T, timing, (name, shape) in itertools.chain(steps, windows, plain):
        for digits, types in DIGITS.items():
            if tile == "large counts" and digits > 2:
                continue  # they take wide tiles
            dtype = types[T // 4 % 2 % len(types)]
            title = f"{tile}, T = {T}, {digits} digits, {name}" + f", {timing}" * (tile == "plain")
            yield Case(title, partial(run, shape=shape, T=T, dtype=dtype, timing=timing, card=card))


def same(device: torch.device, op: str, *arguments: Any, rounds: bool = False) -> None:
    """The results of an op and those of torch's operators, on the CPU; where they add what rounds, nearly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is a kernel
        wanted = getattr(torch.ops.tandem_composite, op)(*arguments)
    results = getattr(OPS, op)(*(moved(value, device) for value in arguments))
    pairs = zip(results, wanted, strict=True) if isinstance(results, tuple) else [(results, wanted)]
    for i, (got, want) in enumerate(pairs):
        if rounds and got.is_floating_point():
            torch.testing.assert_close(got.cpu(), want)
        else:
            equal(f"{op}, result {i}", got, want)


def scans() -> Iterator[Case]:
    """Neurons on given currents; channels in fours and not."""

    def run(device: torch.device, op: str, T: int, dtype: torch.dtype, timing: str, residual: bool) -> None:
        for channels in (12, 13):
            shape = (T, 5, channels) if op == "if_scan" else (5, channels)
            arguments = [torch.randn(shape).to(dtype), *([] if op == "if_scan" else [T]), T, 1.0, 1.0, "relu", timing]
            more = rule.pack(torch.rand(T, 5, channels) < 0.3) if residual else None
            same(device, op, *arguments, True, True, torch.rand(channels), torch.randn(channels), None, more)

    ways = [("if_scan", T, "step", False) for T in (4, 5, 8, 16)] + [("if_scan", 5, "step", True)]
    ways += [("if_scan", 5, "window", False), ("constant_if", 5, "window", False)]
    ways += itertools.product(("constant_if", "impulse_if"), (5,), ("step",), (False, True))
    for dtype, (op, T, timing, residual) in itertools.product(FLOATS, ways):
        name = f"{op}, {str(dtype)[6:]}, T = {T}, {timing}" + ", residual" * residual
        yield Case(name, partial(run, op=op, T=T, dtype=dtype, timing=timing, residual=residual))


def planes() -> Iterator[Case]:
    """Bits and counts of spikes, and what gates let through."""

    def run(device: torch.device, dtype: torch.dtype) -> None:
        for neurons in (100, 7):
            spikes, T = torch.rand(13, 2, neurons) < 0.3, 13
            bits = rule.pack(spikes)
            same(device, "pack", spikes.to(dtype))
            same(device, "unpack", bits, T, dtype)
            same(device, "count_bytes", bits)
            same(device, "burst_planes", torch.randint(T + 1, (1, 2, neurons), dtype=torch.uint8), T)
            if dtype in FLOATS:
                same(device, "counts", bits, dtype)
                mask = torch.randint(256, ((2 * neurons + 7) // 8,), dtype=torch.uint8)
                same(device, "gate_grad", dyadic(2, neurons, dtype=dtype), mask, 0.5)

    for dtype in (*FLOATS, torch.float64, torch.bool):
        yield Case(f"planes, {str(dtype)[6:]}", partial(run, dtype=dtype))


def norms() -> Iterator[Case]:
    """Batch norm, alone and in layers, on dyadic numbers."""

    def run(device: torch.device, dtype: torch.dtype) -> None:
        for channels in (12, 13):
            u, gamma, beta = dyadic(40, channels), torch.rand(channels), torch.randn(channels)
            same(device, "bn_statistics", u, 1.0, None, gamma, beta, 1e-5)
            mask = torch.randint(256, (5 * channels,), dtype=torch.uint8)
            moments = dyadic(40, channels, dtype=dtype), mask, u, u.mean(0), u.var(0, correction=0)
            same(device, "bn_grad", *moments, None, gamma, 1e-5, 1.0, rounds=True)
            for timing in ("step", "window"):
                a = draw(SHAPES["stride"], 8, 36, torch.float32, timing)
                a["weight"] = images(dyadic(channels, 3, 3, 24, dtype=dtype), 1)
                product = [a[key] for key in ("stored", "T", "weight", "stride", "padding", "dilation", "groups")]
                same(device, "window_product", *product, timing)
                norm = None, torch.rand(channels), torch.randn(channels), 1e-5
                same(device, "bn_if", *product, *norm, 8, 1.0, 1.0, "relu", timing, True)

    for dtype in FLOATS:
        yield Case(f"batch norm, {str(dtype)[6:]}", partial(run, dtype=dtype))


def cases() -> list[Case]:
    return [*products(), *scans(), *planes(), *norms()]
