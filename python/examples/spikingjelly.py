"""Copies networks of IF and LIF neurons from SpikingJelly and back, layer by layer, with the same spikes.

python python/examples/spikingjelly.py        # copies a network with each kind of neuron, and compares all counts
"""

import sys

import torch
from torch import nn

import tandem_snn.nn as tnn

del sys.path[0]  # this folder, in which spikingjelly is this file
from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def like(module, linear, conv, weight, bias, **neurons):
    """Return a linear or convolutional layer of the size of ``module`` with these weights."""
    names, kind = (CONV, conv) if isinstance(module, nn.Conv2d) else (("in_features", "out_features"), linear)
    copied = kind(**{name: getattr(module, name) for name in names}, **neurons)
    copied.weight.data, copied.bias.data = weight.detach().clone(), bias.detach().clone()
    return copied


def from_spikingjelly(theirs: nn.Sequential, T: int) -> nn.Sequential:
    """Copy one step: Linear, Conv2d (each but the last with neurons after it) and Flatten."""
    ours = [tnn.Encoder(T, gain=T)]  # the image is the current of each step
    for module, after in zip(theirs, [*theirs[1:], None], strict=True):
        if isinstance(module, nn.Flatten):
            ours.append(tnn.Flatten())
        elif isinstance(module, nn.Linear) and after is None:
            ours.append(like(module, tnn.Readout, None, module.weight, T * module.bias))
        elif type(after) in (neuron.IFNode, neuron.LIFNode) and after.v_reset is None and hasattr(module, "weight"):
            lost, theta = 1 / getattr(after, "tau", torch.inf), after.v_threshold
            factor = lost if getattr(after, "decay_input", False) else 1.0
            # There the reset leaks too: the same neuron for v - lost·ϑ, so the threshold is lower by lost·ϑ.
            settings = {"leak": 1 - lost, "threshold": (1 - lost) * theta, "v_init": -lost * (1 - lost) * theta}
            settings["gain"] = 1.0
            bias = T * (factor * module.bias - lost**2 * theta)
            ours.append(like(module, tnn.Linear, tnn.Conv2d, factor * module.weight, bias, **settings))
        elif not isinstance(module, neuron.BaseNode) or isinstance(after, neuron.BaseNode):
            raise ValueError(f"expected Linear or Conv2d, then IFNode or LIFNode(v_reset=None), got {module}, {after}")
    return nn.Sequential(*ours)


def to_spikingjelly(ours: nn.Sequential) -> nn.Sequential:
    """Copy an Encoder, Linear, Conv2d, Flatten and Readout."""
    theirs, T = [], ours[0].T
    for module in ours[1:]:
        if isinstance(module, tnn.Flatten):
            theirs.append(layer.Flatten())
        elif isinstance(module, tnn.Readout):
            theirs.append(like(module, layer.Linear, None, module.weight, module.bias / T))
        elif getattr(module, "norm", True) is not None or (module.gain, module.timing) != (1.0, "step"):
            raise ValueError(f"expected a layer without batch norm, of gain 1 and step timing, got {module}")
        else:
            lost, theta = 1 - module.leak, module.threshold / module.leak
            node = neuron.LIFNode(1 / lost, False, theta, v_reset=None) if lost else neuron.IFNode(theta, v_reset=None)
            node.set_reset_value("v", module.initial_potential / module.leak + lost * theta)
            bias = module.bias / T + lost**2 * theta
            theirs += [like(module, layer.Linear, layer.Conv2d, module.weight, bias), node]
    return nn.Sequential(*theirs)


if __name__ == "__main__":
    T, images = 8, torch.randint(17, (50, 1, 8, 8)) / 16
    for kind in neuron.IFNode, neuron.LIFNode:
        conv, fire, again = layer.Conv2d(1, 8, 3), *(kind(v_threshold=0.25, v_reset=None) for _ in range(2))
        theirs = nn.Sequential(conv, fire, layer.Flatten(), layer.Linear(288, 20), again, layer.Linear(20, 5))
        for parameter in theirs.parameters():
            parameter.data = (64 * parameter.data).round() / 64  # so that all sums are exact
        x, ours = images, from_spikingjelly(theirs, T)
        _, first, _, second, answer = (x := module(x) for module in ours)
        for network in theirs, to_spikingjelly(ours):
            functional.set_step_mode(network, "m")
            x = images.expand(T, *images.shape)
            totals = [(x := module(x)).sum(0) for module in network]
            assert all(map(torch.equal, (totals[1], totals[4], totals[5]), (first.counts, second.counts, answer)))
        print(f"{kind.__name__}: {totals[1].sum() + totals[4].sum():,.0f} spikes, the same counts in both libraries")
