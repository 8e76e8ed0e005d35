"""The structures of the kernels' arguments, as their headers declare them, for ctypes."""

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

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
    declaration = r"^  (?:const )?(\w+)(?:<\w+>)?(\*?) (\w[\w\[\], ]*)(?: = \w+)?;"
    for kind, star, names in re.findall(declaration, body[1], re.MULTILINE):
        type_: Any = structure(kind) if kind in HEADERS else types.get(kind, ctypes.c_int32)  # or an enum
        for field, size in re.findall(r"(\w+)(?:\[(\d)\])?", names):
            fields.append((field, ctypes.c_void_p if star else type_ * int(size) if size else type_))
    return type(name, (ctypes.Structure,), {"_fields_": fields})
