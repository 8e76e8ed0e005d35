"""A small transformer of spikes, or of another module's layers."""

import torch
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn.nn.options import without_neurons


class Block(nn.Module):
    """Attention and two layers, each of which adds to a stream of currents."""

    def __init__(self, layers, dim, heads, **options):
        super().__init__()
        bias = not options["norm"]
        bare = {name: options[name] for name in ("timing", "gate")}
        self.fire = nn.ModuleList(layers.Neurons(**bare) for _ in range(2))
        self.attention = layers.SelfAttention(dim, heads, **options)
        self.fc1 = layers.Linear(dim, 2 * dim, bias, **options)
        self.fc2 = layers.Linear(2 * dim, dim, bias, **without_neurons(options))

    def forward(self, x):
        x = x + self.attention(self.fire[0](x))
        return x + self.fc2(self.fc1(self.fire[1](x)))


def transformer(layers=tnn, dim=24, heads=3, depth=2, T=4, tokens=6, outputs=5, gate="clip", **options):
    """For images [B, 3, H, W]: patches by convolutions, blocks, the mean over tokens."""
    options = {"timing": "window", "norm": True, "gate": gate, **options}
    patches = [
        layers.Conv2d(3, dim, 3, 2, 1, **options), layers.Conv2d(dim, dim, 3, 2, 1, **without_neurons(options)),
        layers.Flatten(2), layers.Permute([0, 2, 1]),
    ]  # fmt: skip
    blocks = [Block(layers, dim, heads, **options) for _ in range(depth)]
    mean = [layers.Permute([0, 2, 1]), layers.AvgPool1d(tokens, spiking=False), layers.Flatten()]
    fire = layers.Neurons(timing="window", gate=gate)
    return nn.Sequential(layers.Encoder(T), *patches, *blocks, fire, *mean, layers.Readout(dim, outputs))


class Joins(nn.Module):
    """Features of tokens side by side, again and again: of trains, of currents, and of both; then some tokens."""

    def __init__(self, features, timing, dim=-1):
        super().__init__()
        self.dim = dim
        self.first, self.second = (tnn.Linear(features, n, norm=True, timing=timing) for n in (24, 17))
        self.third, self.fourth = (tnn.Linear(41, n, neurons=False, timing=timing) for n in (16, 9))
        self.fire, self.last = tnn.Neurons(timing=timing), tnn.Linear(66, 32, timing=timing)

    def forward(self, x):
        spikes = te.cat([self.first(x), self.second(x)], self.dim)
        currents = te.cat([self.third(spikes), self.fourth(spikes)], self.dim)
        return self.last(self.fire(te.cat([spikes, currents], self.dim)))


def joins(timing="step", dim=-1, tokens=(6,)):
    """A network of joins of tokens, and its input."""
    ends = tnn.Flatten(), tnn.Readout(32 * torch.Size(tokens).numel(), 5)
    return nn.Sequential(tnn.Encoder(6), Joins(20, timing, dim), *ends), torch.rand(4, *tokens, 20)
