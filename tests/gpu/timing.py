"""How long layers and training steps take, beside the ANN's and beside the bare products of torch's libraries."""

import ctypes
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

from .clock import Bench, Row, noted
from .on_device import capture, step_of
from .predictions import ANN, CONV, LINEAR, MAKING, OURS, SCAN, SCANNED, STEP, WINDOW, T
from .structures import structure

OPS, DIGITS = torch.ops.tandem, {2: torch.float16, 3: torch.float32}
OWN = (OURS, MAKING, STEP, WINDOW, "SNN")  # how a way of ours begins


def layer(x: te.SpikeTrain, weight: Tensor, digits: Tensor) -> tuple[Tensor, ...]:
    """Of a frozen network, whose digits are there."""
    neurons = (T, 1.0, 1.0, "relu", x.timing, False, False)
    if weight.dim() == 2:
        return OPS.linear_if(x.stored, T, weight, *neurons, digits=digits)
    return OPS.conv_if(x.stored, T, weight, [2, 2], [1, 1], [1, 1], 1, *neurons, digits=digits)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, None, 2, 1)


def beside_the_ann(bench: Bench, case: str, x: te.SpikeTrain, weight: Tensor) -> Iterator[Row]:
    """In both numbers of digits, with both timings. ``product of all steps`` is what no layer by a library can beat."""
    bursts = te.SpikeTrain.from_counts(x.counts, x.T)
    half, counts = weight.half(), x.counts.half()
    yield bench.row(case, ANN, lambda: F.relu(product(counts, half)))
    for digits, dtype in DIGITS.items():
        w = weight.to(dtype)
        make = partial(OPS.frozen_digits, w, 1)
        yield bench.row(case, f"{MAKING}, {digits} digits", make)
        made = make()
        yield bench.row(case, f"{STEP}, {digits} digits", partial(layer, x, w, made))
        yield bench.row(case, f"{WINDOW}, {digits} digits", partial(layer, bursts, w, made))
    steps = x.to_dense(torch.float16).flatten(0, 1)
    yield bench.row(case, "torch, float16 product of all steps", partial(product, steps, half))


TILES = {"wide": 1, "deep": 2**20}  # multiprocessors of cards that take them


def forced_linear(
    extension: str, planes: Tensor, digits: Tensor, outputs: int, card: tuple[int, int], stream: int
) -> Tensor:
    """The spikes of a layer with step timing at T = 8 in the tiles of ``card``: multiprocessors, shared memory."""
    layer = structure("Layer")(prepared=digits.data_ptr(), stored=planes.data_ptr())
    geometry, neuron = layer.geometry, layer.neuron
    _, geometry.batch, geometry.channels = planes.shape
    geometry.outputs = neuron.channels = outputs
    geometry.height = geometry.width = geometry.groups = 1
    geometry.kernel[:] = geometry.stride[:] = geometry.dilation[:] = 1, 1
    spikes = planes.new_empty(1, geometry.batch, outputs)
    neuron.neurons, neuron.stored = spikes.numel(), spikes.data_ptr()
    neuron.T = neuron.steps = T
    neuron.threshold = neuron.leak = 1
    run_on, where = ctypes.CDLL(extension).tandem_run_on, structure("Card")(*card)
    status = run_on(ctypes.byref(layer), ctypes.byref(where), ctypes.c_void_p(stream))
    assert status == 0, f"CUDA error {status}"
    return spikes


def either_tile(bench: Bench, case: str, x: te.SpikeTrain, weight: Tensor) -> Iterator[Row]:
    """Tiles for grids that fill the card, and for those that do not, whichever the card would take."""
    if bench.device.type != "cuda":
        return
    shared = torch.cuda.get_device_properties(bench.device).shared_memory_per_multiprocessor
    extension = te.build_info().get("library") or te._C.__file__
    digits, stream = OPS.frozen_digits(weight, 1), torch.cuda.current_stream(bench.device).cuda_stream
    for tile, multiprocessors in TILES.items():
        call = partial(forced_linear, extension, x.stored, digits, len(weight), (multiprocessors, shared), stream)
        yield bench.row(case, f"{STEP}, 3 digits, {tile} tiles", call)


