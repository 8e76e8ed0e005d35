"""Networks of counts with window timing and weights of few bits, of any layers, drawn by a number."""

import random

import torch
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.listing import listing_of
from tandem_snn.nn.passing import SIGNALS


def hostile(random, norm):
    """Scales that are negative, zero, huge or denormal, and shifts as large."""
    for n in range(len(norm.weight)):
        norm.weight.data[n] = random.choice([1.0, 0.5, -1.0, 0.0, -0.0, 1e-42, -1e-30, 1e6, -1e4, 3e33])
        norm.bias.data[n] = random.choice([0.0, 0.25, -2.0, 1e-42, 1e6, -1e30])


class Block(nn.Module):
    """Layers of any kind on trains of one shape, of which some add or join."""

    def __init__(self, random, axes, channels):
        super().__init__()
        self.kind = random.choice(["plain", "plain", "identity", "projection", "cat", "sum"])
        wide, groups = random.choice([(4, 1), (8, 2), (8, 8), (6, 1)])
        self.outputs = channels if self.kind == "identity" else wide
        groups = groups if channels % groups == 0 and self.outputs % groups == 0 else 1
        gain = 1.0 if self.kind == "cat" else None  # that of both
        self.first = layer(random, axes, channels, self.outputs, groups, gain)
        if self.kind in ("projection", "cat", "sum"):
            self.second = layer(random, axes, channels, self.outputs, 1, gain)
        if self.kind == "sum":
            self.first.neurons = self.second.neurons = False
            self.fires = tnn.Neurons(timing="window", threshold=random.choice([None, 0.7]), T=random.choice([None, 5]))
        if self.kind in ("identity", "projection"):
            body, shortcut = self.first, None if self.kind == "identity" else self.second
            self.first = self.second = None
            self.body = tnn.Residual(body, shortcut)
        self.outputs *= 2 if self.kind == "cat" else 1

    def forward(self, x):
        if self.kind == "plain":
            return self.first(x)
        if self.kind == "cat":
            return te.cat([self.first(x), self.second(x)], 1)
        if self.kind == "sum":
            return self.fires(self.first(x) + self.second(x))
        return self.body(x)


def layer(random, axes, channels, outputs, groups, gain):
    neuron = {"timing": "window", "threshold": random.choice([None, 1.0, 0.7, torch.rand(outputs) + 0.3]), "norm": True}
    neuron |= {"v_init": random.choice([None, 0.0, 0.3, torch.rand(outputs)]), "T": random.choice([None, None, 2, 16])}
    neuron["T"] = random.choice([None, None, None, 3, 20])  # its own
    neuron["gain"] = 1.0 if isinstance(neuron["threshold"], torch.Tensor) else gain
    if axes == 0:
        return tnn.Linear(channels, outputs, **neuron)
    kernel, dilation = random.choice([(1, 1), (3, 1), (2, 1), (3, 2), (5, 1)])
    geometry = {"padding": "same", "dilation": dilation, "groups": groups}
    return (tnn.Conv1d if axes == 1 else tnn.Conv2d)(channels, outputs, kernel, **geometry, **neuron)


def drawn(seed, tame=False):
    """A frozen network of any layers, and trains of counts for it."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    axes, T, channels = draw.choice([0, 1, 2, 2]), draw.choice([1, 2, 4, 8, 15, 40, 255]), draw.choice([1, 2, 3, 4])
    channels = 7 if axes == 0 else channels
    space, layers = tuple(draw.choice([8, 9, 12]) for _ in range(axes)), []
    counts = torch.randint(T + 1, (6, channels, *space)) * torch.randint(2, (6, channels, *space))
    if axes == 2 and draw.random() < 0.2:
        layers.append(tnn.MaxPool2d(2, 1))
    for _ in range(draw.randint(1, 3)):
        layers.append(Block(draw, axes, channels))
        channels = layers[-1].outputs
        if axes:
            maximum, average = (tnn.MaxPool1d, tnn.AvgPool1d) if axes == 1 else (tnn.MaxPool2d, tnn.AvgPool2d)
            pools = [maximum(2, 1), maximum(3, 2, 1, ceil_mode=True), average(2, 1, timing="window"),
                     average(3, 1, 1, timing="window", v_init=0.25)]  # fmt: skip
            layers += draw.choice([[], [draw.choice(pools)]])
    if axes == 2:
        layers += draw.choice([[], [tnn.AvgPool2d(2, spiking=False)], [tnn.AdaptiveAvgPool2d(1)]])
    net = nn.Sequential(*layers, *[tnn.Flatten()] * bool(axes))
    x = te.SpikeTrain.from_counts(counts, T)
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    net.train()
    net(x)
    if not tame and draw.random() < 0.5:
        hostile(draw, draw.choice(norms))
    net.append(tnn.Readout(net(x).shape[1], 5))
    return ts.freeze(net.eval(), weight_bits=draw.choice([2, 3, 4, 8, 8]), T=T, example=x), x


FIRST = {
    "conv": lambda: [tnn.Conv2d(3, 8, 3, padding=1, norm=True, timing="window"), tnn.MaxPool2d(2), tnn.Flatten()],
    "pool": lambda: [tnn.MaxPool2d(2), tnn.Conv2d(3, 8, 3, padding=1, timing="window"), tnn.Flatten()],
    "flatten": lambda: [tnn.Flatten(), tnn.Linear(144, 96, timing="window")],
}


def of_pixels(first, given):
    """A frozen network of pixels with a normalisation, by its first layers, and images."""
    torch.manual_seed(0)
    net = nn.Sequential(tnn.Encoder(8, "pixels", **given), *FIRST[first](), tnn.Readout(96, 5))
    x = torch.randint(256, (4, 3, 8, 6), dtype=torch.uint8)
    for _ in range(2):
        net.train()(x)
    return ts.freeze(net.eval(), weight_bits=8, example=x), x


def counts_of(frozen, x):
    """The counts of each layer with neurons, by the name that exports give it."""
    listing = listing_of(frozen, x)
    values = {"input": SIGNALS[listing.mode](x, listing.T) if isinstance(x, torch.Tensor) else x}
    stages = listing.stages
    for stage in stages:
        values[stage.name] = stage.layer(values[stage.x], values.get(stage.residual))
    return {stage.name: values[stage.name].counts for stage in stages if stage.fires}
