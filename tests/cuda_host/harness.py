"""Builds the kernels with nvcc, as PTX, and the machine of ptx/ that executes it; calls kernels on guarded buffers."""

import ctypes
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.structures import structure
from torch import Tensor

from build_tools.compile import (
    NUMERICS,
    ROOT,
    build_folder,
    commands,
    make_plan,
    ninja_text,
    nvcc_flags,
    read_sources,
    run_ninja,
)
from build_tools.decide import Plan, Toolkit

HERE = Path(__file__).parent
AS_IT_LIES, INPUT, OUTPUT, INOUT, MARKS = 0, 1, 2, 3, 5
GUARD = 4096  # bytes on both sides of a buffer, so that an overrun hits nothing else
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def find_toolkit() -> Toolkit | None:
    """The CUDA toolkit of this machine, whatever TANDEM_CUDA says about the build."""
    return make_plan({**os.environ, "TANDEM_CUDA": "auto"}).toolkit


# In addition to the build's flags: PTX as text instead of machine code, with source lines. TANDEM_EMULATED_ARCH: which
# GPU's, since kernels and the toolkit's headers have branches; an H100 takes those of 90, a T4 those of 75.
ARCH = os.environ.get("TANDEM_EMULATED_ARCH", "80")
CAPABILITY = f"{ARCH[:-1]}.{ARCH[-1]}"
CODE = f"-gencode=arch=compute_{ARCH},code=compute_{ARCH}"
PTX = [CODE, "-no-compress", "-lineinfo", "-Xcompiler=-fvisibility=default"]
MACHINE = ["-std=c++20", "-O2", "-ftree-vectorize", "-fwrapv", "-fPIC", "-Wall", "-Wextra", *NUMERICS]
OWN = "-Wl,-Bsymbolic"  # calls of the CUDA runtime reach the machine, though torch has loaded another
LINK = ["-shared", "-Wl,-z,defs", OWN]
AMPERE = pytest.mark.skipif(ARCH == "75", reason="Turing has four mma for one, and no asynchronous copies")
TURING = pytest.mark.skipif(ARCH != "75", reason="later GPUs read the addresses of some lanes only")
FOLDERS = {"ptx": f"ptx{ARCH}", "machine": "machine", "ops": "emulated", "cpu": ""}  # of objects; cpu: the extension's


def build(name: str, sources: dict[str, list[str]], toolkit: Toolkit) -> Path:
    """Builds a library of these sources, by rule, and the machine; one with ops replaces the extension's library.
    Compiles only what has changed since the last build."""
    folder = build_folder()
    name += ARCH
    library = folder / f"{name}.so"
    machine = [str(path.relative_to(ROOT)) for path in sorted((HERE / "ptx").glob("*.cpp"))]
    every = [*sources.items(), ("machine", machine)]
    parts = [(rule, path, folder / FOLDERS[rule] / f"{path}.o") for rule, paths in every for path in paths]
    rules, extension = commands(Plan(toolkit, (CAPABILITY,)))
    rules["ops"] += ["-DTANDEM_EMULATION", "-O1"]  # they make few calls
    rules["ptx"] = [str(toolkit.nvcc), *nvcc_flags(Plan(toolkit)), *PTX]
    rules["machine"] = ["g++", *MACHINE, "-Icsrc", f"-isystem{toolkit.include}"]
    text = ninja_text(folder, rules, [*extension, OWN] if "ops" in sources else LINK, parts, library)
    if not run_ninja(folder / f"{name}.ninja", text):
        raise RuntimeError(f"{name} does not compile; the compiler's message is above")
    return ROOT / library


def build_kernels(toolkit: Toolkit) -> Path:
    """All kernels, which tests call through entry.cpp."""
    files = read_sources()
    sources = {"ptx": files["cuda"], "cpu": files["cpu"], "machine": ["tests/cuda_host/entry.cpp"]}
    return build("kernels", sources, toolkit)


