"""How long a call takes on a GPU, and what it leaves as a row of the result; how fast the GPU's clock ran meanwhile."""

import contextlib
import math
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tandem_ext as te

from .predictions import T, predict
from .preflight import first

Row = dict[str, Any]
OUT_OF_TIME = "out of time"
SAMPLED = {"clocks.sm": "MHz", "power.draw": "W", "temperature.gpu": "°C"}


def noted(error: Exception) -> str:
    return f"{type(error).__name__}: {first(error)[:80]}"


def short(kernel: str) -> str:
    """A kernel's name without its namespaces and parameters."""
    return re.sub(r"\b\w+::|^void |\(anonymous namespace\)::", "", kernel).partition("(")[0][:80]


class Clocks:
    """What nvidia-smi says five times a second, from here until stop(); nothing where it is not."""

    def __init__(self) -> None:
        query = ["--id=0", f"--query-gpu={','.join(SAMPLED)}", "--format=csv,noheader,nounits", "-lms", "200"]
        self.folder = tempfile.TemporaryDirectory()
        self.file, self.process = Path(self.folder.name, "samples"), None
        with contextlib.suppress(OSError), self.file.open("w") as file:
            self.process = subprocess.Popen(["nvidia-smi", *query], stdout=file, stderr=subprocess.DEVNULL)

    def stop(self) -> dict[str, list[float]]:
        """The least, the median and the most, by unit."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        lines = [line.split(", ") for line in self.file.read_text().splitlines()]
        found = {}
        for i, unit in enumerate(SAMPLED.values()):
            values = sorted(float(line[i]) for line in lines if len(line) == len(SAMPLED) and line[i][:1].isdigit())
            if values:
                found[unit] = [values[0], statistics.median(values), values[-1]]
        return found


class Bench:
    """Where to measure; how large (``small`` is for a rehearsal); until when, by time.monotonic()."""

    def __init__(self, device: torch.device, small: bool = False, until: float = math.inf) -> None:
        self.device, self.small, self.until = device, small, until
        self.card, self.rounds = "", self.size(21, 1)
        self.peaks: dict[str, float] = {}
        if device.type == "cuda":
            card = torch.cuda.get_device_properties(device)
            self.card = card.name
            self.flush = torch.zeros(card.L2_cache_size, device=device)  # four times as many bytes

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def train(self, *shape: int, T: int = T, rate: float = 0.15) -> te.SpikeTrain:
        return te.SpikeTrain.from_dense((torch.rand(T, *shape, device=self.device) < rate).float())

    def row(self, case: str, way: str, call: Callable[[], Any], bytes: int = 0, eager: bool = False) -> Row:
        """A call's times. ``bytes``: what it has to move, for its share of the copy's bandwidth. An ``eager`` step is
        many launches, for which the GPU may wait: its time is that of the host's clock."""
        row: Row = {"case": case, "way": way}
        predicted = predict(self.card, case, way)
        row |= {"predicted_us": predicted} if predicted is not None else {}
        if time.monotonic() > self.until:
            return row | {"note": OUT_OF_TIME}
        try:
            row |= self.time_eager(call) if eager else self.time(call)
        except Exception as error:  # of a kernel or of torch's: the other rows are still worth having
            return row | {"note": "out of memory" if "out of memory" in str(error) else noted(error)}
        if bytes and "copy" in self.peaks:
            row["of_copy"] = 100 * bytes / (row["us"] / 1e6) / self.peaks["copy"]
        return row

    def time(self, call: Callable[[], Any]) -> dict[str, float]:
        """µs of several calls, the caches filled with something else before each, by CUDA events or the host's clock:
        the median, a tenth and nine tenths; and what the host needs to put the call in its queue."""
        for _ in range(min(3, self.rounds)):
            call()
        times, host = zip(*(self._once(call) for _ in range(self.rounds)), strict=True)
        ordered = sorted(times)
        tenth = len(ordered) // 10
        return {"us": statistics.median(ordered), "low": ordered[tenth], "high": ordered[-1 - tenth],
                "host_us": statistics.median(host)}  # fmt: skip

    def time_eager(self, call: Callable[[], Any], calls: int = 20) -> dict[str, float]:
        """µs of a call among others, from the first to the end of the last's work, by the host's clock."""
        times = []
        for _ in range(min(4, self.rounds + 1)):  # the first is not measured
            self.synchronize()
            start = time.perf_counter()
            for _ in range(self.size(calls, 1)):
                call()
            self.synchronize()
            times.append(1e6 * (time.perf_counter() - start) / self.size(calls, 1))
        return {"us": statistics.median(times[1:]), "low": min(times[1:]), "high": max(times[1:])}

    def kernels(self, case: str, call: Callable[[], Any], calls: int = 5) -> list[Row]:
        """Of a call every kernel, on a CPU every operator of torch: how often it runs, and its µs together."""
        activity = torch.profiler.ProfilerActivity
        on_gpu = self.device.type == "cuda"
        if calls > 1:
            call()
        with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as found:
            for _ in range(calls):
                call()
            self.synchronize()
        rows = []
        for event in found.key_averages():
            us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            row = {"case": case, "kernel": short(event.key), "calls": event.count / calls, "us": us / calls}
            rows += [row] if us else []
        return sorted(rows, key=lambda row: -row["us"])

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _once(self, call: Callable[[], Any]) -> tuple[float, float]:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return (1e6 * (time.perf_counter() - start),) * 2
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.sum()  # reading leaves no lines that are written back while the call runs
        torch.cuda._sleep(1_000_000)  # the GPU is busy while the call is put in its queue
        begin.record()
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end), 1e6 * host

    def measure_peaks(self) -> dict[str, float]:
        """Bytes per second of a copy, read and written; operations per second of large products by torch."""
        elements, n = self.size(2**28, 2**12), self.size(8192, 64)
        a, b = torch.ones(2, elements, device=self.device)
        self.peaks["copy"] = 8e6 * elements / self.time(partial(b.copy_, a))["us"]
        x, y = torch.randn(2, n, n, device=self.device, dtype=torch.float16)
        self.peaks["float16"] = 2e6 * n**3 / self.time(partial(torch.mm, x, y))["us"]
        x, y = torch.randint(-128, 128, (2, n, n), dtype=torch.int8, device=self.device)
        self.peaks["int8"] = 2e6 * n**3 / self.time(partial(torch._int_mm, x, y.t()))["us"]
        return self.peaks
