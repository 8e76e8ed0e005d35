"""How long layers and training steps take, beside the ANN's and beside the bare products of torch's libraries."""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import ann

from . import smoke
from .clock import Bench, Row
from .on_device import capture, step_of
from .predictions import ANN, CONV, LINEAR, MAKING, OURS, SCAN, SCANNED, STEP, WINDOW, T

OPS, DIGITS = torch.ops.tandem, {2: torch.float16, 3: torch.float32}
OWN = (OURS, MAKING, STEP, WINDOW, "SNN")  # how a way of ours begins


def layer(x: te.SpikeTrain, weight: Tensor, digits: Tensor) -> tuple[Tensor, ...]:
    """Of a frozen network, whose digits are there."""
    neurons = (x.T, 1.0, 1.0, "relu", x.timing, False, False)
    if weight.dim() == 2:
        return OPS.linear_if(x.stored, x.T, weight, *neurons, digits=digits)
    return OPS.conv_if(x.stored, x.T, weight, [2, 2], [1, 1], [1, 1], 1, *neurons, digits=digits)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, None, 2, 1)


def ours(bench: Bench, case: str, x: te.SpikeTrain, weight: Tensor, making: bool = False) -> Iterator[Row]:
    """In both numbers of digits, with both timings."""
    bursts = te.SpikeTrain.from_counts(x.counts, x.T)
    for digits, dtype in DIGITS.items():
        w = weight.to(dtype)
        make = partial(OPS.frozen_digits, w, 1)
        if making:
            yield bench.row(case, f"{MAKING}, {digits} digits", make)
        made = make()
        yield bench.row(case, f"{STEP}, {digits} digits", partial(layer, x, w, made))
        yield bench.row(case, f"{WINDOW}, {digits} digits", partial(layer, bursts, w, made))


def beside_the_ann(bench: Bench, case: str, weight: Tensor, *shape: int) -> Iterator[Row]:
    """``product of all steps`` is what no layer by a library can beat."""
    x = bench.train(*shape)
    half, counts, matmul = weight.half(), x.counts, torch.backends.cuda.matmul
    yield bench.row(case, ANN, partial(lambda c: F.relu(product(c, half)), counts.half()))
    for tf32 in (False, True):
        matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        yield bench.row(case, f"{ANN}, {'TF32' if tf32 else 'float32'}", lambda: F.relu(product(counts, weight)))
    matmul.allow_tf32 = False  # as torch has it
    yield from ours(bench, case, x, weight, making=True)
    yield from either_tile(bench, case, x, weight)
    steps = x.to_dense(torch.float16).flatten(0, 1)
    yield bench.row(case, "torch, float16 product of all steps", partial(product, steps, half))
    for other in (4, 16):
        yield from ours(bench, f"{case}, T = {other}", bench.train(*shape, T=other), weight)


def either_tile(bench: Bench, case: str, x: te.SpikeTrain, weight: Tensor) -> Iterator[Row]:
    """Tiles for grids that fill the card, and for those that do not, whichever the card would take."""
    if bench.device.type != "cuda":
        return
    image = weight if weight.dim() > 2 else weight[:, :, None, None]
    stride, padding = ([2, 2], [1, 1]) if weight.dim() > 2 else ([1, 1], [0, 0])
    a = {
        "stored": x.stored.view(*x.stored.shape[:3], *(x.stored.shape[3:] or (1, 1))), "T": x.T, "weight": image,
        "stride": stride, "padding": padding, "dilation": [1, 1], "groups": 1, "steps": x.T, "threshold": 1.0,
        "leak": 1.0, "gate": "relu", "timing": "step", "train": False, "digits": OPS.frozen_digits(weight, 1),
    }  # fmt: skip
    for tile in ("wide", "deep"):
        call = partial(smoke.by_force, smoke.TILES[tile][0], a)
        yield bench.row(case, f"{STEP}, 3 digits, {tile} tiles", call)


@torch.inference_mode()
def linears(bench: Bench) -> Iterator[Row]:
    """And a batch of half the size, which takes the smaller tiles on an H100."""
    n = bench.size(4096, 64)
    weight = torch.randn(n, n, device=bench.device) / n**0.5
    for B in (bench.size(64, 20), bench.size(32, 18)):
        case = LINEAR.name.replace("B = 64", f"B = {B}") if not bench.small else f"Linear {n}², B = {B}"
        yield from beside_the_ann(bench, case, weight, B, n)
        x = bench.train(B, n)
        digit = torch.randint(-128, 128, (n, n), dtype=torch.int8, device=bench.device).t()
        counts, steps = x.counts.to(torch.int8), x.to_dense(torch.int8).flatten(0, 1)
        yield bench.row(case, "torch._int_mm of all steps, 1 digit", partial(torch._int_mm, steps, digit))
        yield bench.row(case, "torch._int_mm of counts, 1 digit", partial(torch._int_mm, counts, digit))
        half, wide = weight.half().t(), {"out_dtype": torch.float32} if bench.device.type == "cuda" else {}
        mm = partial(torch.mm, x.counts.half(), half, **wide)
        yield bench.row(case, "torch.mm of counts, float32 out", mm)


def filters(bench: Bench, C: int, N: int) -> Tensor:
    weight = torch.randn(N, C, 3, 3, device=bench.device) / (9 * C) ** 0.5
    return weight.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def convolutions(bench: Bench) -> Iterator[Row]:
    C, N, size, B = (4, 8, 4, 2) if bench.small else (256, 512, 32, 64)
    case = f"conv {C}→{N}" if bench.small else CONV.name
    yield from beside_the_ann(bench, case, filters(bench, C, N), B, C, size, size)


