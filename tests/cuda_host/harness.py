"""Builds the kernels with nvcc, to PTX, and the machine of ptx/ that runs it; calls them on guarded buffers."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from build_tools.compile import NUMERICS, ROOT, build_folder, make_plan, ninja_text, nvcc_flags, read_sources, run_ninja
from build_tools.decide import Plan, Toolkit

HERE = Path(__file__).parent
INPUT, OUTPUT, INOUT, MARKS = 1, 2, 3, 5
GUARD = 4096  # bytes either side of a buffer: what runs out of bounds hits nothing else
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def find_toolkit() -> Toolkit | None:
    """The CUDA toolkit of this machine, whatever TANDEM_CUDA says about the build."""
    return make_plan({**os.environ, "TANDEM_CUDA": "auto"}).toolkit


def kernel_sources() -> list[Path]:
    """The .cu files of the library."""
    return [ROOT / path for path in read_sources()["cuda"]]


# Beside the flags of the library's own build: PTX instead of machine code, as text, with the lines of its source.
PTX = ["-gencode=arch=compute_80,code=compute_80", "-no-compress", "-lineinfo", "-Xcompiler=-fvisibility=default"]
MACHINE = ["-std=c++20", "-O2", "-ftree-vectorize", "-fwrapv", "-fPIC", "-Wall", "-Wextra", *NUMERICS]
LINK = ["-shared", "-Wl,-z,defs", "-Wl,-Bsymbolic"]


def machine_parts(kernels: Sequence[Path]) -> list[tuple[str, str, Path]]:
    """What ninja_text() takes of kernels and the machine that runs their PTX."""
    sources = [*kernels, *sorted((HERE / "ptx").glob("*.cpp"))]
    named = [("ptx" if path.suffix == ".cu" else "machine", path.relative_to(ROOT)) for path in sources]
    return [(rule, str(path), build_folder() / rule / f"{path}.o") for rule, path in named]


def machine_rules(toolkit: Toolkit) -> dict[str, list[str]]:
    nvcc = [str(toolkit.nvcc), *nvcc_flags(Plan(toolkit)), *PTX]
    return {"ptx": nvcc, "machine": ["g++", *MACHINE, "-Icsrc", f"-isystem{toolkit.include}"]}


def library_parts() -> list[tuple[str, str, Path]]:
    """Those of the library that tests call by way of entry.cpp."""
    entry = HERE.relative_to(ROOT) / "entry.cpp"
    return [*machine_parts(kernel_sources()), ("machine", str(entry), build_folder() / "machine" / f"{entry}.o")]


def build(name: str, parts: list[tuple[str, str, Path]], toolkit: Toolkit) -> Path:
    """A library of kernels and the machine. What did not change since it was last built is not compiled again."""
    library = build_folder() / f"{name}.so"
    return link(name, ninja_text(build_folder(), machine_rules(toolkit), LINK, parts, library), library)


def link(name: str, text: str, library: Path) -> Path:
    """The library that a file of ninja makes. Objects are shared: two at a time would lose dependencies."""
    (ROOT / build_folder()).mkdir(parents=True, exist_ok=True)
    with (ROOT / build_folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of pytest-xdist want the same
        built = run_ninja(build_folder() / f"{name}.ninja", text)
    if not built:
        raise RuntimeError(f"{name} does not compile; the compiler's message is above")
    return ROOT / library


@dataclass(frozen=True)
class Touches:
    """How often each byte of a buffer was read and written."""

    least_reads: int
    most_reads: int
    least_writes: int
    most_writes: int


@dataclass(frozen=True)
class Traffic:
    """What a buffer cost: memory instructions (once a warp), bytes, 32-byte sectors, waves through the banks of shared
    memory; ``least_*`` is what the same bytes need at best."""

    requests: int
    bytes: int
    sectors: int
    least_sectors: int
    waves: int
    least_waves: int


class Emulator:
    """A library of kernels whose PTX the machine runs. If ``checked``, it watches every access to the buffers."""

    def __init__(self, library: Path, checked: bool) -> None:
        self.checked = checked
        self.lib = ctypes.CDLL(str(library))
        self.lib.emulation_report.restype = ctypes.c_char_p
        self.lib.emulation_report_count.restype = ctypes.c_size_t
        self.lib.emulation_stream.restype = ctypes.c_void_p
        self.buffers: dict[str, tuple[Tensor, Tensor, int]] = {}  # by name: the memory, the view of it, its use

    def begin(self, seed: int = 0) -> None:
        """Forget buffers, options and reports; later launches are scheduled by ``seed``."""
        self.buffers.clear()
        self.lib.emulation_begin(ctypes.c_uint64(seed))
        self.lib.emulation_forget_buffers()

    def place(
        self, name: str, value: Tensor | None, use: int = INPUT, offset: int = 0, parts: dict[str, int] | None = None
    ) -> Tensor | None:
        """A copy of ``value`` in guarded memory, ``offset`` elements past a 256-byte boundary. Its accesses are counted
        under its name, or as those of its ``parts``, of so many bytes."""
        if value is None:
            return None
        size = value.numel() * value.element_size()
        memory = torch.full((size + 2 * GUARD + 512,), 0xAB, dtype=torch.uint8)
        start = GUARD - (memory.data_ptr() + GUARD) % 256 + 256 + offset * value.element_size()
        view = memory[start : start + size].view(value.dtype).view(value.shape)
        if use != OUTPUT:
            view.copy_(value)
        self.buffers[name] = memory, view, use
        if self.checked:
            for part, bytes_ in (parts or {name: size}).items():
                pointer = ctypes.c_void_p(memory.data_ptr() + start)
                self.lib.emulation_buffer(part.encode(), pointer, ctypes.c_size_t(bytes_), use)
                start += bytes_
        return view

    def output(self, name: str, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> Tensor:
        """An undefined output in guarded memory."""
        view = self.place(name, torch.empty(shape, dtype=dtype), OUTPUT, offset)
        assert view is not None
        return view

    def reports(self) -> list[str]:
        """What the machine has found, with the source line of each access."""
        texts = (self.lib.emulation_report(ctypes.c_size_t(i)) for i in range(self.lib.emulation_report_count()))
        found = [text.decode() for text in texts]
        if self.checked:
            for name, (_, view, use) in self.buffers.items():
                if use == OUTPUT and view.numel() > 0 and self.touches(name).least_writes == 0:
                    found.append(f"{name} is not written everywhere")
        return found

    def counted(self, kernel: str) -> tuple[int, int]:
        """Warp instructions, and mma among them, that kernels with ``kernel`` in their name have executed."""
        return self._counters(kernel)[:2]

    def warps(self, kernel: str) -> int:
        """That were launched of such kernels."""
        return self._counters(kernel)[2]

    def _counters(self, kernel: str) -> tuple[int, int, int]:
        out = (ctypes.c_uint64 * 3)()
        self.lib.emulation_counters(kernel.encode(), out)
        return out[0], out[1], out[2]

    def touches(self, name: str) -> Touches:
        out = (ctypes.c_uint32 * 4)()
        self.lib.emulation_touches(name.encode(), out)
        return Touches(*out)

    def traffic(self, name: str, write: bool = False) -> Traffic:
        out = (ctypes.c_uint64 * 6)()
        self.lib.emulation_traffic(name.encode(), int(write), out)
        return Traffic(*out)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def neuron_args(real: type) -> type[ctypes.Structure]:
    """csrc/kernels/neuron/if_neuron.h: Neuron<real>."""

    class Args(ctypes.Structure):
        _fields_ = [
            ("neurons", ctypes.c_int64),
            ("channels", ctypes.c_int64),
            ("T", ctypes.c_int32),
            ("steps", ctypes.c_int32),
            ("threshold", real),
            ("leak", real),
            ("gate", ctypes.c_int32),
            ("timing", ctypes.c_int32),
            ("scale", ctypes.c_void_p),
            ("shift", ctypes.c_void_p),
            ("residual_planes", ctypes.c_void_p),
            ("residual_currents", ctypes.c_void_p),
            ("residual_scale", ctypes.c_void_p),
            ("v_init", ctypes.c_void_p),
            ("v_init_size", ctypes.c_int64),
            ("planes", ctypes.c_void_p),
            ("counts", ctypes.c_void_p),
            ("counts_dtype", ctypes.c_int32),
            ("mask", ctypes.c_void_p),
            ("v", ctypes.c_void_p),
            ("bad", ctypes.c_void_p),
            ("sample", ctypes.c_int64),
            ("before", ctypes.c_int32),
            ("after", ctypes.c_int32),
            ("carried_v", ctypes.c_void_p),
            ("carried_z", ctypes.c_void_p),
            ("carried_counts", ctypes.c_void_p),
        ]

    return Args


NeuronArgs = neuron_args(ctypes.c_float)
NeuronArgs64 = neuron_args(ctypes.c_double)
