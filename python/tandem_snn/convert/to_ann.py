"""to_ann: extract the ANN twin of a spiking network."""

import copy
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tandem_ext.functional.neuron import over_space
from tandem_ext.functional.products import transposed

from .. import ann
from .. import nn as tnn
from ..frozen import FrozenNetwork
from ..frozen.stages import Stages
from ..nn.hooks import READOUTS, is_own
from ..nn.quantise import rounded
from ..nn.signals import check_network
from .layers import layer_of

GEOMETRY = ("stride", "padding", "dilation", "groups")
PASSING = (
    tnn.AvgPool2d, tnn.MaxPool2d, tnn.AdaptiveAvgPool2d, tnn.AdaptiveMaxPool2d, tnn.Upsample, tnn.Flatten, tnn.Dropout,
)  # fmt: skip


class Scale(nn.Module):
    """Multiply by gain/ϑ: an activation ρ(z) as the next layer reads it, or an input as its encoder presents it."""

    def __init__(self, gain: float | Tensor, threshold: float | Tensor = 1.0) -> None:
        super().__init__()
        for name, value in (("gain", gain), ("threshold", threshold)):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, a: Tensor) -> Tensor:
        return a * over_space(self.gain, a.shape) / over_space(self.threshold, a.shape)


class Rounded(nn.Module):
    """A parametrisation that rounds weights as a layer with ``weight_bits`` does."""

    def __init__(self, bits: int, groups: int | None) -> None:
        super().__init__()
        self.bits, self.groups = bits, groups  # groups: of a transposed convolution

    def forward(self, weight: Tensor) -> Tensor:
        if self.groups is None:
            return rounded(weight, self.bits)
        return transposed(rounded(transposed(weight, self.groups), self.bits), self.groups)


def _with_map(name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a layer of the user's own, on tensors that have the ``map`` of a train."""
    try:
        return type(module).forward(module, *(_mapped(x) if isinstance(x, Tensor) else x for x in args), **kwargs)
    except (AttributeError, RuntimeError, TypeError) as error:
        why = "of an ANN: unless it only uses train.map, put a twin of yours in its place"
        raise ValueError(f"net: {name!r} ({type(module).__name__}) fails on activations {why} ({error})") from error


def _mapped(x: Tensor) -> Tensor:
    alias: Any = x.view_as(x)
    alias.map = lambda f: f(x)
    return alias


def to_ann(net: nn.Module) -> nn.Module:
    """Return the ANN twin of a spiking network: its ANN branch, with activations instead of spike counts.

    The twin has the structure of ``net`` and shares its Parameters, buffers and batch norms. Layers of
    ``tandem_snn.nn`` are replaced by layers of ``tandem_snn.ann``. Its input is gain·x, or the effective counts of a
    train, and each layer returns gain·ρ(z)/ϑ. The twin of a network made by :func:`convert` returns the same as the
    original ANN, bit for bit; up to rounding where a mean over the image or ``adaptive_avg_pool2d`` is read by hidden
    layers, since the twin's ``nn.AvgPool2d`` adds in another order.

    Args:
        net: a network of layers of ``tandem_snn.nn``. Other modules in it must accept tensors, of which ``x.map(f)`` is
            ``f(x)``: layers of your own that only use ``train.map`` do; for others the twin raises ValueError.

    Returns:
        The ANN twin, a module.

    Raises:
        TypeError: net is not a module.
        ValueError: net is frozen, or a layer has a forward of its own, or a weight that is computed, as by pruning.

    >>> from tandem_snn import convert
    >>> ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> x = torch.rand(2, 6)
    >>> torch.equal(to_ann(convert(ann, T=8))(x), ann(x))
    True
    """
    check_network("net", net)
    if any(isinstance(module, FrozenNetwork | Stages) for module in net.modules()):
        raise ValueError("net: a frozen network has no ANN twin: give the network, and freeze it afterwards")
    windows = [module.T for module in net.modules() if isinstance(module, tnn.Encoder)]
    memo: dict[int, Any] = {id(t): t for t in (*net.parameters(), *net.buffers())}
    for name, module in net.named_modules():
        given = isinstance(module, (tnn.SpikingLayer, *READOUTS)) and module.weight is not None
        if given and not isinstance(module.weight, nn.Parameter):
            raise ValueError(
                f"net: the weight of {name!r} is made before each forward pass; make it permanent first, by "
                "prune.remove or parametrize.remove_parametrizations of torch.nn.utils"
            )
        twin = _twin(module, windows[0] if len(windows) == 1 else None)
        if twin is not None and not type(module).forward.__module__.startswith("tandem_snn."):
            raise ValueError(f"net: {name!r} ({type(module).__name__}) has a forward of its own, which a twin lacks")
        if twin is not None:
            memo[id(module)] = twin.train(module.training)
    ann = copy.deepcopy(net, memo)
    for name, module in ann.named_modules():
        if is_own(module):
            module.forward = partial(_with_map, name, module)
    return ann


def _twin(layer: nn.Module, T: int | None) -> nn.Module | None:
    """Return the ANN layer that replaces a spiking layer; None if the layer can stay."""
    if isinstance(layer, tnn.Encoder):
        return ann.Encoder(layer.T, layer.mode, gain=layer.gain, mean=layer.mean, std=layer.std)
    if isinstance(layer, tnn.SpikingLayer):
        return _activated(layer, T)
    if isinstance(layer, PASSING):
        kind = _namesake(layer, nn)
        return kind(**{name: getattr(layer, name) for name in signature(kind).parameters if hasattr(layer, name)})
    if isinstance(layer, READOUTS):
        sizes = {name: getattr(layer, name) for name in GEOMETRY if hasattr(layer, name)}
        return _rounded(layer_of(_namesake(layer, nn), layer.weight, layer.bias, sizes), layer)
    return None


def _namesake(layer: nn.Module, module: Any) -> Any:
    """Return the class of a module that has the name of the layer's class, or of the nearest that it is made from."""
    return next(getattr(module, cls.__name__) for cls in type(layer).__mro__ if hasattr(module, cls.__name__))


def _rounded(twin: Any, layer: Any) -> Any:
    if layer.weight_bits is not None:
        groups = layer.groups if isinstance(layer, tnn.ConvTranspose1d | tnn.ConvTranspose2d) else None
        parametrize.register_parametrization(twin, "weight", Rounded(layer.weight_bits, groups))
    return twin


def _activated(layer: Any, T: int | None) -> nn.Module:
    if isinstance(layer, tnn.Neurons):
        twin: Any = ann.Neurons()
    else:
        twin = layer_of(_namesake(layer, ann), layer.weight, layer.bias, layer.geometry())
    twin.norm, twin.neurons = layer.norm, layer.neurons
    numbers = not isinstance(layer.gain, Tensor) and not isinstance(layer.threshold, Tensor)
    follows = layer.gain is None or (numbers and layer.gain == layer.threshold)
    ceiling = getattr(layer, "ceiling", None)
    twin.units = (
        (None if ceiling is None else nn.Hardtanh(0.0, ceiling))
        if follows
        else Scale(layer.gain, layer.threshold_for(T))
    )
    return _rounded(twin, layer)
