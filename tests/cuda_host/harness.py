"""Builds the kernels with nvcc, as PTX, and the machine of ptx/ that executes it; calls kernels on guarded buffers."""

import ctypes
import fcntl
import functools
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
REALS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def find_toolkit() -> Toolkit | None:
    """The CUDA toolkit of this machine, whatever TANDEM_CUDA says about the build."""
    return make_plan({**os.environ, "TANDEM_CUDA": "auto"}).toolkit


def kernel_sources() -> list[Path]:
    """The .cu files of the library."""
    return [ROOT / path for path in read_sources()["cuda"]]


# In addition to the build's flags: PTX as text instead of machine code, with source lines. TANDEM_EMULATED_ARCH: which
# GPU's, since kernels and the toolkit's headers have branches; an H100 takes those of 90, a T4 those of 75.
ARCH = os.environ.get("TANDEM_EMULATED_ARCH", "80")
PTX = [f"-gencode=arch=compute_{ARCH},code=compute_{ARCH}", "-no-compress", "-lineinfo"]
PTX += ["-Xcompiler=-fvisibility=default"]
MACHINE = ["-std=c++20", "-O2", "-ftree-vectorize", "-fwrapv", "-fPIC", "-Wall", "-Wextra", *NUMERICS]
LINK = ["-shared", "-Wl,-z,defs", "-Wl,-Bsymbolic"]


def machine_parts(kernels: Sequence[Path]) -> list[tuple[str, str, Path]]:
    """The parts of kernels and of the machine that executes their PTX, for ninja_text()."""
    sources = [*kernels, *sorted((HERE / "ptx").glob("*.cpp"))]
    named = [("ptx" if path.suffix == ".cu" else "machine", path.relative_to(ROOT)) for path in sources]
    folders = {"ptx": f"ptx{ARCH}", "machine": "machine"}
    return [(rule, str(path), build_folder() / folders[rule] / f"{path}.o") for rule, path in named]


def machine_rules(toolkit: Toolkit) -> dict[str, list[str]]:
    nvcc = [str(toolkit.nvcc), *nvcc_flags(Plan(toolkit)), *PTX]
    return {"ptx": nvcc, "machine": ["g++", *MACHINE, "-Icsrc", f"-isystem{toolkit.include}"]}


def cpu_parts() -> list[tuple[str, str, Path]]:
    """The CPU kernels; their objects are shared with the extension."""
    return [("cpu", path, build_folder() / f"{path}.o") for path in read_sources()["cpu"]]


def library_parts() -> list[tuple[str, str, Path]]:
    """The parts of the library that tests call through entry.cpp."""
    entry = HERE.relative_to(ROOT) / "entry.cpp"
    parts = [*machine_parts(kernel_sources()), *cpu_parts()]
    return [*parts, ("machine", str(entry), build_folder() / "machine" / f"{entry}.o")]


