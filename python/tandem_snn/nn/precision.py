"""set_T: the number of time steps of a network with window timing is its precision."""

import torch
from torch import Tensor, nn

from tandem_ext import checks

from .hooks import FIRING, check_layers
from .passing import Encoder
from .pooling import AvgPool2d
from .signals import check_network


def set_T(net: nn.Module, T: int) -> nn.Module:
    """Change the number of time steps of a network with window timing: its activations are rounded to T levels.

    A layer's own T changes in proportion, rounded to the nearest, halves up, and to at least 1, so that it may not come
    back with the T of the network. Each layer keeps its range ϑT, beyond which activations saturate: given thresholds,
    gains and initial potentials are multiplied by T_old/T, tensors in place; a default threshold is that of T_old, the
    layer's ``range_T``, times T_old/T. Without set_T, a new ``Encoder.T`` gives default thresholds the range of that T.
    Thresholds that your own modules pass to functions stay. docs/howto/windows.md says what to use when, and when to
    measure batch norm's statistics again.

    A state_dict has the tensors of its T, but not T: load it into a network after the same set_T. A backward pass
    through what was computed before fails where it needs a tensor that has changed.

    Args:
        net: a network with an Encoder of real-valued inputs; it is changed in place.
        T: the number of time steps, 1..255.

    Returns:
        net.

    Raises:
        TypeError: net is not a module, or T is not an int.
        ValueError: T is out of range, for the network or for a layer with its own, or that of recordings (there is no
            Encoder, or one of events); a layer has step timing; layers whose T changes by different factors share a
            tensor; or net has no layer with neurons, or is frozen: change the network that was frozen, and freeze it
            again.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5, norm=True, timing="window"), tnn.Readout(5, 3))
    >>> fine = tnn.set_T(net, 16)[:2](torch.rand(2, 6))
    >>> fine.T, fine.gain == tnn.default_threshold(8, "window") / 2
    (16, True)
    """
    net = check_network("net", net)
    checks.T("T", T, "window")
    check_layers(net, FIRING)
    encoders = [m for m in net.modules() if isinstance(m, Encoder)]
    if not encoders or "events" in {encoder.mode for encoder in encoders}:
        raise ValueError(f"T: it is that of the recordings, which the network takes as they are: give it {T} steps")
    before, *others = {encoder.T for encoder in encoders}
    if others:
        raise ValueError(f"T: expected Encoders of one T, got {sorted([before, *others])}")
    layers = {name: m for name, m in net.named_modules() if isinstance(m, FIRING) and getattr(m, "spiking", True)}
    for name, layer in layers.items():
        if layer.timing != "window":
            raise ValueError(f'T: layer {name!r} has step timing, whose T is part of what was trained, not "window"')
    new = {n: T if m.T is None else max(1, (2 * m.T * T + before) // (2 * before)) for n, m in layers.items()}
    for name, own in new.items():
        checks.T(f"T of layer {name!r}", own, "window")
    tensors: dict[int, tuple[Tensor, float]] = {}  # layers may share one
    numbers: list[tuple[nn.Module, str, float]] = []
    for name, layer in layers.items():
        names, factor = ["gain"], layer.own_T(before) / new[name]
        if layer.threshold is not None and not isinstance(layer, AvgPool2d):  # which averages whatever counts stand for
            names += ["threshold", "v_init"]
        for key in names:
            value = getattr(layer, key, None)
            if isinstance(value, Tensor) and tensors.setdefault(id(value), (value, factor))[1] != factor:
                raise ValueError(f"T: layer {name!r} shares its {key} with a layer whose T changes by another factor")
            if isinstance(value, float | int):
                numbers.append((layer, key, value * factor))
    for name, layer in layers.items():
        if layer.threshold is None:
            layer.range_T = layer.range_T or layer.own_T(before)
        if layer.T is not None:
            layer.T = new[name]
    for owner, key, number in numbers:
        setattr(owner, key, number)
    with torch.no_grad():
        for tensor, factor in tensors.values():
            tensor.mul_(factor)
    for encoder in encoders:
        encoder.T = T
    return net
