"""The memory of this machine and of this process, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_option = getattr(ctypes.CDLL(None), "mallopt", None)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of malloc.h


def total() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def forget_peak() -> None:
    """The peak, VmHWM, starts anew from what is held now."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def resident(key: str = "VmRSS") -> int:
    """Bytes held now (VmRSS) or at the peak (VmHWM)."""
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status does not tell {key}")


def return_freed() -> None:
    """Gives freed memory, which glibc keeps for later, back to the system.

    glibc seldom finds it again for aligned blocks, as torch's tensors are (its bug 14581): the holes that a training
    step leaves can grow to gigabytes within minutes.
    """
    if _trim is not None:
        _trim(0)


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Within this context freed memory stays with the process until :func:`return_freed` or the end.

    Otherwise glibc gives large blocks back at once, and every training step has the system clear the same pages anew:
    a seventh of the time of a step of a small convolutional network. It is a setting of the whole process, so only the
    command line, whose process is its own, changes it.

    >>> with freed_is_kept():
    ...     for _ in range(3):
    ...         _ = torch.ones(1 << 24).sum()
    """
    if _option is not None:
        _option(_MMAP_MAX, 0)
        _option(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        if _option is not None:
            _option(_MMAP_MAX, 1 << 16)  # glibc's own
            _option(_TRIM_THRESHOLD, 1 << 26)  # and the most to which it grows by itself
            return_freed()


class PeakMemory:
    """Bytes by which memory grows at most within this context, beyond what is held at its start.

    On a CPU it is the process that grows, on a GPU what torch allocates there.

    >>> with PeakMemory(torch.device("cpu")) as memory:
    ...     _ = torch.ones(1 << 24)
    >>> memory.grown > (1 << 25)
    True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.grown: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            try:
                gc.collect()
                return_freed()  # growth into it would not be seen
                forget_peak()
                self._before = resident()
            except OSError:
                self._before = -1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.grown = torch.cuda.max_memory_allocated(self.device) - self._before
        elif self._before >= 0:
            self.grown = resident("VmHWM") - self._before
