"""Observe the layers of a network during a forward pass, with forward hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from tandem_ext._torch import DispatchMode, arguments_of

from .attention import Attention
from .neuron import SpikingLayer
from .pooling import AvgPool2d
from .readouts import Readout, ReadoutConv2d
from .signals import check_network

Watcher = Callable[[str, nn.Module, Any, dict[str, Any], Any], None]
Kinds = tuple[type[nn.Module], ...]
READOUTS = (Readout, ReadoutConv2d)
SYNAPTIC = (SpikingLayer, *READOUTS, AvgPool2d, Attention)
FIRING = (SpikingLayer, AvgPool2d)


def is_own(module: nn.Module) -> bool:
    """Return whether a module is the user's own, with nothing in it but torch's: it may be a layer with neurons."""
    kind, *parts = (type(m).__module__.split(".")[0] for m in module.modules())
    return kind not in ("torch", "tandem_snn") and set(parts) <= {"torch"}


def check_layers(net: nn.Module, kinds: Kinds, x: Any = None) -> None:
    """Raise an error unless the network contains layers of these classes that run one by one, and x a sample."""
    check_network("net", net)
    if getattr(x, "shape", ())[:1] == (0,):
        raise ValueError("x: expected at least one sample, got an empty batch")
    if hasattr(net, "readouts"):
        raise ValueError("net: a frozen network runs as one call: pass the original network, or its copy, net.net")
    if not any(isinstance(layer, kinds) for layer in net.modules()):
        raise ValueError("net: expected a network of layers of tandem_snn.nn, found none")


@contextmanager
def watching(net: nn.Module, kinds: Kinds, watcher: Watcher, own: bool = False) -> Iterator[None]:
    """Call ``watcher(name, layer, input, keywords, output)`` after each forward pass of a layer of these classes.

    With ``own`` also after that of a module of the user's own.
    """

    def call(name: str, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        watcher(name, layer, *call_inputs(args, kwargs), output)

    handles = [
        layer.register_forward_hook(partial(call, name), with_kwargs=True)
        for name, layer in net.named_modules()
        if isinstance(layer, kinds) or (own and is_own(layer))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def call_inputs(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a layer's input, and its other arguments by name. Only the residual may be positional."""
    named = dict(zip(("x", "residual"), args, strict=False)) | dict(kwargs)
    return named.pop("x", None), named


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


@contextmanager
def only_layers_fire(net: nn.Module) -> Iterator[None]:
    """Within this context it is an error if neurons fire outside of the layers FIRING, as in layers of the user."""
    running: list[tuple[str, nn.Module]] = [("", net)]  # the modules whose forward runs, the innermost last

    class Check(DispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name, layer = running[-1]
            neurons = op.namespace == "tandem" and any(argument.name == "threshold" for argument in arguments_of(op))
            if neurons and not isinstance(layer, FIRING):
                what = f"{name!r} ({type(layer).__name__}) has neurons of its own, whose synapses cannot be counted"
                raise ValueError(f"net: {what}")
            return op(*args, **(kwargs or {}))

    with ExitStack() as hooks:
        for named in net.named_modules():
            begin = named[1].register_forward_pre_hook(lambda *_, named=named: running.append(named))
            end = named[1].register_forward_hook(lambda *_: running.pop() and None, always_call=True)
            hooks.callback(begin.remove)
            hooks.callback(end.remove)
        hooks.enter_context(Check())  # type: ignore[no-untyped-call]
        yield
