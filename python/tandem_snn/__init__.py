"""Layers, models, training and measures for spiking neural networks with the tandem learning rule."""

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, __version__, build_info

from . import ann, data, measure, models, nn, plots
from .convert import calibrate, convert, to_ann
from .exchange import from_nir, from_snntorch, from_spikingjelly, to_nir, to_onnx, to_snntorch, to_spikingjelly
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
    "from_snntorch",
    "from_spikingjelly",
    "list_models",
    "load_frozen",
    "measure",
    "models",
    "nn",
    "plots",
    "to_ann",
    "to_nir",
    "to_onnx",
    "to_snntorch",
    "to_spikingjelly",
]


def __dir__() -> list[str]:
    return __all__
