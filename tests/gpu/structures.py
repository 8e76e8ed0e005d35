"""The structures of the kernels' arguments, as their headers declare them, for ctypes; layers by a kernel of choice."""

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tandem_ext as te

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "kernels"
HEADERS = dict.fromkeys(("Neuron", "Carried"), "neuron/if_neuron.h")
HEADERS |= dict.fromkeys(("Geometry", "Weights", "Way", "Layer"), "layer.h") | {"Card": "cuda/choose.h"}
HEADERS |= dict.fromkeys(("BatchNorm", "BatchNormStatistics", "BatchNormGrad"), "norm/batch_norm.h")


@functools.cache
def structure(name: str) -> type[ctypes.Structure]:
    """One of them."""
    text = (KERNELS / HEADERS[name]).read_text()
    body = re.search(rf"^struct {name} {{$(.*?)^}};", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    types = {"int64_t": ctypes.c_int64, "bool": ctypes.c_bool, "float": ctypes.c_float}
    fields: list[tuple[str, Any]] = []
    declaration = r"^  (?:const )?(\w+)(?:<\w+>)?(\*?) (\w[\w\[\], ]*)(?: = [\w:]+)?;"
    for kind, star, names in re.findall(declaration, body[1], re.MULTILINE):
        type_: Any = structure(kind) if kind in HEADERS else types.get(kind, ctypes.c_int32)  # or an enum
        for field, size in re.findall(r"(\w+)(?:\[(\d)\])?", names):
            fields.append((field, ctypes.c_void_p if star else type_ * int(size) if size else type_))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def struct(name: str, fields: dict[str, Any]) -> ctypes.Structure:
    """One with these fields: numbers, tuples, tensors for their addresses, dicts for structures; the others are 0."""
    types = dict(structure(name)._fields_)

    def value(key: str, given: Any) -> Any:
        if isinstance(given, dict):
            return struct(types[key].__name__, given)
        if isinstance(given, Tensor):
            return given.data_ptr()
        return types[key](*given) if isinstance(given, tuple) else given

    return structure(name)(**{key: value(key, given) for key, given in fields.items() if given is not None})


def library() -> ctypes.CDLL:
    """The extension that is loaded."""
    return ctypes.CDLL(te.build_info().get("library") or te._C.__file__)


def run_on(multiprocessors: int, device: torch.device, layer: dict[str, Any]) -> None:
    """A layer by the kernel that a card with so many multiprocessors would take, and otherwise this card's properties:
    the number decides between tiles (csrc/kernels/cuda/choose.h). Without a GPU, by the emulator."""
    if device.type == "cuda":
        shared = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
        stream = torch.cuda.current_stream(device).cuda_stream
    else:
        shared = ctypes.c_int.in_dll(library(), "emulation_shared").value
        stream = ctypes.addressof(ctypes.c_char.in_dll(library(), "emulation_stream"))
    card = struct("Card", {"multiprocessors": multiprocessors, "shared": shared})
    given = struct("Layer", layer)
    status = library().tandem_run_on(ctypes.byref(given), ctypes.byref(card), ctypes.c_void_p(stream))
    if status != 0:
        raise RuntimeError(f"CUDA error {status}")
