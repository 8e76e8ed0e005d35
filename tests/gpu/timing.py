"""How long it takes, beside the bare product, plain PyTorch and the ANN's layer."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from competitors import if_loop
from torch import Tensor

import tandem_ext as te

from .clock import Bench, Row, T, failed, peaks, precision
from .training import inference, training

__all__ = ["Bench", "Row", "measure", "peaks"]
OPS = torch.ops.tandem


@torch.inference_mode()
def scans(bench: Bench) -> Iterator[Row]:
    n = bench.size(2**24, 2**10)
    loop = bench.compiled(if_loop)
    for dtype in (torch.float32, torch.bfloat16):
        currents = torch.randn(T, 1, n, device=bench.device).mul_(0.5).to(dtype)
        case, needed = f"scan [{T}, {n}] {str(dtype)[6:]}", T * n * dtype.itemsize + n
        yield bench.row(case, "tandem", partial(te.functional.if_scan, currents), bytes=needed)
        yield bench.row(case, "torch, loop", partial(if_loop, currents))
        yield bench.row(case, "torch, loop compiled", partial(loop, currents))
    neurons = (*[None] * 5, T, 1.0, 1.0, "relu", True, False)
    currents = torch.randn(T, 1, n, device=bench.device)
    needed = 4 * T * n + 5 * n + n // 8
    yield bench.row(
        f"scan [{T}, {n}] float32, training", "tandem", partial(OPS.if_scan, currents, *neurons), bytes=needed
    )
    constant = partial(OPS.constant_if, currents[0], T, *neurons)
    yield bench.row(f"scan of a constant current [{n}], training", "tandem", constant, bytes=9 * n + n // 8)


@torch.inference_mode()
def elementwise(bench: Bench) -> Iterator[Row]:
    """What goes over planes and gradients once."""
    n = bench.size(2**24, 2**10)
    planes = bench.train(1, n).planes
    spikes = OPS.unpack(planes, T, torch.bool)
    grad, mask = torch.randn(1, n, device=bench.device), OPS.pack(torch.rand(8, 1, n // 8, device=bench.device) < 0.5)
    z = torch.randn_like(grad)
    for case, call, needed in (
        (f"pack [{T}, {n}] bool", partial(OPS.pack, spikes), (T + 1) * n),
        (f"unpack [{T}, {n}] float16", partial(OPS.unpack, planes, T, torch.float16), (1 + 2 * T) * n),
        (f"counts [{n}] float32", partial(OPS.counts, planes, torch.float32), 5 * n),
        (f"gate of the gradient [{n}] float32", partial(OPS.gate_grad, grad, mask.flatten(), 1.0), 8 * n + n // 8),
    ):
        yield bench.row(case, "tandem", call, bytes=needed)
    yield bench.row(f"gate of the gradient [{n}] float32", "torch.where", lambda: torch.where(z > 0, grad, 0.0))


@torch.inference_mode()
def norms(bench: Bench) -> Iterator[Row]:
    rows, channels = bench.size(2**17, 2**4), 128
    u, grad = torch.randn(2, rows, channels, device=bench.device)
    gamma, beta = torch.rand(2, channels, device=bench.device)
    mask = OPS.pack(torch.rand(8, 1, rows * channels // 8, device=bench.device) < 0.5).flatten()
    case, moments = f"batch norm [{rows}, {channels}]", partial(OPS.bn_statistics, u, 1.0, None, gamma, beta, 1e-5)
    yield bench.row(f"{case}, statistics", "tandem", moments, bytes=4 * u.numel())
    yield bench.row(f"{case}, statistics", "torch.var_mean", partial(torch.var_mean, u, 0))
    mean, var = (t.contiguous() for t in moments()[:2])
    backward = partial(OPS.bn_grad, grad, mask, u, mean, var, None, gamma, 1e-5, 1.0)
    yield bench.row(f"{case}, backward", "tandem", backward, bytes=20 * u.numel() + u.numel() // 4)
    theirs = partial(torch.ops.aten.native_batch_norm_backward, grad, u, gamma, None, None, mean, (var + 1e-5).rsqrt(),
                     True, 1e-5, [True] * 3)  # fmt: skip
    yield bench.row(f"{case}, backward", "torch, without gates", theirs)


def one_product(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, None, stride, 1)


def product(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """torch's, of all steps at once: [T, B, *] -> [T, B, *]."""
    return one_product(x.flatten(0, 1), weight, stride).unflatten(0, x.shape[:2])


def product_and_scan(x: te.SpikeTrain, weight: Tensor, stride: int = 1) -> te.SpikeTrain:
    """What a layer does where there is no fused kernel."""
    return te.functional.if_scan(product(x.to_dense(weight.dtype), weight, stride))


def product_and_loop(x: Tensor, weight: Tensor, stride: int = 1) -> Any:
    return if_loop(product(x, weight, stride))


