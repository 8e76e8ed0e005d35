"""to_ann: from a spiking network to its ANN twin."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tandem_ext.functional.neuron import over_space

from .. import ann
from .. import nn as tnn
from ..nn.general import Neurons
from ..nn.quantise import rounded
from ..nn.signals import check_network


class Units(nn.Module):
    """What a layer's activation ρ(z) is to the next layer: gain·ρ(z)/ϑ.

    Args:
        layer: the spiking layer whose gain and threshold count.
    """

    def __init__(self, layer: tnn.SpikingLayer) -> None:
        super().__init__()
        assert not isinstance(layer.gain, str)
        self.gain = layer.gain
        self.threshold: float | Tensor
        if isinstance(layer.threshold, Tensor) and not isinstance(layer.threshold, nn.Parameter):
            self.register_buffer("threshold", layer.threshold)
        else:
            self.threshold = layer.threshold

    def forward(self, a: Tensor) -> Tensor:
        threshold = self.threshold
        if isinstance(threshold, Tensor) and threshold.dim():
            threshold = over_space(threshold, a.shape)
        return a * self.gain / threshold


class Rounded(nn.Module):
    """Weights of few bits, as a parametrisation: what a layer with ``weight_bits`` computes with."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return rounded(weight, self.bits)


class Scale(nn.Module):
    """The input in the units in which spikes bring it: T times it for a direct encoding."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def to_ann(net: nn.Module) -> nn.Module:
    """The network's ANN twin: its ANN branch alone, with activations in the place of counts.

    It has the structure and the very Parameters, buffers and batch norms of ``net``, the layers of ``tandem_snn.ann``
    in the place of those of ``tandem_snn.nn``, and computes what the ANN branch says: from the input T·gain·x, or the
    effective counts of a train, layer by layer gain·ρ(z)/ϑ. For a network that :func:`convert` made these units are the
    original ANN's, and the answer is that of the original bit for bit.

    Args:
        net: a network of layers of ``tandem_snn.nn``, whose own modules take tensors too.

    Raises:
        TypeError: net is no module.
        ValueError: a layer whose weight is made before each forward pass, by pruning or a parametrisation.

    >>> from tandem_snn import convert
    >>> ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> x = torch.rand(2, 6)
    >>> torch.equal(to_ann(convert(ann, T=8))(x), ann(x))
    True
    """
    check_network("net", net)
    memo: dict[int, Any] = {id(t): t for t in (*net.parameters(), *net.buffers())}
    for name, module in net.named_modules():
        if isinstance(module, tnn.SpikingLayer | tnn.Readout) and not isinstance(module.weight, nn.Parameter):
            raise ValueError(
                f"net: the weight of {name!r} is made before each forward pass; make it permanent first, by "
                "prune.remove or parametrize.remove_parametrizations of torch.nn.utils"
            )
        twin = _twin(module)
        if twin is not None:
            memo[id(module)] = twin.train(module.training)
    return copy.deepcopy(net, memo)


def _twin(layer: nn.Module) -> nn.Module | None:
    """The ANN's layer in the place of a spiking one; None for what may stay."""
    if isinstance(layer, tnn.Encoder):
        if layer.mode == "events":
            return ann.Encoder()
        is_one = layer.gain == (1 / layer.T if layer.mode == "direct" else 1.0)
        return ann.Encoder() if is_one else Scale(layer.gain * (layer.T if layer.mode == "direct" else 1))
    if isinstance(layer, Neurons):
        return nn.ReLU() if layer.ceiling is None else nn.Hardtanh(0.0, layer.ceiling)
    if isinstance(layer, tnn.SpikingLayer):
        return _activated(layer)
    if isinstance(layer, tnn.AvgPool2d):
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, tnn.MaxPool2d):
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return nn.MaxPool2d(*geometry, ceil_mode=layer.ceil_mode)
    if isinstance(layer, tnn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool2d(layer.output_size)
    if isinstance(layer, tnn.Flatten):
        return nn.Flatten(layer.start_dim, layer.end_dim)
    if isinstance(layer, tnn.Dropout):
        return nn.Dropout(layer.p)
    if isinstance(layer, tnn.Readout):
        twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        return _with_weights(twin, layer)
    return None


def _with_weights(twin: Any, layer: Any) -> Any:
    twin.weight, twin.bias = layer.weight, layer.bias
    if layer.weight_bits is not None:
        parametrize.register_parametrization(twin, "weight", Rounded(layer.weight_bits))
    return twin


def _activated(layer: Any) -> nn.Module:
    cls: Any = next(getattr(ann, c.__name__) for c in (tnn.Linear, tnn.Conv1d, tnn.Conv2d) if isinstance(layer, c))
    if isinstance(layer, tnn.Linear):
        size: tuple[Any, ...] = (layer.in_features, layer.out_features)
    else:
        size = (layer.in_channels, layer.out_channels, layer.kernel_size, *layer._geometry())
    twin = cls(*size, bias=layer.bias is not None, device="meta")
    twin.norm = layer.norm
    follows = layer.gain == "threshold" or (isinstance(layer.threshold, float) and layer.gain == layer.threshold)
    ceiling = getattr(layer, "ceiling", None)
    twin.units = (None if ceiling is None else nn.Hardtanh(0.0, ceiling)) if follows else Units(layer)
    return _with_weights(twin, layer)
