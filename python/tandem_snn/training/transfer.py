"""A spiking network that starts from a trained network: its ANN twin, or a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tandem_ext.functional.neuron import over_inputs

from .. import nn as tnn
from ..errors import UserError
from .checkpoint import load_weights, recipe_of, unpack
from .recipe import TWIN


def start_from_checkpoint(net: nn.Module, path: Path, gain: float = 1.0) -> None:
    """:func:`start_from` with the network in a checkpoint, spiking or not."""
    state, facts = unpack(path)
    T = recipe_of(path, facts).T if facts.get("kind") == "SNN" else 1
    start_from(net, state, gain, source_T=T, source=str(path))


@torch.no_grad()
def start_from(
    net: nn.Module, state: Mapping[str, Tensor], gain: float = 1.0, *, source_T: int = 1, source: str = TWIN
) -> None:
    """Gives a spiking network the weights of a trained network with the same layers, in place.

    In every layer the pre-activations z and activations a = ρ(z) of the trained network become

        z' = g·z        and so, but for rounding, the counts        c = g·a,

    with g = ``gain``; the readout's answer stays the same. For that, γ' = g·γ and β' = g·β; without batch norm,
    W' = (g/k)·W and b' = g·b; the readout has W' = W/g. k is the ratio of a layer's input to the input in the trained
    network: T for the first layer after a direct encoder, which sees T·x, and g for the others. The running statistics
    of u = W x follow: mean' = k·mean, var' = k²·var. With thresholds ϑ other than 1, g·ϑ replaces g in z', γ', β', W'
    and b', so that the counts are the same.

    If a spike counts as its threshold (``ann_units=True``), the weights are copied unchanged; the gain must be 1.

    Args:
        net: a network of :func:`tandem_snn.create_model`; its thresholds and initial potentials stay.
        state: the state_dict of the trained network.
        gain: g > 0. With g = 1, a network that was trained with γ near 1 uses only a few of the counts 0 to T, see
            docs/initialisation.md.
        source_T: the number of time steps of the trained network, if it is a spiking one.
        source: the origin of ``state``, for messages.

    Raises:
        UserError: the trained network has other layers; the gain is not positive, or not 1 with ``ann_units``.

    >>> options = {"shape": (64,), "classes": 10, "T": 8}
    >>> net, twin = (create("mlp", **options) for create in (tandem_snn.create_model, tandem_snn.models.create_twin))
    >>> start_from(net, twin.state_dict(), gain=3.0)
    >>> torch.equal(net.fc1.norm.weight, 3 * twin.fc1.norm.weight)
    True
    """
    if not 0 < gain < math.inf:
        raise UserError(f"gain: expected a positive number, got {gain}")
    own = net.state_dict()
    kept = {name: own[name] for name in own if name.rpartition(".")[2] in ("threshold", "v_init")}
    load_weights(Path(source), {**kept, **{name: value for name, value in state.items() if name not in kept}}, net)
    layers = [module for module in net.modules() if isinstance(module, tnn.SpikingLayer)]
    if any(layer.gain == "threshold" for layer in layers):
        if gain != 1:
            raise UserError(
                f"init_gain: expected 1 for a network in the units of its ANN, whose weights are copied, got {gain:g}"
            )
        return
    direct = [module for module in net.modules() if isinstance(module, tnn.Encoder) and module.mode == "direct"]
    first = direct[0].T / source_T if direct else 1.0
    for layer in layers:
        k = first if layer is layers[0] else gain
        threshold = torch.as_tensor(layer.threshold, dtype=layer.weight.dtype).detach()
        scale = gain * threshold
        if layer.norm is None:
            layer.weight.mul_(over_inputs(scale / k, layer.weight))
            if layer.bias is not None:
                layer.bias.mul_(scale)
            continue
        layer.norm.weight.mul_(scale)
        layer.norm.bias.mul_(scale)
        if layer.bias is not None:
            layer.bias.mul_(k)
        assert layer.norm.running_mean is not None
        assert layer.norm.running_var is not None
        layer.norm.running_mean.mul_(k)
        layer.norm.running_var.mul_(k * k)
    for module in net.modules():
        if isinstance(module, tnn.Readout):
            module.weight.div_(gain)