def build_ops(toolkit: Toolkit) -> Path:
    """A second extension: the same ops for CPU tensors, but with the CUDA kernels, executed by the machine.

    With TANDEM_LIBRARY tandem_ext loads it instead of its own library. Every test of an op, a layer or a network then
    tests the CUDA kernels and the code between them and torch.
    """
    files = read_sources()
    return build("emulated_ops", {"ptx": files["cuda"], "cpu": files["cpu"], "ops": files["ops"]}, toolkit)


@dataclass
class Struct:
    """A structure that a kernel takes, with these fields: tensors, numbers, or the fields of a nested structure."""

    name: str
    fields: dict[str, Any]


@dataclass
class Buffer:
    """A tensor that is written, or has its own name. Accesses to ``parts``, sizes in bytes, are counted under their
    names."""

    value: Tensor
    use: int = INPUT
    name: str | None = None
    parts: dict[str, int] | None = None


def output(*shape: int, dtype: torch.dtype = torch.float32) -> Buffer:
    """A tensor that a kernel has to fill."""
    return Buffer(torch.zeros(shape, dtype=dtype), OUTPUT)


def bind(name: str, value: Any, place: Callable[[str, Buffer], Tensor | None], type_: Any = None) -> Any:
    """The C value of an argument, or of a field of type ``type_``; ``place`` returns the memory of a tensor."""
    if isinstance(value, Struct):
        return ctypes.byref(bind(name, value.fields, place, structure(value.name)))
    if isinstance(value, dict):
        types = dict(type_._fields_)
        return type_(**{key: bind(key, one, place, types[key]) for key, one in value.items()})
    if isinstance(value, Tensor | Buffer):
        buffer = value if isinstance(value, Buffer) else Buffer(value)
        placed = place(buffer.name or name, buffer)
        return ctypes.c_void_p(None if placed is None else placed.data_ptr())
    if isinstance(value, tuple):
        return type_(*value)
    if type_ is None and isinstance(value, int | float):
        return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)
    return value


Outputs = dict[str, Tensor]


def check_same(got: Outputs, want: Outputs) -> None:
    """Compares bit for bit; all NaNs count as equal."""
    for name, tensor in got.items():
        torch.testing.assert_close({name: tensor}, {name: want[name]}, rtol=0, atol=0, equal_nan=True)


class Traffic(ctypes.Structure):
    """The accesses to a buffer: memory instructions (per warp), bytes, 32-byte sectors, and waves through the banks of
    shared memory. ``least_*``: the minimum for the same bytes."""

    names = ("requests", "bytes", "sectors", "least_sectors", "waves", "least_waves")
    _fields_ = [(name, ctypes.c_uint64) for name in names]


