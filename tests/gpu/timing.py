"""How long it takes, beside the bare product, plain PyTorch and SpikingJelly; the bytes and operations it needs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tandem_ext as te
from tandem_snn import freeze
from tandem_snn.bench.rivals.plain import if_loop
from tandem_snn.models import create_model, create_twin

OPS = torch.ops.tandem
T = 8


@dataclass
class Row:
    """One way to do one thing. ``bytes`` and ``operations`` are what it cannot do without; 0: not counted."""

    case: str
    way: str
    seconds: float
    bytes: int = 0
    operations: int = 0
    rate: str = ""  # the matrix rate that bounds the operations
    memory: int = 0  # most bytes allocated beyond what was there
    note: str = ""

    def floor(self, peaks: dict[str, float]) -> float:
        """Seconds below which it cannot be, at the measured bandwidth and matrix rate."""
        return max(self.bytes / peaks["copy"], self.operations / peaks[self.rate] if self.rate else 0.0)


def failed(case: str, way: str, error: Exception) -> Row:
    return Row(case, way, float("nan"), note=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}")


class Clock:
    """Seconds of a call: the median of several, each after the caches were overwritten; CUDA events, or host time."""

    def __init__(self, device: torch.device, rounds: int = 21) -> None:
        self.device, self.rounds = device, rounds
        if device.type == "cuda":
            size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
            self.flush = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], Any]) -> float:
        for _ in range(min(3, self.rounds)):
            call()
        return statistics.median(self._once(call) for _ in range(self.rounds))

    def _once(self, call: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(100_000)  # the GPU is busy while the call is put in its queue
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def memory(self, call: Callable[[], Any]) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


@dataclass
class Bench:
    """Where to measure; how large (``small`` is for trying the code itself out); until when, by time.monotonic()."""

    device: torch.device
    small: bool = False
    until: float = math.inf
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device, 1 if self.small else 21)

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self.small else torch.compile(function, dynamic=False)

    def train(self, *shape: int, rate: float = 0.15) -> te.SpikeTrain:
        return te.SpikeTrain.from_dense((torch.rand(T, *shape, device=self.device) < rate).float())

    def row(self, case: str, way: str, call: Callable[[], Any], **known: Any) -> Row:
        if time.monotonic() > self.until:
            return Row(case, way, float("nan"), note="out of time")
        try:
            return Row(case, way, self.clock(call), memory=self.clock.memory(call), **known)
        except torch.OutOfMemoryError:
            return Row(case, way, float("nan"), note="out of memory")
        except Exception as error:  # of a kernel, a compiler, another library: the other rows are still worth having
            return failed(case, way, error)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision, and back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peaks(bench: Bench) -> dict[str, float]:
    """Bytes per second of a copy, read and written; operations per second of large products by torch."""
    elements, n = bench.size(2**28, 2**12), bench.size(8192, 64)
    a, b = torch.ones(2, elements, device=bench.device)
    found = {"copy": 8 * elements / bench.clock(partial(b.copy_, a))}
    x, y = torch.randn(2, n, n, device=bench.device)
    for name, dtype, allowed in (
        ("float16", torch.float16, "highest"),
        ("bfloat16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        with precision(allowed):
            found[name] = 2 * n**3 / bench.clock(partial(torch.mm, x.to(dtype), y.to(dtype)))
    x, y = torch.randint(-128, 128, (2, n, n), dtype=torch.int8, device=bench.device)
    found["int8"] = 2 * n**3 / bench.clock(partial(torch._int_mm, x, y.t()))
    return found


# --- the cases --------------------------------------------------------------------------------------------------------


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


def product(x: Tensor, weight: Tensor) -> Tensor:
    """torch's, of all steps at once: [T, B, *] -> [T, B, *]."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    return F.conv2d(x.flatten(0, 1), weight, None, 1, 1).unflatten(0, x.shape[:2])


def product_and_scan(x: te.SpikeTrain, weight: Tensor) -> te.SpikeTrain:
    """What a layer does where there is no fused kernel."""
    return te.functional.if_scan(product(x.to_dense(weight.dtype), weight))


def product_and_loop(x: Tensor, weight: Tensor) -> Any:
    return if_loop(product(x, weight))


def layer(x: te.SpikeTrain, weight: Tensor, scale: Tensor | None = None) -> te.SpikeTrain:
    if weight.dim() == 2:
        return te.functional.linear_if(x, weight, scale=scale)
    return te.functional.conv2d_if(x, weight, padding=1, scale=scale)


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
    for terms, allowed, rate in ((3, "highest", "float32"), (2, "high", "tf32"), (1, "medium", "bfloat16")):
        of, known = f"{case} float32 {allowed}", {"operations": operations, "rate": rate}
        ours = {"operations": terms * operations, "rate": "bfloat16"}  # a weight is a sum of so many bfloat16
        with precision(allowed):
            yield bench.row(of, "tandem", partial(layer, x, weight), bytes=4 * weight.numel() + fixed, **ours)
            yield bench.row(of, "the bare product", partial(product, x.to_dense(torch.float32), weight), **known)
            yield bench.row(of, "torch's product, our scan", partial(product_and_scan, x, weight))


def random_weight(bench: Bench, *shape: int) -> Tensor:
    weight = torch.randn(shape, device=bench.device) / math.prod(shape[1:]) ** 0.5
    return weight.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else weight


@torch.inference_mode()
def linears(bench: Bench) -> Iterator[Row]:
    n = bench.size(4096, 64)
    for B in (4,) if bench.small else (1, 64, 1024):
        x = bench.train(B, n)
        yield from products(bench, f"linear {n}x{n}, B={B}", x, random_weight(bench, n, n), B * n)


