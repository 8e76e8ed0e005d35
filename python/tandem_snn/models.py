"""Networks by name, each of which can be built of spiking layers or as its ANN twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from . import ann
from . import nn as tnn
from .errors import check_name

Builder = Callable[..., nn.Sequential]


def mlp(
    layers: Any = tnn,
    *,
    shape: Sequence[int],
    classes: int,
    T: int,
    width: float = 1.0,
    hidden: Sequence[int] = (256, 256),
    **neuron: Any,
) -> nn.Sequential:
    """Fully connected layers with batch norm, e.g. 64-256-256-10; the hidden ones times ``width``."""
    neuron = {"bias": False, "norm": True, "gamma": tnn.initial_gamma(T), **neuron}
    net = nn.Sequential(layers.Encoder(T), layers.Flatten())
    features = math.prod(shape)
    for base in hidden:
        out = max(1, round(base * width))
        net.append(layers.Linear(features, out, **neuron))
        features = out
    return net.append(layers.Readout(features, classes))


def cnn(
    layers: Any = tnn, *, shape: Sequence[int], classes: int, T: int, width: float = 1.0, **neuron: Any
) -> nn.Sequential:
    """32C3-64C3s2-128C3s2-FC256 with batch norm, its channels times ``width``."""
    channels, height, breadth = shape
    neuron = {"bias": False, "norm": True, "gamma": tnn.initial_gamma(T), **neuron}
    net = nn.Sequential(layers.Encoder(T))
    for base, stride in (32, 1), (64, 2), (128, 2):
        out = max(1, round(base * width))
        net.append(layers.Conv2d(channels, out, 3, stride=stride, padding=1, **neuron))
        channels, height, breadth = out, -(-height // stride), -(-breadth // stride)
    hidden = max(1, round(256 * width))
    net.extend([layers.Flatten(), layers.Linear(channels * height * breadth, hidden, **neuron)])
    return net.append(layers.Readout(hidden, classes))


_BUILDERS: dict[str, Builder] = {"cnn": cnn, "mlp": mlp}


def list_models() -> list[str]:
    """The names :func:`create_model` knows.

    >>> list_models()
    ['cnn', 'mlp']
    """
    return sorted(_BUILDERS)


def create_model(name: str, *, shape: Sequence[int], classes: int, T: int, **options: Any) -> nn.Sequential:
    """A spiking network, freshly initialised for T steps.

    Args:
        name: one of :func:`list_models`.
        shape: of one input sample, e.g. (1, 28, 28).
        classes: the number of outputs.
        T: the number of time steps.
        options: further arguments of the model (``width``, ``hidden``) and its layers (``threshold``, ``gate``, ...).

    Raises:
        UserError: unknown name.

    >>> net = create_model("cnn", shape=(1, 8, 8), classes=10, T=8)
    >>> net(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    check_name("model", name, _BUILDERS)
    return _BUILDERS[name](tnn, shape=shape, classes=classes, T=T, **options)


def create_twin(name: str, *, shape: Sequence[int], classes: int, T: int = 1, **options: Any) -> nn.Sequential:
    """The ANN twin of :func:`create_model`'s network: same arguments, same state_dict keys.

    >>> spiking, twin = (f("mlp", shape=(64,), classes=10, T=8) for f in (create_model, create_twin))
    >>> spiking.load_state_dict(twin.state_dict())
    <All keys matched successfully>
    """
    check_name("model", name, _BUILDERS)
    return _BUILDERS[name](ann, shape=shape, classes=classes, T=T, **options)
