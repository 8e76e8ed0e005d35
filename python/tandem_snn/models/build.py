"""The plan of a model: its layer classes and the settings of its neurons. Also builds ResNet-18."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, check_name
from ..nn import initial_gamma

LEARNED = ("layer", "channel")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True)
class Plan:
    """How to build a model: the options of :func:`tandem_snn.create_model`.

    Attributes:
        layers: ``tandem_snn.nn`` or ``tandem_snn.ann``.
        dropout: replaces every dropout probability of the architecture.
        norm: whether layers with neurons have batch norm, or else a bias.
        threshold: None: 1, or with ``ann_units`` 4/T, for activations up to 4.
        learn_threshold: "layer" or "channel": learn one threshold per layer or channel, starting at ``threshold``.
        gamma: the initial γ. None: :func:`tandem_snn.nn.initial_gamma` for T and timing, or with ``ann_units`` 1.
        v_init: the initial potential, in units of the threshold. None: 0, or 0.5 with timing "window", which rounds to
            the nearest count.
        ann_units: multiply a direct input by 1/T per step, so that every z is in the units of an ANN with the same
            weights. Thresholds are then buffers, which ``calibrate`` sets from data.
        neuron: further settings of the layers with neurons (gate, bn_stats, ...).
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


def resnet18(plan: Plan) -> nn.Sequential:
    """Build ResNet-18 for images of 224×224: the first convolution is 7×7 with stride 2, then comes max pooling."""
    return _resnet(plan, 7, 2, pool=True)


def resnet18_cifar(plan: Plan) -> nn.Sequential:
    """Build ResNet-18 for images of 32×32: the first convolution is 3×3."""
    return _resnet(plan, 3, 1, pool=False)


def _resnet(plan: Plan, kernel: int, stride: int, *, pool: bool) -> nn.Sequential:
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