@torch.inference_mode()
def convolutions(bench: Bench) -> Iterator[Row]:
    C, N, size, B = (4, 8, 4, 2) if bench.small else (128, 256, 16, 32)
    x, weight = bench.train(B, C, size, size), random_weight(bench, N, C, 3, 3)
    yield from products(bench, f"conv {C}->{N} 3x3 on {size}x{size}, B={B}", x, weight, B * N * size**2)


@torch.inference_mode()
def crossing(bench: Bench) -> Iterator[Row]:
    """Where the fused kernel and torch's product with TensorFloat-32 meet; the rule of docs/cuda.md stands or falls."""
    for K, B in product_of_sizes(bench, (512, 1024, 4096), (32, 256, 2048)):
        x, weight = bench.train(B, K), random_weight(bench, 1024, K)
        case = f"precision high, K={K}, T B={T * B}"
        with precision("high"):
            yield bench.row(case, "tandem, as the rule says", partial(layer, x, weight))
            yield bench.row(case, "torch's product, our scan", partial(product_and_scan, x, weight))
        for allowed, way in (("medium", "tandem, fused, one bfloat16"), ("highest", "tandem, fused, three bfloat16")):
            with precision(allowed):
                yield bench.row(case, way, partial(layer, x, weight))


def product_of_sizes(bench: Bench, *sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All combinations, or a small one."""
    return iter([(8,) * len(sizes)]) if bench.small else itertools.product(*sizes)


def training(bench: Bench) -> Iterator[Row]:
    """Forward, loss, backward of CifarNet by each way, in float32 and by autocast."""
    B, width = bench.size(128, 2), bench.size(1, 0) or 1 / 16
    options = {"shape": (3, 32, 32), "classes": 10, "T": T, "width": width}
    x = torch.rand(B, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(B, device=bench.device) % 10

    def step(
        net: nn.Module, autocast: bool, forward: Callable[[Tensor], Tensor] | None = None, reset: Any = None
    ) -> Callable[[], None]:
        net = net.to(bench.device, memory_format=torch.channels_last)

        def run() -> None:
            for p in net.parameters():
                p.grad = None
            if reset is not None:
                reset()
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy((forward or net)(x), labels)
            loss.backward()

        return run

    for autocast in (False, True):
        case = f"cifarnet training step, B={B}" + ", bfloat16 autocast" * autocast
        yield bench.row(case, "tandem", step(create_model("cifarnet", **options), autocast))
        yield bench.row(case, "ANN twin", step(create_twin("cifarnet", **options), autocast))
        if find_spec("spikingjelly") is not None:
            yield from spikingjelly(
                bench, case, partial(create_twin, "cifarnet", **options), partial(step, autocast=autocast)
            )


@torch.inference_mode()
def inference(bench: Bench) -> Iterator[Row]:
    """CifarNet's answers, layer by layer and frozen, which on a GPU is one CUDA graph."""
    width = bench.size(1, 0) or 1 / 16
    options = {"shape": (3, 32, 32), "classes": 10, "T": T, "width": width}
    net, twin = (
        create("cifarnet", **options).eval().to(bench.device, memory_format=torch.channels_last)
        for create in (create_model, create_twin)
    )
    frozen = freeze(net)
    for B in (2,) if bench.small else (1, 128):
        x = torch.rand(B, 3, 32, 32, device=bench.device).contiguous(memory_format=torch.channels_last)
        case = f"cifarnet inference, B={B}"
        yield bench.row(case, "tandem, frozen", partial(frozen, x))
        yield bench.row(case, "tandem, layer by layer", partial(net, x))
        yield bench.row(case, "ANN twin", partial(twin, x))


def spikingjelly(bench: Bench, case: str, twin: Callable[[], nn.Sequential], step: Callable[..., Any]) -> Iterator[Row]:
    """By each of its backends; from version 2 on, which chooses its kernels itself, also compiled."""
    from spikingjelly.activation_based import functional, neuron

    by_name = "backend" in inspect.signature(neuron.IFNode.__init__).parameters
    for backend in ("torch", "cupy", "triton") if by_name else ("eager", "compiled"):
        keywords = {"backend": backend} if by_name else {}
        with contextlib.suppress(ImportError, NotImplementedError, ValueError, AssertionError):
            net = spikingjelly_net(twin(), **keywords)
            forward = bench.compiled(net) if backend == "compiled" else net
            reset = partial(functional.reset_net, net)
            yield bench.row(case, f"SpikingJelly, {backend}", step(net, forward=forward, reset=reset))


def spikingjelly_net(twin: nn.Sequential, **backend: str) -> nn.Module:
    """The twin's products and norms in multi-step mode, with SpikingJelly's neurons in the place of ReLU."""
    from spikingjelly.activation_based import functional, layer, neuron

    class Repeat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unsqueeze(0).repeat(T, *[1] * x.dim())

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(0)

    modules: list[nn.Module] = [Repeat()]
    for module in twin:
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Flatten):
            modules.append(layer.Flatten())
        elif weight is not None and weight.dim() == 4:
            out, channels, *kernel = weight.shape
            modules += [layer.Conv2d(channels, out, kernel, module.stride, module.padding, bias=False),
                        layer.BatchNorm2d(out), neuron.IFNode(v_reset=None, **backend)]  # fmt: skip
        elif weight is not None:
            out, features = weight.shape
            modules.append(layer.Linear(features, out, bias=False))
            if module is not twin[-1]:
                modules += [layer.BatchNorm1d(out), neuron.IFNode(v_reset=None, **backend)]
    net = nn.Sequential(*modules, Mean())
    functional.set_step_mode(net, "m")
    return net


CASES = {
    "scan": scans, "linear": linears, "conv": convolutions, "training": training, "frozen": inference,
    "elementwise": elementwise, "norms": norms, "crossing": crossing,
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
