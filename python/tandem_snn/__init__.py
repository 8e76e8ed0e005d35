"""Layers, conversion, inference and measures for spiking neural networks with the tandem learning rule."""

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, __version__, build_info

from . import ann, measure, nn, plots, tonic
from .convert import calibrate, convert, to_ann
from .frozen import FrozenNetwork, freeze, load
from .integer.c import to_c
from .nir import from_nir, to_nir
from .onnx.export import to_onnx
from .onnx.qonnx import to_qonnx

__all__ = [
    "ConstantInput",
    "FrozenNetwork",
    "ImpulseInput",
    "SpikeTrain",
    "__version__",
    "ann",
    "build_info",
    "calibrate",
    "convert",
    "freeze",
    "from_nir",
    "load",
    "measure",
    "nn",
    "plots",
    "to_ann",
    "to_c",
    "to_nir",
    "to_onnx",
    "to_qonnx",
    "tonic",
]


def __dir__() -> list[str]:
    return __all__
