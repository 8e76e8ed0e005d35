"""Observe the layers of a network during a forward pass, with forward hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from .general import Neurons
from .neuron import SpikingLayer
from .passing import Readout
from .pooling import AvgPool2d
from .signals import check_network

Watcher = Callable[[str, nn.Module, Any, dict[str, Any], Any], None]
SYNAPTIC = (SpikingLayer, Readout, AvgPool2d)
FIRING = (SpikingLayer, AvgPool2d, Neurons)


def check_layers(net: nn.Module, kinds: tuple[type[nn.Module], ...], x: Any = None) -> None:
    """Raise an error unless the network contains layers of these classes that run one by one, and x a sample."""
    check_network("net", net)
    if getattr(x, "shape", ())[:1] == (0,):
        raise ValueError("x: expected at least one sample, got an empty batch")
    if hasattr(net, "readouts"):
        raise ValueError("net: a frozen network runs as one call: pass the original network, or its copy, net.net")
    if not any(isinstance(layer, kinds) for layer in net.modules()):
        raise ValueError("net: expected a network of layers of tandem_snn.nn, found none")


@contextmanager
def watching(net: nn.Module, kinds: tuple[type[nn.Module], ...], watcher: Watcher) -> Iterator[None]:
    """Call ``watcher(name, layer, input, keywords, output)`` after each forward pass of a layer of these classes."""

    def call(name: str, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        watcher(name, layer, *call_inputs(args, kwargs), output)

    handles = [
        layer.register_forward_hook(partial(call, name), with_kwargs=True)
        for name, layer in net.named_modules()
        if isinstance(layer, kinds)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def call_inputs(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a layer's input, and its other arguments by name. Only the residual may be positional."""
    named = dict(zip(("x", "residual"), args, strict=False)) | dict(kwargs)
    return named.pop("x"), named


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within this context the network is in evaluation mode, without gradients; afterwards all modes are restored."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        with torch.no_grad():
            net.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
