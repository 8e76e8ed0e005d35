"""Layers, models, training and measures for spiking neural networks with the tandem learning rule."""

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, __version__, build_info

from . import ann, data, measure, models, nn, plots
from .convert import calibrate, convert, to_ann
from .frozen import FrozenNetwork, freeze, load_frozen
from .models import create_model, create_twin, list_models
from .nir import from_nir, to_nir
from .onnx import to_onnx

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
    "plots",
    "to_ann",
    "to_nir",
    "to_onnx",
]


_EXAMPLE = "removed: python/examples/spikingjelly.py copies networks layer by layer, from_nir and to_nir by files"
_GONE = dict.fromkeys(("from_snntorch", "from_spikingjelly", "to_snntorch", "to_spikingjelly"), _EXAMPLE)


def __getattr__(name: str) -> object:
    raise AttributeError(f"tandem_snn.{name}: {_GONE.get(name, 'there is no such name')}")


def __dir__() -> list[str]:
    return __all__
