"""Export a network as one time step of another simulator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from ...convert.layers import layer_of
from ...convert.to_ann import to_ann
from ...frozen.network import FrozenNetwork
from ...frozen.stages import CannotLower
from ...frozen.stages import Stage as Layer
from ..listing import Stage, listing_of
from .neurons import Neuron, neuron_of

WriteNeuron = Callable[[Neuron], tuple[nn.Module, float | Tensor]]


def export_network(net: nn.Module, x: Any, write: WriteNeuron, windows: Any = None) -> fx.GraphModule:
    """Export ``net`` in evaluation mode as a module of torch's layers and the neurons of another simulator.

    Args:
        write: a function that returns the other simulator's module for a neuron (factor 1 and offset 0), and an
            additional current that this module needs at each step. It raises ValueError if the neuron is not supported.
        windows: the modules for timing "window", see spikingjelly_windows.py; None: not supported.
    """
    network = listing_of(net, x, readout=False)
    if network.waits and windows is None:
        name = next(stage.name for stage in network.stages if stage.waits)
        raise CannotLower(name, 'timing "window" is not supported: use to_spikingjelly, which has modules for it')
    made = {"input": 0} | {stage.name: stage.depth + stage.waits for stage in network.stages}
    graph, root = fx.Graph(), nn.Module()
    values = {"input": graph.placeholder("x")}

    def call(name: str, module: nn.Module, value: fx.Node) -> fx.Node:
        root.add_module(name, module)
        return graph.call_module(name, (value,))

    def late(stage: Stage, name: str) -> fx.Node:
        """Return the value, delayed to arrive with the other inputs of the stage."""
        after, value = stage.depth - made[name], values[name]
        return call(f"{name}_for_{stage.name}", windows.Late(network.T, after), value) if after else value

    def times(value: fx.Node, name: str, factors: Tensor | None, dims: int) -> fx.Node:
        if factors is None:
            return value
        root.register_buffer(name, factors.detach().float().view(-1, *[1] * (dims - 1)))
        return graph.call_function(operator.mul, (value, graph.get_attr(name)))

    _add_as_they_are(network.stages)
    for stage in network.stages:
        layer, dims = stage.layer, len(stage.shape)
        if layer.kind == "average" and layer.v_init is not None:  # the module is a mean, not a sum
            layer.v_init, layer.threshold = layer.v_init / layer.threshold, 1.0
        try:
            neurons, offset = write(neuron_of(layer)) if stage.fires else (None, 0.0)
        except ValueError as error:
            raise CannotLower(stage.name, str(error)) from error
        module = _synapses(stage, network.T, offset) if layer.move is None else to_ann(layer.move)
        value = call(stage.name, module, late(stage, stage.x))
        if stage.residual is not None:
            residual = times(late(stage, stage.residual), f"{stage.name}_shortcut", layer.residual_scale, dims)
            value = graph.call_function(operator.add, (value, residual))
        if neurons is not None:
            if network.waits:
                neurons = (windows.Waiting if stage.waits else windows.AtOnce)(neurons, network.T)
            value = call(f"{stage.name}_neurons", neurons, value)
        elif layer.move is not None:
            value = times(value, f"{stage.name}_gain", layer.scale, dims)
            value = value if layer.gain == 1.0 else graph.call_function(operator.mul, (value, layer.gain))
        values[stage.name] = value
    graph.output(value)
    source = net.net if isinstance(net, FrozenNetwork) else net
    return fx.GraphModule(root, graph, type(source).__name__).eval()


def _add_as_they_are(stages: list[Stage]) -> None:
    """Fold the scale of a shortcut into its weights; if it is one number, make it the unit of the potential."""
    named = {stage.name: stage.layer for stage in stages}
    for stage in stages:
        layer = stage.layer
        scale, path = layer.residual_scale, named.get(str(stage.residual))
        if scale is None:
            continue
        if path is not None and not path.fires:
            _multiply(path, scale)
        elif bool((scale == scale[0]).all()):
            _multiply(layer, 1 / scale)
            layer.threshold /= scale[0].item()
            layer.v_init = None if layer.v_init is None else layer.v_init / scale[0]
        else:
            continue
        layer.residual_scale = None


def _multiply(layer: Layer, factor: Tensor) -> None:
    layer.scale = factor if layer.scale is None else layer.scale * factor
    layer.shift = None if layer.shift is None else layer.shift * factor


def _synapses(stage: Stage, T: int, offset: float | Tensor) -> nn.Module:
    """Return torch's layer for the currents of one step: gains and batch norm are folded in, its bias is bias/T."""
    layer, (weight, bias) = stage.layer, stage.folded(T)
    stride, padding, dilation = map(layer.over_axes, (layer.stride, layer.padding, layer.dilation))
    geometry = (stride, "same" if any(layer.after) else padding, dilation, layer.groups)
    classes = (nn.Linear, nn.Conv1d, nn.Conv2d)
    module: nn.Module = layer_of(classes, nn.Parameter(weight), nn.Parameter(bias + offset), geometry)
    return module
