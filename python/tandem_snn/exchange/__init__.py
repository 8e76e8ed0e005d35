"""Networks in the formats of others: NIR for neuromorphic tools and chips, ONNX for inference engines."""

from .from_nir import from_nir
from .to_nir import to_nir
from .to_onnx import to_onnx

__all__ = ["from_nir", "to_nir", "to_onnx"]
