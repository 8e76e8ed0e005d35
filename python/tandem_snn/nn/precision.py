"""set_T: the number of time steps of a network with window timing is its precision."""

from torch import Tensor, nn

from tandem_ext import checks

from .hooks import FIRING, check_layers
from .passing import Encoder
from .pooling import AvgPool2d
from .signals import check_network


def set_T(net: nn.Module, T: int) -> nn.Module:
    """Change the number of time steps of a network with window timing: its activations are rounded to T levels.

    The range ϑT of each layer, beyond which activations saturate, stays as it was trained or calibrated: thresholds,
    gains and initial potentials that were given are multiplied by T_old/T, tensors in place, and default thresholds
    become those of the range of T_old, which a layer's ``range_T`` says. A new ``Encoder.T`` alone gives each layer
    the range that :func:`default_threshold` has for T. Below the T of training, measure batch norm's statistics again,
    ``torch.optim.swa_utils.update_bn(batches, net)`` (docs/howto/windows.md).

    Args:
        net: a network with an Encoder of real-valued inputs; it is changed in place.
        T: the number of time steps, 1..255.

    Returns:
        net.

    Raises:
        TypeError: net is not a module, or T is not an int.
        ValueError: T is out of range; T is that of the recordings, because there is no Encoder or one of events; layers
            have step timing, whose threshold depends on T otherwise; or net is frozen or has no layer with neurons.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5, norm=True, timing="window"), tnn.Readout(5, 3))
    >>> fine = tnn.set_T(net, 16)[:2](torch.rand(2, 6))
    >>> fine.T, fine.gain == tnn.default_threshold(8, "window") / 2
    (16, True)
    """
    net = check_network("net", net)
    checks.T("T", T, "window")
    check_layers(net, FIRING)
    encoders = [m for m in net.modules() if isinstance(m, Encoder)]
    if not encoders or any(encoder.mode == "events" for encoder in encoders):
        raise ValueError(f"T: it is that of the recordings, which the network takes as they are: give it {T} steps")
    if len({encoder.T for encoder in encoders}) > 1:
        raise ValueError(f"T: expected Encoders of one T, got {sorted({encoder.T for encoder in encoders})}")
    layers = {name: m for name, m in net.named_modules() if isinstance(m, FIRING) and getattr(m, "spiking", True)}
    for name, layer in layers.items():
        if layer.timing != "window":
            raise ValueError(f'T: layer {name!r} has step timing, whose T is part of what was trained, not "window"')
    scaled: set[int] = set()  # layers may share a tensor
    before = encoders[0].T
    ratio = before / T
    for layer in layers.values():
        if isinstance(layer, AvgPool2d):  # it averages counts, whatever they stand for
            continue
        if layer.threshold is None:
            layer.range_T = layer.range_T or before
        for name in ("threshold", "gain") if layer.threshold is None else ("threshold", "v_init", "gain", "offset"):
            value = getattr(layer, name, None)
            if isinstance(value, Tensor):
                if id(value) not in scaled:
                    value.data.mul_(ratio)
                scaled.add(id(value))
            elif value is not None:
                setattr(layer, name, value * ratio)
    for encoder in encoders:
        encoder.T = T
    return net