def ann_layer(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """The layer that the spiking one stands for: one product, not T."""
    return F.relu(one_product(x, weight, stride))


def layer(x: te.SpikeTrain, weight: Tensor, scale: Tensor | None = None, stride: int = 1) -> te.SpikeTrain:
    if weight.dim() == 2:
        return te.functional.linear_if(x, weight, scale=scale, timing=x.timing)
    return te.functional.conv2d_if(x, weight, stride=stride, padding=1, scale=scale, timing=x.timing)


def beside_the_ann(bench: Bench, case: str, x: te.SpikeTrain, weight: Tensor, stride: int = 1) -> Iterator[Row]:
    """In each type, with both timings; and with the statistics of a batch, as in training."""
    bursts = te.SpikeTrain.from_counts(x.counts, x.T)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        w, counts, of = weight.to(dtype), x.counts.to(dtype), f"{case} {str(dtype)[6:]}"
        yield bench.row(of, "tandem", partial(layer, x, w, stride=stride))
        yield bench.row(of, "tandem, window timing", partial(layer, bursts, w, stride=stride))
        yield bench.row(of, "the ANN's layer", partial(ann_layer, counts, w, stride))
    with precision("high"):
        yield bench.row(of, "the ANN's layer, TF32", partial(ann_layer, counts, w, stride))
    gamma, beta = torch.rand(2, len(weight), device=bench.device)
    conv = {} if weight.dim() == 2 else {"stride": stride, "padding": 1}
    ours = te.functional.linear_bn_if if weight.dim() == 2 else te.functional.conv2d_bn_if
    yield bench.row(f"{case} batch norm", "tandem", partial(ours, x, weight, gamma=gamma, beta=beta, **conv))

    def twin() -> Tensor:
        y = one_product(counts, weight, stride)
        return F.relu(F.batch_norm(y, None, None, gamma, beta, training=True))

    yield bench.row(f"{case} batch norm", "the ANN's layer", twin)


def products(bench: Bench, case: str, x: te.SpikeTrain, weight: Tensor, neurons: int) -> Iterator[Row]:
    operations, fixed = 2 * T * neurons * weight[0].numel(), x.planes.numel() + neurons
    compiled = bench.compiled(product_and_loop)
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        w, dense = weight.to(dtype), x.to_dense(dtype)
        known = {"operations": operations, "rate": name}
        of = f"{case} {name}"
        yield bench.row(of, "tandem", partial(layer, x, w), bytes=2 * w.numel() + fixed, **known)
        yield bench.row(of, "the bare product", partial(product, dense, w), **known)
        yield bench.row(of, "torch's product, our scan", partial(product_and_scan, x, w))
        yield bench.row(of, "torch, loop", partial(product_and_loop, dense, w))
        if dtype == torch.float16:  # compiling takes ten seconds
            yield bench.row(of, "torch, compiled", partial(compiled, dense, w))
    w = (weight / weight.abs().max() * 127).round().to(torch.int8)
    of, known = f"{case} int8", {"operations": operations, "rate": "int8"}
    scale = torch.full((len(w),), weight.abs().max().item() / 127, device=bench.device)
    yield bench.row(of, "tandem", partial(layer, x, w, scale), bytes=w.numel() + fixed, **known)
    if w.dim() == 2:
        dense = x.to_dense(torch.int8).flatten(0, 1)
        if len(dense) > 16:  # the least it takes
            yield bench.row(of, "the bare product", partial(torch._int_mm, dense, w.t()), **known)
    of, ours = f"{case} float32", {"operations": 3 * operations, "rate": "int8"}  # a weight is three digits
    yield bench.row(of, "tandem", partial(layer, x, weight), bytes=4 * weight.numel() + fixed, **ours)
    yield bench.row(of, "torch's product, our scan", partial(product_and_scan, x, weight))
    for allowed, rate in (("highest", "float32"), ("high", "tf32")):
        with precision(allowed):
            call = partial(product, x.to_dense(torch.float32), weight)
            yield bench.row(of, f"the bare product, {rate}", call, operations=operations, rate=rate)


def random_weight(bench: Bench, *shape: int) -> Tensor:
    weight = torch.randn(shape, device=bench.device) / math.prod(shape[1:]) ** 0.5
    return weight.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else weight


@torch.inference_mode()
def linears(bench: Bench) -> Iterator[Row]:
    n = bench.size(4096, 64)
    for B in (4,) if bench.small else (1, 64, 1024):
        x = bench.train(B, n)
        yield from products(bench, f"linear {n}x{n}, B={B}", x, random_weight(bench, n, n), B * n)
    B = bench.size(64, 4)
    for steps in (4, 8, 16):
        x = bench.train(B, n, steps=steps)
        yield from beside_the_ann(bench, f"linear {n}x{n}, B={B}, T={steps}", x, random_weight(bench, n, n))


@torch.inference_mode()
def convolutions(bench: Bench) -> Iterator[Row]:
    C, N, size, B = (4, 8, 4, 2) if bench.small else (128, 256, 16, 32)
    x, weight = bench.train(B, C, size, size), random_weight(bench, N, C, 3, 3)
    yield from products(bench, f"conv {C}->{N} 3x3 on {size}x{size}, B={B}", x, weight, B * N * size**2)
    C, N, B = (4, 8, 2) if bench.small else (256, 512, 64)
    weight = random_weight(bench, N, C, 3, 3)
    for steps in (4, 8, 16):
        x = bench.train(B, C, size, size, steps=steps)
        case = f"conv {C}->{N} 3x3, stride 2, on {size}x{size}, B={B}, T={steps}"
        yield from beside_the_ann(bench, case, x, weight, stride=2)


CASES = {
    "scan": scans, "linear": linears, "conv": convolutions, "training": training, "frozen": inference,
    "elementwise": elementwise, "norms": norms,
}  # fmt: skip


def rows_of(name: str, bench: Bench) -> Iterator[Row]:
    try:
        yield from CASES[name](bench)
    except Exception as error:  # between two rows
        yield failed(name, "tandem", error)


def measure(bench: Bench, say: Callable[[Row], None]) -> list[Row]:
    rows = []
    for name in CASES:
        for row in rows_of(name, bench):
            say(row)
            rows.append(row)
    return rows