def build(name: str, parts: list[tuple[str, str, Path]], toolkit: Toolkit, ops: bool = False) -> Path:
    """Builds a library of kernels and the machine; with ``ops`` one that replaces the extension's library. Compiles
    only what has changed since the last build."""
    folder = build_folder()
    name += ARCH
    library = folder / f"{name}.so"
    rules, extension = commands(Plan(toolkit, ("emulated",)), "emulated")
    rules["ops"] += ["-DTANDEM_EMULATION", "-O1"]  # they make few calls
    text = ninja_text(folder, rules | machine_rules(toolkit), extension if ops else LINK, parts, library)
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    with (ROOT / folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of pytest-xdist share objects and may build the same one
        built = run_ninja(folder / f"{name}.ninja", text)
    if not built:
        raise RuntimeError(f"{name} does not compile; the compiler's message is above")
    return ROOT / library


def build_ops(toolkit: Toolkit) -> Path:
    """Builds a second extension: the same ops for CPU tensors, but with the CUDA kernels, executed by the machine.

    With TANDEM_LIBRARY tandem_ext loads it instead of its own library. Every test of an op, a layer or a network then
    tests the CUDA kernels and the code between them and torch.
    """
    ops = [("ops", path, build_folder() / "emulated" / f"{path}.o") for path in read_sources()["ops"]]
    return build("emulated_ops", [*cpu_parts(), *ops, *machine_parts(kernel_sources())], toolkit, ops=True)


# The structures of the kernels' arguments, and the headers that declare them.
HEADERS = dict.fromkeys(("Neuron", "Carried"), "neuron/if_neuron.h")
HEADERS |= dict.fromkeys(("Geometry", "Weights", "Way", "Layer"), "layer.h") | {"Card": "cuda/choose.h"}
HEADERS |= dict.fromkeys(("BatchNorm", "BatchNormStatistics", "BatchNormGrad"), "norm/batch_norm.h")


@functools.cache
def structure(name: str, dtype: torch.dtype = torch.float32) -> type[ctypes.Structure]:
    """A structure as its header declares it, with ``dtype`` as the compute type."""
    text = (ROOT / "csrc" / "kernels" / HEADERS[name]).read_text()
    body = re.search(rf"^struct {name} {{$(.*?)^}};", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    types = {"int64_t": ctypes.c_int64, "bool": ctypes.c_bool, "float": ctypes.c_float, "C": REALS[dtype]}
    fields: list[tuple[str, Any]] = []
    declaration = r"^  (?:const )?(\w+)(?:<\w+>)?(\*?) (\w[\w\[\], ]*);"
    for kind, star, names in re.findall(declaration, body[1], re.MULTILINE):
        type_: Any = structure(kind, dtype) if kind in HEADERS else types.get(kind, ctypes.c_int32)  # or an enum
        for field, size in re.findall(r"(\w+)(?:\[(\d)\])?", names):
            fields.append((field, ctypes.c_void_p if star else type_ * int(size) if size else type_))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


@dataclass
class Struct:
    """A structure that a kernel takes, with these fields: tensors, numbers, or the fields of a nested structure."""

    name: str
    fields: dict[str, Any]
    dtype: torch.dtype = torch.float32


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


def bind(name: str, value: Any, place: Callable[[str, Buffer], Tensor], type_: Any = None) -> Any:
    """The C value of an argument, or of a field of type ``type_``; ``place`` returns the memory of a tensor."""
    if isinstance(value, Struct):
        return ctypes.byref(bind(name, value.fields, place, structure(value.name, value.dtype)))
    if isinstance(value, dict):
        types = dict(type_._fields_)
        return type_(**{key: bind(key, one, place, types[key]) for key, one in value.items()})
    if isinstance(value, Tensor | Buffer):
        buffer = value if isinstance(value, Buffer) else Buffer(value)
        placed = buffer.value if buffer.use == AS_IT_LIES else place(buffer.name or name, buffer)
        return ctypes.c_void_p(placed.data_ptr())
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


@dataclass(frozen=True)
class Traffic:
    """The accesses to a buffer: memory instructions (per warp), bytes, 32-byte sectors, and waves through the banks of
    shared memory. ``least_*``: the minimum for the same bytes."""

    requests: int
    bytes: int
    sectors: int
    least_sectors: int
    waves: int
    least_waves: int


class Emulator:
    """A library of kernels whose PTX the machine executes. If ``checked``, it watches every access to the buffers."""

    def __init__(self, library: Path, checked: bool) -> None:
        self.checked = checked
        self.lib = ctypes.CDLL(str(library))
        self.lib.emulation_report.restype = ctypes.c_char_p
        self.lib.emulation_report_count.restype = ctypes.c_size_t
        self.lib.emulation_stream.restype = ctypes.c_void_p
        self.stream = ctypes.c_void_p(self.lib.emulation_stream())
        self.buffers: dict[str, tuple[Tensor, Tensor, int]] = {}  # by name: memory, view, use

    def begin(self, seed: int = 0) -> None:
        """Forget buffers, options and reports; later launches are scheduled by ``seed``."""
        self.buffers.clear()
        self.lib.emulation_begin(ctypes.c_uint64(seed))
        self.lib.emulation_forget_buffers()

    def place(self, name: str, buffer: Buffer, offset: int = 0) -> Tensor:
        """Copies a tensor to guarded memory, ``offset`` elements past a 256-byte boundary; accesses to the copy are
        counted."""
        value, use = buffer.value, buffer.use
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

    def call(self, name: str, *arguments: Any, on_cpu: bool = False, result: Any = ctypes.c_int) -> Any:
        """Calls a function of entry.cpp and returns its result."""
        self.lib.find_kernel.restype = ctypes.c_void_p
        address = self.lib.find_kernel(name.encode(), on_cpu)
        return ctypes.CFUNCTYPE(result)(address)(*(bind("an argument", value, self.place) for value in arguments))

    def launch(
        self, name: str, /, offset: int = 0, shifted: Collection[str] | None = None, **arguments: Any
    ) -> Outputs:
        """The outputs of a kernel, which must not cause a report. Tensors are copied to guarded memory; those in
        ``shifted``, by default all, begin ``offset`` elements past an aligned address."""
        out = {}

        def place(key: str, buffer: Buffer) -> Tensor:
            view = self.place(key, buffer, offset if shifted is None or key in shifted else 0)
            if buffer.use != INPUT:
                out[key] = view
            return view

        given = [bind(key, value, place) for key, value in arguments.items()]
        status = self.call(name, *given, self.stream)
        reports = self.reports()
        assert status == 0, reports
        assert not reports, reports
        return out

    def on_cpu(self, name: str, /, **arguments: Any) -> Outputs:
        """The outputs of the CPU kernel of that name."""
        memory: dict[str, Tensor] = {}

        def place(key: str, buffer: Buffer) -> Tensor:
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
        texts = (self.lib.emulation_report(ctypes.c_size_t(i)) for i in range(self.lib.emulation_report_count()))
        found = [text.decode() for text in texts]
        if self.checked:
            for name, (_, view, use) in self.buffers.items():
                if use == OUTPUT and view.numel() > 0 and self.touches(name)[2] == 0:
                    found.append(f"{name} is not written everywhere")
        return found

    def counted(self, kernel: str) -> tuple[int, int, int]:
        """Warp instructions, mma instructions and warps, executed by kernels with ``kernel`` in their name."""
        out = (ctypes.c_uint64 * 3)()
        self.lib.emulation_counters(kernel.encode(), out)
        return out[0], out[1], out[2]

    def touches(self, name: str) -> tuple[int, ...]:
        """The numbers of reads and writes per byte of a buffer: least reads, most reads, least writes, most writes."""
        out = (ctypes.c_uint32 * 4)()
        self.lib.emulation_touches(name.encode(), out)
        return tuple(out)

    def traffic(self, name: str, write: bool = False) -> Traffic:
        out = (ctypes.c_uint64 * 6)()
        self.lib.emulation_traffic(name.encode(), int(write), out)
        return Traffic(*out)
