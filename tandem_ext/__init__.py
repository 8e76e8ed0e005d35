"""tandem_ext: integrate-and-fire neurons and their spike trains as PyTorch ops, trained by the tandem learning rule.

Examples in this package assume ``import torch`` and ``import tandem_ext as te``.

>>> x = te.SpikeTrain.from_dense((torch.rand(8, 16, 100) < 0.2).float())  # T = 8 steps, 16 samples, 100 neurons
>>> train = te.functional.linear_if(x, torch.randn(50, 100) / 5)
>>> train.shape, train.counts.max() <= 8
(torch.Size([16, 50]), tensor(True))
"""

from . import composite as composite
from . import flops, functional, ops, reference
from ._load import build_info
from .inputs import ConstantInput, ImpulseInput
from .signal import cat, collate
from .train import SpikeTrain

__version__: str = build_info().get("version", "unknown")

__all__ = [
    "ConstantInput",
    "ImpulseInput",
    "SpikeTrain",
    "build_info",
    "cat",
    "collate",
    "flops",
    "functional",
    "ops",
    "reference",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # without the modules that define these names
