"""The registry of models, and functions that create them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

from torch import nn

from .. import ann
from .. import nn as tnn
from ..errors import UserError, check_name
from .build import Plan, resnet18, resnet18_cifar
from .notation import build, check_notation, is_notation

_GREY, _COLOUR, _LARGE = ((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 224, 224), 1000)
_CIFARNET = "128C3-256C3s2-512C3s2-1024C3-512C3-FC1024-D0.2"
_DVS_CIFAR10_NET = "128C3-256C3s2-512C3s2-1024C3s2-512C3-FC1024-D0.2"
_VGG16 = "64C3-64C3s2-128C3-128C3s2-256C3-256C3-256C3s2-512C3-512C3-512C3s2-512C3-512C3-512C3s2"
_ALEXNET = "96C11s4p2-MP3s2-256C5-MP3s2-384C3-384C3-256C3-MP3s2-D0.5-FC4096-D0.5-FC4096"
# The architecture, the default shape of a sample, and the default number of outputs (None: the number of values of a
# sample).
_MODELS: dict[str, tuple[str | Callable[[Plan], nn.Sequential], tuple[Sequence[int], int | None]]] = {
    "alexnet": (_ALEXNET, _LARGE),
    "alexnet-cifar": ("96C3-256C3s2-384C3s2-384C3-256C3-FC1024-D0.2", _COLOUR),
    "autoencoder": ("FC128-FC64-FC32-FC64-FC128", ((1, 28, 28), None)),
    "cifarnet": (_CIFARNET, _COLOUR),
    "cnn": ("32C3-64C3s2-128C3s2-FC256", _GREY),
    "dvs-cifar10-net": (_DVS_CIFAR10_NET, ((2, 42, 42), 10)),
    "dvs-gesture-net": ("64C3s2-128C3s2-128C3s2-256C3s2-D0.5-FC256-D0.5", ((2, 128, 128), 11)),
    "mlp": ("FC256-FC256", _GREY),
    "n-mnist-net": (_CIFARNET, ((2, 34, 34), 10)),
    "resnet18": (resnet18, _LARGE),
    "resnet18-cifar": (resnet18_cifar, _COLOUR),
    "vgg11": ("64C3-128C3s2-256C3-256C3s2-512C3-512C3s2-512C3-512C3s2-FC4096-D0.5-FC4096-D0.5", _COLOUR),
    "vgg16": (_VGG16, _COLOUR),
}
_SPIKES_IN = ("n-mnist-net", "dvs-cifar10-net", "dvs-gesture-net")
_PLAN = {field.name for field in fields(Plan)} - {"layers", "neuron"}


def list_models() -> list[str]:
    """Return the names of networks that :func:`create_model` can build.

    >>> list_models()[:4]
    ['alexnet', 'alexnet-cifar', 'autoencoder', 'cifarnet']
    """
    return list(_MODELS)


def check_model(name: str) -> None:
    """Check that a name or architecture is valid for :func:`create_model`.

    Raises:
        UserError: it is neither a name nor an architecture; the message suggests the nearest name.

    >>> check_model("16C3-MP2-FC100")
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a model's name, got {name!r}")
    if not is_notation(name):
        check_notation(name)
        check_name("model", name, list_models())


def create_model(
    name: str, *, shape: Sequence[int] | None = None, classes: int | None = None, T: int = 8, **options: Any
) -> nn.Sequential:
    """Create a spiking network with random weights, initialised for T time steps.

    Args:
        name: one of :func:`list_models`, or an architecture such as "32C3-64C3s2-FC256".
        shape: the shape of one input sample, for example (1, 28, 28).
        classes: the number of outputs. For named networks, shape and classes default to those of their usual data set:
            (3, 32, 32) and 10 for "cifarnet".
        T: the number of time steps.
        options: ``width``, multiplier of the channels; ``encoding``, "direct", "zero_expand" or "events" (the input is
            a SpikeTrain; the default of networks for event data); ``dropout``, instead of the architecture's
            probabilities; ``norm`` (True); ``threshold`` (1.0); ``learn_threshold``, "layer" or "channel"; ``timing``,
            "step" or "window"; ``v_init``, in units of the threshold (0.0, with timing "window" 0.5); ``gamma``, the
            initial γ; ``weight_bits``, 2 to 8, for quantisation-aware training; ``ann_units`` (False): the value of a
            spike is its threshold, so that the weights of a trained ANN can be used; further settings of neurons, see
            :class:`tandem_snn.nn.NeuronOptions`.

    Returns:
        A Sequential with named layers: an input [B, *shape] -> logits [B, classes].

    Raises:
        UserError: the name is unknown, the shape is too small for the architecture, or an architecture is given without
            shape and classes.
        TypeError, ValueError: an option is not allowed.

    >>> net = create_model("cnn", shape=(1, 8, 8), classes=10, T=8)
    >>> net(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    >>> create_model("resnet18-cifar", classes=100, width=0.25).readout
    Readout(in_features=128, out_features=100, bias=True)
    """
    return _create(tnn, name, shape, classes, T=T, **options)


def create_twin(
    name: str, *, shape: Sequence[int] | None = None, classes: int | None = None, T: int = 1, **options: Any
) -> nn.Sequential:
    """Create the ANN twin of a network of :func:`create_model`.

    Arguments, errors and state_dict keys are the same, except that learned thresholds are not in the state_dict. From a
    SpikeTrain the twin takes the counts.

    >>> spiking, twin = (f("mlp", shape=(64,), classes=10, T=8) for f in (create_model, create_twin))
    >>> spiking.load_state_dict(twin.state_dict())
    <All keys matched successfully>
    """
    return _create(ann, name, shape, classes, T=T, **options)


def _create(
    layers: ModuleType, name: str, shape: Sequence[int] | None, classes: int | None, **options: Any
) -> nn.Sequential:
    check_model(name)
    architecture, (usual_shape, usual_classes) = _MODELS.get(name, (name, (None, None)))
    shape = usual_shape if shape is None else shape
    if shape is None or (classes is None and name not in _MODELS):
        raise UserError(f"shape, classes: architecture {name!r} has no defaults, so expected both")
    options |= {"shape": shape, "classes": (usual_classes or math.prod(shape)) if classes is None else classes}
    if name in _SPIKES_IN:
        options.setdefault("encoding", "events")
    known = {key: options.pop(key) for key in _PLAN.intersection(options)}
    plan = Plan(layers, **known, neuron=options)
    return build(architecture, plan) if isinstance(architecture, str) else architecture(plan)
