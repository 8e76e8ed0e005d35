"""Layers, conversion, inference and measures for spiking neural networks with the tandem learning rule."""

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, __version__, build_info
from tandem_ext._load import moved

from . import ann, measure, nn, plots, tonic
from .convert import calibrate, convert, to_ann
from .frozen import FrozenNetwork, freeze, load
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
    "freeze",
    "from_nir",
    "load",
    "measure",
    "nn",
    "plots",
    "to_ann",
    "to_nir",
    "to_onnx",
    "tonic",
]

_EXPERIMENTS = "python/experiments of the repository, which is not installed"
_EXAMPLE = "python/examples/spikingjelly.py copies networks layer by layer, from_nir and to_nir by files"
_MOVED = {
    "cli": f"the command tandem-snn is now {_EXPERIMENTS}: python python/experiments/train.py; python -m tandem_snn",
    **dict.fromkeys(("create_model", "create_twin"), f"architectures.create in {_EXPERIMENTS}"),
    "data": f"tandem_snn.tonic.from_tonic for events; data sets by name are in {_EXPERIMENTS}",
    "load_frozen": "tandem_snn.load",
    "list_models": f"architectures.MODELS in {_EXPERIMENTS}",
    "models": f"architectures.py in {_EXPERIMENTS}",
    "report": f"a run's picture.png, see {_EXPERIMENTS}",
    **dict.fromkeys(("from_snntorch", "from_spikingjelly", "to_snntorch", "to_spikingjelly"), _EXAMPLE),
    "training": f"a loop in plain torch, as in {_EXPERIMENTS}",
}
__getattr__ = moved(__name__, _MOVED)


def __dir__() -> list[str]:
    return __all__