@torch.inference_mode()
def events(bench: Bench) -> Iterator[Row]:
    """The two channels of an event camera: copies of two bytes."""
    N, size, B, steps = (8, 4, 2, 16) if bench.small else (32, 128, 32, 16)
    x, weight = bench.train(B, 2, size, size, T=steps, rate=0.05), filters(bench, 2, N)
    case = f"conv 2→{N}, 3×3, stride 2, {size}×{size}, B = {B}, T = {steps}"
    counts, half = x.counts.half(), weight.half()
    yield bench.row(case, ANN, lambda: F.relu(product(counts, half)))
    yield from ours(bench, case, x, weight)


@torch.inference_mode()
def elementwise(bench: Bench) -> Iterator[Row]:
    """The scan, and batch norm without its product."""
    n = bench.size(SCANNED, 2**10)
    currents = torch.randn(T, 1, n, device=bench.device)
    neurons = (T, 1.0, 1.0, "relu", "step", True, False)
    needed = 4 * T * n + 5 * n + n // 8
    case = f"scan [{T}, {n}]" if bench.small else SCAN
    yield bench.row(case, OURS, partial(OPS.if_scan, currents, *neurons), bytes=needed)
    rows, channels = bench.size(2**17, 2**4), 128
    u, grad = torch.randn(2, rows, channels, device=bench.device)
    gamma, beta = torch.rand(2, channels, device=bench.device)
    mask = OPS.pack(torch.rand(8, 1, rows * channels // 8, device=bench.device) < 0.5).flatten()
    case, moments = f"batch norm [{rows}, {channels}]", partial(OPS.bn_statistics, u, 1.0, None, gamma, beta, 1e-5)
    yield bench.row(f"{case}, statistics", OURS, moments, bytes=4 * u.numel())
    yield bench.row(f"{case}, statistics", "torch.var_mean", partial(torch.var_mean, u, 0))
    mean, var = (t.contiguous() for t in moments()[:2])
    backward = partial(OPS.bn_grad, grad, mask, u, mean, var, None, gamma, 1e-5, 1.0)
    yield bench.row(f"{case}, backward", OURS, backward, bytes=20 * u.numel() + u.numel() // 4)


def replayed(step: Callable[[], Any]) -> Callable[[], None]:
    """The step as a CUDA graph, made by the first call."""
    graph = functools.cache(lambda: capture(step)[0])
    return lambda: graph().replay()


def training_step(bench: Bench, model: str, layers: Any, mixed: bool = False, **options: Any) -> Callable[[], Any]:
    B, width = bench.size(128, 4), bench.size(1, 0) or 1 / 16
    shape = (3, 32, 32) if model == "cifarnet" else (784,)
    x = torch.rand(B, *shape, device=bench.device)
    x = x.contiguous(memory_format=torch.channels_last) if len(shape) > 1 else x
    net = create(layers, model, shape, 10, T, width=width, **options)
    return partial(step_of(net.to(bench.device, memory_format=torch.channels_last), mixed), x)


def training(bench: Bench) -> Iterator[Row]:
    """A step, eager and as a CUDA graph: of an MLP, which the host bounds, and of CifarNet."""
    for model, mixed in (("FC800-FC800", False), ("cifarnet", False), ("cifarnet", True)):
        case = f"training step of {model}, B = {bench.size(128, 4)}" + ", autocast" * mixed
        for way, layers, options in (
            ("SNN, step timing", tnn, {}), ("SNN, window timing", tnn, {"timing": "window"}), ("ANN", ann, {}),
        ):  # fmt: skip
            step = training_step(bench, model, layers, mixed, **options)
            yield bench.row(case, way, step, eager=True)
            if bench.device.type == "cuda":
                yield bench.row(case, f"{way}, CUDA graph", replayed(step))


def host(bench: Bench) -> Iterator[Row]:
    """A layer that costs the GPU nothing: its host time, forward and with backward."""
    x, weight = bench.train(1, 16), torch.rand(16, 16, device=bench.device, requires_grad=True)
    counts = x.counts
    for way, forward in (
        (OURS, lambda: te.functional.linear_if(x, weight).counts), (ANN, lambda: F.relu(F.linear(counts, weight)))
    ):  # fmt: skip
        yield bench.row("Linear 16², B = 1, training forward", way, forward, eager=True)
        both = partial(lambda f: f().sum().backward(), forward)
        yield bench.row("Linear 16², B = 1, forward and backward", way, both, eager=True)


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "linear": linears, "conv": convolutions, "events": events, "elementwise": elementwise, "training": training,
    "host": host,
}  # fmt: skip


@torch.inference_mode()
def fixed_layer(bench: Bench, timing: str, weight: tuple[int, ...], input_: tuple[int, ...]) -> Callable[[], Any]:
    x = bench.train(*input_)
    x = te.SpikeTrain.from_counts(x.counts, T) if timing == "window" else x
    weight_ = torch.randn(weight, device=bench.device) / weight[0] ** 0.5
    return partial(layer, x, weight_, OPS.frozen_digits(weight_, 1))


# What the profiler looks into, a thing at a time.
PROFILED: dict[str, Callable[[Bench], Callable[[], Any]]] = {
    **{f"Linear 4096², B = 64, {timing} timing": lambda bench, timing=timing: fixed_layer(
        bench, timing, (bench.size(4096, 64),) * 2, (bench.size(64, 20), bench.size(4096, 64))
    ) for timing in ("step", "window")},
    **{f"training step of {model}, {name}": partial(training_step, model=model, layers=layers)
       for model in ("FC800-FC800", "cifarnet") for name, layers in (("SNN", tnn), ("ANN", ann))},
}  # fmt: skip
