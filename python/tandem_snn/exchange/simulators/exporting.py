"""From a network of our layers to one whose forward is one time step of another simulator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from tandem_ext.functional.neuron import over_inputs

from ... import nn as tnn
from ...frozen.network import FrozenNetwork
from ...frozen.trace import CannotLower
from ..stages import Stage, stages_of
from .neurons import Neuron

WriteNeuron = Callable[[Neuron], tuple[nn.Module, float | Tensor]]


def export_network(net: nn.Module, x: Any, write: WriteNeuron) -> fx.GraphModule:
    """The evaluation of ``net`` as a module of torch's layers and another simulator's neurons.

    Args:
        x: a batch of what the network takes, for the shapes.
        write: the module that is a neuron of ours (factor 1 and offset 0), and the current that it wants at each step
            besides. Raises ValueError for what it cannot be.

    Raises:
        CannotLower: a layer that has no counterpart; the message names it.
    """
    stages = stages_of(net, x, readout=False)
    graph, root = fx.Graph(), nn.Module()
    values = {"input": graph.placeholder("x")}

    def call(name: str, module: nn.Module, value: fx.Node) -> fx.Node:
        root.add_module(name, module)
        return graph.call_module(name, (value,))

    def constant(name: str, numbers: Tensor, dims: int) -> fx.Node:
        root.register_buffer(name, numbers.detach().float().view(-1, *[1] * (dims - 1)))
        return graph.get_attr(name)

    _add_as_they_are(stages.stages)
    for stage in stages.stages:
        x_in, layer, dims = values[stage.x], stage.layer, len(stage.shape)
        if isinstance(layer, tnn.SpikingLayer):
            neurons, offset = _written(stage, write) if stage.fires else (None, 0.0)
            value = call(stage.name, _synapses(stage, stages.T, offset), x_in)
            if stage.residual is not None:
                residual = values[stage.residual]
                if stage.residual_scale is not None:
                    scale = constant(f"{stage.name}_shortcut", stage.residual_scale, dims)
                    residual = graph.call_function(operator.mul, (residual, scale))
                value = graph.call_function(operator.add, (value, residual))
            value = value if neurons is None else call(f"{stage.name}_neurons", neurons, value)
        elif isinstance(layer, tnn.Readout):
            value = call(stage.name, _synapses(stage, stages.T, 0.0), x_in)
        else:
            value = call(stage.name, _without_weights(stage), x_in)
            if isinstance(layer, tnn.AvgPool2d) and layer.spiking and stage.fires:
                value = call(f"{stage.name}_neurons", _written(stage, write)[0], value)
            elif stage.scale is not None:
                gain = constant(f"{stage.name}_gain", stage.scale, dims)
                value = graph.call_function(operator.mul, (value, gain))
        values[stage.name] = value
    graph.output(value)
    source = net.net if isinstance(net, FrozenNetwork) else net
    return fx.GraphModule(root, graph, type(source).__name__).eval()


def _add_as_they_are(stages: list[Stage]) -> None:
    """Puts what a shortcut is worth into weights: into its own, or, where spikes are worth one number, that number is
    the unit of potential. What is left are spikes that are worth something else in each channel.
    """
    named = {stage.name: stage for stage in stages}
    for stage in stages:
        scale = stage.residual_scale
        if scale is None:
            continue
        path = named.get(str(stage.residual))
        if path is not None and isinstance(path.layer, tnn.SpikingLayer) and not path.fires:
            _multiply(path, scale)
        elif bool((scale == scale[0]).all()):
            _multiply(stage, 1 / scale)
            stage.threshold /= scale[0].item()
            stage.v_init = None if stage.v_init is None else stage.v_init / scale[0]
        else:
            continue
        stage.residual_scale = None


def _multiply(stage: Stage, factor: Tensor) -> None:
    stage.scale = factor if stage.scale is None else stage.scale * factor
    stage.shift = None if stage.shift is None else stage.shift * factor


def _written(stage: Stage, write: WriteNeuron) -> tuple[nn.Module, float | Tensor]:
    v_init = 0.0 if stage.v_init is None else stage.v_init.detach().float()
    if isinstance(v_init, Tensor) and (v_init.dim() == 0 or bool((v_init == v_init.flatten()[0]).all())):
        v_init = v_init.flatten()[0].item()
    try:
        return write(Neuron(stage.threshold, stage.leak, v_init))
    except ValueError as error:
        raise CannotLower(f"{stage.name}: {error}") from error


def _synapses(stage: Stage, T: int, offset: float | Tensor) -> nn.Module:
    """torch's layer with the currents of one step: gains and batch norm in its weights, bias/T as its bias."""
    layer = stage.layer
    assert stage.weight is not None
    weight = stage.weight.detach().float()
    if stage.scale is not None:
        weight = weight * over_inputs(stage.scale, weight)
    bias = torch.zeros(len(weight)) if stage.shift is None else stage.shift.detach().float() / T
    if weight.dim() == 2:
        synapses: Any = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    else:
        cls: Any = nn.Conv1d if weight.dim() == 3 else nn.Conv2d
        size = (layer.in_channels, layer.out_channels, layer.kernel_size)
        synapses = cls(*size, layer.stride, layer.padding, layer.dilation, layer.groups, device="meta")
    synapses.weight, synapses.bias = nn.Parameter(weight), nn.Parameter(bias + offset)
    return synapses


def _without_weights(stage: Stage) -> nn.Module:
    layer = stage.layer
    if isinstance(layer, tnn.Flatten):
        return nn.Flatten(layer.start_dim, layer.end_dim)
    if isinstance(layer, tnn.MaxPool2d):
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return nn.MaxPool2d(*geometry, ceil_mode=layer.ceil_mode)
    if isinstance(layer, tnn.AvgPool2d):
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, tnn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool2d(layer.output_size)
    raise CannotLower(f"{stage.name}: {type(layer).__name__} has no counterpart")
