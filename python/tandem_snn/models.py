"""Build networks by name or from the usual notation of architectures, as a spiking network or as its ANN twin.

| name | architecture | from |
| --- | --- | --- |
| mlp | FC256-FC256 | |
| cnn | 32C3-64C3s2-128C3s2-FC256 | |
| autoencoder | FC128-FC64-FC32-FC64-FC128, for regression | tandem learning |
| cifarnet | 128C3-256C3s2-512C3s2-1024C3-512C3-FC1024-D0.2 | tandem learning |
| alexnet-cifar | 96C3-256C3s2-384C3s2-384C3-256C3-FC1024-D0.2 | tandem learning |
| alexnet | AlexNet for 224×224, maximum pooling | |
| vgg11, vgg16 | VGG for 32×32, strides instead of pooling | progressive tandem learning |
| resnet18, resnet18-cifar | ResNet-18 for 224×224 and 32×32; two paths of currents into one layer of neurons | |
| n-mnist-net | cifarnet, for spike trains of 2×34×34 | tandem learning |
| dvs-cifar10-net | cifarnet with one more stride, for spike trains of 2×42×42 | own |
| dvs-gesture-net | 64C3s2-128C3s2-128C3s2-256C3s2-D0.5-FC256-D0.5, for spike trains of 2×128×128 | own |

nCk is a convolution with n channels, k×k, padded by k//2; sN sets its stride, pN its padding. FCn is a fully connected
layer. Both have batch norm and neurons. MPk and APk are maximum and average pooling, DP is dropout with probability P.
Every network ends with a linear readout.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import ann
from . import nn as tnn
from .errors import UserError, check_name
from .nn import initial_gamma

__all__ = ["check_model", "create_model", "create_twin", "list_models"]

LEARNED = ("layer", "channel")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Plan:
    """How to build a model: the options of :func:`tandem_snn.create_model`, for ``tandem_snn.nn`` or its twins.

    ``neuron`` holds further settings of the layers with neurons. With ``ann_units`` every z is in the units of an ANN
    with the same weights, and thresholds are buffers, by default 4/T for activations up to 4.
    """

    layers: ModuleType
    shape: Sequence[int]
    classes: int
    T: int
    width: float = 1.0
    encoding: str = "direct"
    dropout: float | None = None
    norm: bool = True
    threshold: float | None = None
    learn_threshold: str | None = None
    gamma: float | None = None
    weight_bits: int | None = None
    v_init: float | None = None
    timing: str = "step"
    ann_units: bool = False
    neuron: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.learn_threshold is not None:
            check_name("learn_threshold", self.learn_threshold, LEARNED)
        if not isinstance(self.shape, Sequence) or not all(map(_is_size, self.shape)):
            raise UserError(f"shape: expected positive ints, such as (1, 28, 28), got {self.shape!r}")
        if not _is_size(self.classes):
            raise UserError(f"classes: expected at least 1, got {self.classes!r}")
        if not isinstance(self.width, (int, float)) or not 0 < self.width < math.inf:
            raise UserError(f"width: expected a positive number, got {self.width!r}")
        if not isinstance(self.norm, bool):
            raise UserError(f"norm: expected True or False, got {self.norm!r}")
        for name in ("threshold", "gamma", "v_init", "dropout"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float)):
                raise UserError(f"{name}: expected a number, got {value!r}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"dropout: expected 0 or more and less than 1, got {self.dropout}")

    def encoder(self) -> nn.Module:
        gain = 1 / self.T if self.ann_units and self.encoding == "direct" else 1.0
        return self.layers.Encoder(self.T, self.encoding, gain=gain)

    def channels(self, base: int) -> int:
        """Return ``base`` channels times the width."""
        return max(1, round(base * self.width))

    @property
    def start(self) -> float:
        """The initial membrane potential in units of the threshold."""
        return (0.5 if self.timing == "window" else 0.0) if self.v_init is None else self.v_init

    def neurons(self, channels: int) -> dict[str, Any]:
        """Return the keyword arguments of a layer with this number of channels."""
        start = (4 / self.T if self.ann_units else 1.0) if self.threshold is None else float(self.threshold)
        threshold: float | Tensor = start
        v_init: float | Tensor = self.start * start
        if self.learn_threshold is not None:
            threshold = nn.Parameter(torch.full(() if self.learn_threshold == "layer" else (channels,), start))
        elif self.ann_units:
            threshold, v_init = torch.tensor(start), torch.tensor(v_init)
        gamma = self.gamma
        if gamma is None:
            gamma = 1.0 if self.ann_units else initial_gamma(self.T, self.timing)
        return {
            "bias": not self.norm,
            "norm": self.norm,
            "threshold": threshold,
            "gamma": gamma,
            "weight_bits": self.weight_bits,
            "v_init": v_init,
            "timing": self.timing,
            "gain": "threshold" if self.ann_units else 1.0,
            **self.neuron,
        }

    def readout(self, features: int) -> nn.Module:
        return self.layers.Readout(features, self.classes, weight_bits=self.weight_bits)

    def average(self, kernel: int, stride: int) -> nn.Module:
        """Return average pooling, whose neurons have the threshold 1."""
        start = self.start if self.timing == "window" else 0.0
        pool: nn.Module = self.layers.AvgPool2d(kernel, stride, v_init=start, timing=self.timing)
        return pool

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None) -> nn.Module:
        padding = kernel // 2 if padding is None else padding
        conv: nn.Module = self.layers.Conv2d(inputs, outputs, kernel, stride, padding, **self.neurons(outputs))
        return conv


_BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def _resnet18(plan: Plan, kernel: int, stride: int, *, pool: bool) -> nn.Sequential:
    """Its first convolution is 7×7 with stride 2, and a maximum, for images of 224×224, or 3×3 for 32×32."""
    channels = plan.channels(64)
    modules: OrderedDict[str, nn.Module] = OrderedDict(
        encoder=plan.encoder(), conv1=plan.conv(plan.shape[0], channels, kernel, stride)
    )
    if pool:
        modules["pool1"] = plan.layers.MaxPool2d(3, 2, 1)
    for i, (base, block_stride) in enumerate(_BLOCKS, 1):
        out = plan.channels(base)
        modules[f"block{i}"] = _block(plan, channels, out, block_stride)
        channels = out
    modules["average"] = plan.layers.AdaptiveAvgPool2d(1)
    modules["flatten"] = plan.layers.Flatten()
    modules["readout"] = plan.readout(channels)
    return nn.Sequential(modules)


def _block(plan: Plan, inputs: int, outputs: int, stride: int) -> nn.Module:
    """Build a residual block of two convolutions, with a 1×1 projection as shortcut where the shape changes."""
    body = nn.Sequential(plan.conv(inputs, outputs, 3, stride), plan.conv(outputs, outputs, 3))
    same = inputs == outputs and stride == 1
    shortcut = None if same else plan.conv(inputs, outputs, 1, stride)
    return plan.layers.Residual(body, shortcut)


_N = r"[1-9]\d*"
_CONV = re.compile(rf"(?P<n>{_N})C(?P<k>{_N})(?:s(?P<s>{_N}))?(?:p(?P<p>\d+))?")
_POOL = re.compile(rf"(?P<kind>[MA])P(?P<k>{_N})(?:s(?P<s>{_N}))?")
_FULL = re.compile(rf"FC(?P<n>{_N})")
_DROP = re.compile(r"D(?P<p>0?\.\d+)")
_ALL = (_CONV, _POOL, _FULL, _DROP)


def _strange(text: str) -> list[str]:
    """Return the parts of the text that are not layers."""
    return [part for part in text.split("-") if not any(kind.fullmatch(part) for kind in _ALL)]


def build(notation: str, plan: Plan) -> nn.Sequential:
    """Build the network. Its layers are named encoder, conv1, pool1, flatten, fc1, dropout1, ..., readout."""
    modules: OrderedDict[str, nn.Module] = OrderedDict(encoder=plan.encoder())
    numbers: Counter[str] = Counter()
    shape = tuple(plan.shape)

    def add(kind: str, module: nn.Module) -> None:
        numbers[kind] += 1
        modules[f"{kind}{numbers[kind]}"] = module

    def flatten() -> int:
        if "flatten" not in modules:
            modules["flatten"] = plan.layers.Flatten()
        return math.prod(shape)

    for part in notation.split("-"):
        if conv := _CONV.fullmatch(part):
            kernel, stride = int(conv["k"]), int(conv["s"] or 1)
            padding = kernel // 2 if conv["p"] is None else int(conv["p"])
            out = plan.channels(int(conv["n"]))
            add("conv", plan.conv(_image(shape, part)[0], out, kernel, stride, padding))
            shape = (out, *_shrunk(plan, part, shape, kernel, stride, padding))
        elif pool := _POOL.fullmatch(part):
            kernel = int(pool["k"])
            stride = int(pool["s"] or kernel)
            make = plan.layers.MaxPool2d if pool["kind"] == "M" else plan.average
            add("pool", make(kernel, stride))
            shape = (shape[0], *_shrunk(plan, part, shape, kernel, stride, 0))
        elif full := _FULL.fullmatch(part):
            features, out = flatten(), plan.channels(int(full["n"]))
            add("fc", plan.layers.Linear(features, out, **plan.neurons(out)))
            shape = (out,)
        elif drop := _DROP.fullmatch(part):
            add("dropout", plan.layers.Dropout(float(drop["p"]) if plan.dropout is None else plan.dropout))
    features = flatten()
    modules["readout"] = plan.readout(features)
    return nn.Sequential(modules)


def _image(shape: tuple[int, ...], part: str) -> tuple[int, ...]:
    if len(shape) != 3:
        raise UserError(f"{part!r} works on images [C, H, W], and here it would meet the shape {list(shape)}")
    return shape


def _shrunk(plan: Plan, part: str, shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> list[int]:
    space = [(n + 2 * padding - kernel) // stride + 1 for n in _image(shape, part)[1:]]
    if min(space) < 1:
        raise UserError(f"shape: {list(plan.shape)} is too small: at {part!r} nothing of {list(shape)} is left")
    return space


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
    "resnet18": (partial(_resnet18, kernel=7, stride=2, pool=True), _LARGE),
    "resnet18-cifar": (partial(_resnet18, kernel=3, stride=1, pool=False), _COLOUR),
    "vgg11": ("64C3-128C3s2-256C3-256C3s2-512C3-512C3s2-512C3-512C3s2-FC4096-D0.5-FC4096-D0.5", _COLOUR),
    "vgg16": (_VGG16, _COLOUR),
}
_SPIKES_IN = ("n-mnist-net", "dvs-cifar10-net", "dvs-gesture-net")
_PLAN = {one.name for one in fields(Plan)} - {"layers", "neuron"}


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
    strange = _strange(name)
    for part in strange:
        if not _strange(re.sub(r"\d+", "1", part)):
            raise UserError(f"model {name!r}: the numbers of {part!r} must be 1 or more, without leading zeros")
    if 0 < len(strange) < len(name.split("-")):
        raise UserError(f"unknown model {name!r}: {strange[0]!r} is neither nCk, FCn, MPk, APk nor DP, such as 32C3s2")
    if strange:
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
    net = build(architecture, plan) if isinstance(architecture, str) else architecture(plan)
    if plan.dropout and not any(isinstance(module, layers.Dropout) for module in net.modules()):
        raise UserError(f"dropout: {name!r} has no dropout whose probability could be {plan.dropout}")
    return net