@torch.inference_mode()
def linears(bench: Bench) -> Iterator[Row]:
    """And a batch of half the size, which takes the smaller tiles on an H100."""
    n = bench.size(4096, 64)
    weight = torch.randn(n, n, device=bench.device) / n**0.5
    for B in (bench.size(64, 20), bench.size(32, 18)):
        x = bench.train(B, n)
        case = LINEAR.name.replace("B = 64", f"B = {B}") if not bench.small else f"Linear {n}², B = {B}"
        yield from beside_the_ann(bench, case, x, weight)
        yield from either_tile(bench, case, x, weight)
        digit = torch.randint(-128, 128, (n, n), dtype=torch.int8, device=bench.device).t()
        counts, steps = x.counts.to(torch.int8), x.to_dense(torch.int8).flatten(0, 1)
        yield bench.row(case, "torch._int_mm of all steps, 1 digit", partial(torch._int_mm, steps, digit))
        yield bench.row(case, "torch._int_mm of counts, 1 digit", partial(torch._int_mm, counts, digit))
        half, wide = weight.half().t(), {"out_dtype": torch.float32} if bench.device.type == "cuda" else {}
        mm = partial(torch.mm, x.counts.half(), half, **wide)
        yield bench.row(case, "torch.mm of counts, float32 out", mm)


@torch.inference_mode()
def convolutions(bench: Bench) -> Iterator[Row]:
    C, N, size, B = (4, 8, 4, 2) if bench.small else (256, 512, 32, 64)
    weight = torch.randn(N, C, 3, 3, device=bench.device) / (9 * C) ** 0.5
    x = bench.train(B, C, size, size)
    case = f"conv {C}→{N}" if bench.small else CONV.name
    yield from beside_the_ann(bench, case, x, weight.contiguous(memory_format=torch.channels_last))


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


def training(bench: Bench) -> Iterator[Row]:
    """A step, eager and as a CUDA graph: of an MLP, which the host bounds, and of CifarNet."""
    B, width = bench.size(128, 4), bench.size(1, 0) or 1 / 16
    flat = torch.rand(B, 784, device=bench.device)
    images = torch.rand(B, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
    for model, x, mixed in (("FC800-FC800", flat, False), ("cifarnet", images, False), ("cifarnet", images, True)):
        case = f"training step of {model}, B = {B}" + ", autocast" * mixed
        for way, layers, options in (
            ("SNN, step timing", tnn, {}), ("SNN, window timing", tnn, {"timing": "window"}), ("ANN", ann, {}),
        ):  # fmt: skip
            net = create(layers, model, x.shape[1:], 10, T, width=width, **options)
            step = partial(step_of(net.to(bench.device, memory_format=torch.channels_last), mixed), x)
            yield bench.row(case, way, step)
            if bench.device.type == "cuda":
                yield bench.row(case, f"{way}, CUDA graph", replayed(step))


def host(bench: Bench) -> Iterator[Row]:
    """A layer that costs the GPU nothing: its host time, forward and with backward."""
    x, weight = bench.train(1, 16), torch.rand(16, 16, device=bench.device, requires_grad=True)
    counts = x.counts
    for way, forward in (
        (OURS, lambda: te.functional.linear_if(x, weight).counts), (ANN, lambda: F.relu(F.linear(counts, weight)))
    ):  # fmt: skip
        yield bench.row("Linear 16², B = 1, training forward", way, forward)
        yield bench.row("Linear 16², B = 1, forward and backward", way, lambda f=forward: f().sum().backward())


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "linear": linears, "conv": convolutions, "elementwise": elementwise, "training": training, "host": host,
}  # fmt: skip


def rows_of(name: str, bench: Bench) -> Iterator[Row]:
    try:
        yield from CASES[name](bench)
    except Exception as error:  # between two rows
        yield {"case": name, "way": OURS, "note": noted(error)}


def measure(bench: Bench) -> Iterator[Row]:
    """All rows, whatever becomes of the others."""
    bench.measure_peaks()
    for name in CASES:
        yield from rows_of(name, bench)
