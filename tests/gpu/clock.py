"""How long a call takes on a GPU, and what a measured row holds."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import tandem_ext as te

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
    timing: "Timing | None" = None

    def floor(self, peaks: dict[str, float]) -> float:
        """Seconds below which it cannot be, at the measured bandwidth and matrix rate."""
        return max(self.bytes / peaks["copy"], self.operations / peaks[self.rate] if self.rate else 0.0)


def failed(case: str, way: str, error: Exception) -> Row:
    return Row(case, way, float("nan"), note=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}")


@dataclass(frozen=True)
class Timing:
    """Seconds: the median, a tenth and nine tenths of several; and what the host needs to put the call in its queue."""

    seconds: float
    low: float
    high: float
    host: float


class Clock:
    """Times a call several times, each after the caches were filled with something else: CUDA events, or host time."""

    def __init__(self, device: torch.device, rounds: int = 21) -> None:
        self.device, self.rounds = device, rounds
        if device.type == "cuda":
            size = torch.cuda.get_device_properties(device).L2_cache_size
            self.flush = torch.zeros(size, dtype=torch.float32, device=device)  # four times as many bytes

    def __call__(self, call: Callable[[], Any]) -> float:
        return self.time(call).seconds

    def time(self, call: Callable[[], Any]) -> Timing:
        for _ in range(min(3, self.rounds)):
            call()
        seconds, host = zip(*(self._once(call) for _ in range(self.rounds)), strict=True)
        ordered = sorted(seconds)
        tenth = len(ordered) // 10
        return Timing(statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], statistics.median(host))

    def _once(self, call: Callable[[], Any]) -> tuple[float, float]:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            return seconds, seconds
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.sum()  # reading leaves no lines that are written back while the call runs
        torch.cuda._sleep(1_000_000)  # the GPU is busy while the call is put in its queue
        begin.record()
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, host

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

    def train(self, *shape: int, rate: float = 0.15, steps: int = T) -> te.SpikeTrain:
        return te.SpikeTrain.from_dense((torch.rand(steps, *shape, device=self.device) < rate).float())

    def row(self, case: str, way: str, call: Callable[[], Any], **known: Any) -> Row:
        if time.monotonic() > self.until:
            return Row(case, way, float("nan"), note="out of time")
        try:
            timing = self.clock.time(call)
            return Row(case, way, timing.seconds, memory=self.clock.memory(call), timing=timing, **known)
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