class Emulator:
    """A library of kernels whose PTX the machine executes. If ``checked``, it watches every access to the buffers."""

    def __init__(self, library: Path, checked: bool) -> None:
        self.checked = checked
        self.lib = ctypes.CDLL(str(library))
        self.lib.emulation_reports.restype = ctypes.c_char_p
        for name, kind in {"counters": ctypes.c_uint64, "touches": ctypes.c_uint64, "traffic": Traffic}.items():
            getattr(self.lib, f"emulation_{name}").restype = ctypes.POINTER(kind)
        self.stream = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(self.lib, "emulation_stream")))
        self.buffers: dict[str, tuple[Tensor, Tensor, int]] = {}  # by name: memory, view, use
        self.card()

    def card(self, multiprocessors: int = 1, shared: int = 100 * 1024, most: int = 0) -> None:
        """Later launches are on a GPU with these multiprocessors, each with so many bytes of shared memory, of which a
        kernel may have ``most``. The defaults are the least since Ampere."""
        most = most or shared - (0 if shared == 64 * 1024 else 1024)
        for name, value in {"multiprocessors": multiprocessors, "shared": shared, "opt_in": most}.items():
            ctypes.c_int.in_dll(self.lib, f"emulation_{name}").value = value

    def begin(self, seed: int = 0, first_block: int = 0, blocks: int = -1) -> None:
        """Forget buffers and reports; of later launches, scheduled by ``seed``, these blocks run."""
        self.buffers.clear()
        self.lib.emulation_begin(*map(ctypes.c_uint64, (seed, first_block, blocks)))

    def place(self, name: str, buffer: Buffer, offset: int = 0) -> Tensor:
        """Copies a tensor to guarded memory, ``offset`` elements past a 256-byte boundary; accesses to the copy are
        counted."""
        value, use = buffer.value, buffer.use
        if use == AS_IT_LIES:
            return value
        size = value.numel() * value.element_size()
        memory = torch.full((size + 2 * GUARD + 512,), 0xAB, dtype=torch.uint8)
        start = GUARD - (memory.data_ptr() + GUARD) % 256 + 256 + offset * value.element_size()
        view = memory[start : start + size].view(value.dtype).view(value.shape)
        if use != OUTPUT:
            view.copy_(value)
        self.buffers[name] = memory, view, use
        if self.checked:
            for part, bytes_ in (buffer.parts or {name: size}).items():
                pointer = ctypes.c_void_p(memory.data_ptr() + start)
                self.lib.emulation_buffer(part.encode(), pointer, ctypes.c_size_t(bytes_), use)
                start += bytes_
        return view

    def call(self, name: str, *arguments: Any, on_cpu: bool = False) -> int:
        """Calls a function of entry.cpp and returns its result."""
        self.lib.find_kernel.restype = ctypes.c_void_p
        function = ctypes.CFUNCTYPE(ctypes.c_int)(self.lib.find_kernel(name.encode(), on_cpu))
        return int(function(*(bind("an argument", value, self.place) for value in arguments)))

    def launch(
        self, name: str, /, offset: int = 0, shifted: Collection[str] | None = None, **arguments: Any
    ) -> Outputs:
        """The outputs of a kernel, which must not cause a report. Tensors are copied to guarded memory; those in
        ``shifted``, by default all, begin ``offset`` elements past an aligned address."""
        out = {}

        def place(key: str, buffer: Buffer) -> Tensor:
            view = self.place(key, buffer, offset if shifted is None or key in shifted else 0)
            if buffer.use not in (AS_IT_LIES, INPUT):
                out[key] = view
            return view

        given = [bind(key, value, place) for key, value in arguments.items()]
        status = self.call(name, *given, self.stream)
        reports = self.reports()
        assert status == 0, reports
        assert not reports, reports
        return out

    def on_cpu(self, name: str, /, **arguments: Any) -> Outputs:
        """The outputs of the CPU kernel of that name, which gets nothing that was prepared for a GPU."""
        memory: dict[str, Tensor] = {}

        def place(key: str, buffer: Buffer) -> Tensor | None:
            if buffer.use == AS_IT_LIES:
                return None
            return memory.setdefault(key, buffer.value.clone(memory_format=torch.contiguous_format))

        given = [bind(key, value, place) for key, value in arguments.items()]
        self.call(name, *given, self.lib.cpu_parallel_for, on_cpu=True)
        return memory

    def check(
        self, name: str, /, seed: int = 0, offset: int = 0, shifted: Collection[str] | None = None, **arguments: Any
    ) -> Outputs:
        """launch() with a schedule drawn from ``seed``; the CPU kernel must write the same."""
        self.begin(seed)
        out = self.launch(name, offset, shifted, **arguments)
        check_same(out, self.on_cpu(name, **arguments))
        return out

    def reports(self) -> list[str]:
        """The errors that the machine found, with the source line of each access."""
        found: list[str] = self.lib.emulation_reports().decode().splitlines()
        if self.checked:
            for name, (_, view, use) in self.buffers.items():
                if use == OUTPUT and view.numel() > 0 and self.touches(name)[2] == 0:
                    found.append(f"{name} is not written everywhere")
        return found

    def counted(self, kernel: str) -> tuple[int, ...]:
        """Warp instructions, mma instructions, warps and waits of a warp for global memory, by kernels with ``kernel``
        in their name."""
        return tuple(self.lib.emulation_counters(kernel.encode())[:4])

    def touches(self, name: str) -> tuple[int, ...]:
        """The numbers of reads and writes per byte of a buffer: least reads, most reads, least writes, most writes."""
        return tuple(self.lib.emulation_touches(name.encode())[:4])

    def traffic(self, name: str, write: bool = False) -> Traffic:
        return Traffic.from_buffer_copy(self.lib.emulation_traffic(name.encode(), write).contents)
