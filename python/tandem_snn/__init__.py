"""Layers, models, training and measures for spiking neural networks with the tandem learning rule."""

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, __version__, build_info

from . import ann, data, measure, models, nn
from .convert import calibrate, convert, to_ann
from .exchange import from_nir, to_nir, to_onnx
from .frozen import FrozenNetwork, freeze, load_frozen
from .models import create_model, create_twin, list_models

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
    "create_model",
    "create_twin",
    "data",
    "freeze",
    "from_nir",
    "list_models",
    "load_frozen",
    "measure",
    "models",
    "nn",
    "to_ann",
    "to_nir",
    "to_onnx",
]
