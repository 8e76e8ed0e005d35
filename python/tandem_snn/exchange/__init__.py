"""Networks in other formats: NIR for neuromorphic tools and chips, ONNX for inference engines, two simulators."""

from .from_nir import from_nir
from .simulators import from_snntorch, from_spikingjelly, to_snntorch, to_spikingjelly
from .to_nir import to_nir
from .to_onnx import to_onnx

__all__ = [
    "from_nir",
    "from_snntorch",
    "from_spikingjelly",
    "to_nir",
    "to_onnx",
    "to_snntorch",
    "to_spikingjelly",
]
