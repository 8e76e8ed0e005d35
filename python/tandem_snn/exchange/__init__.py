"""Import and export networks: NIR for neuromorphic tools and chips, ONNX for inference engines, two simulators."""

from .nir import from_nir, to_nir
from .simulators.snntorch import from_snntorch, to_snntorch
from .simulators.spikingjelly import from_spikingjelly, to_spikingjelly
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
