"""Blocks that add to a stream of currents: convolutions apart and attention; and that of a ViT, to compare with.

Each normalises what it reads of the stream, which grows with every block: without that, a third of the last neurons of
a trained network stood at T.
"""

from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tandem_snn.nn.options import without_neurons


def bare(options: dict[str, Any]) -> dict[str, Any]:
    """The settings of neurons alone, without those of synapses."""
    return {name: value for name, value in options.items() if name not in ("bias", "weight_bits")}


class Separable(nn.Module):
    """x + a convolution of each channel apart, between two of single pixels, as in Spike-driven Transformer V3."""

    def __init__(self, layers: ModuleType, dim: int, kernel: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.fire = layers.Neurons(dim, **bare(options))
        self.expand = layers.Conv2d(dim, 2 * dim, 1, **options)
        self.depthwise = layers.Conv2d(2 * dim, 2 * dim, kernel, padding=kernel // 2, groups=2 * dim, **options)
        self.project = layers.Conv2d(2 * dim, dim, 1, **without_neurons(options))

    def forward(self, x: Any) -> Any:
        return x + self.project(self.depthwise(self.expand(self.fire(x))))


class Transformer(nn.Module):
    """x + attention, then + two layers of each token, of which the first has four times as many channels."""

    def __init__(self, layers: ModuleType, dim: int, heads: int, options: dict[str, Any]) -> None:
        super().__init__()
        without_bias = {name: value for name, value in options.items() if name != "bias"}
        self.fire, self.again = (layers.Neurons(dim, **bare(options)) for _ in range(2))
        self.swap = layers.Permute([0, 2, 1])  # neurons have their channels first
        self.attention = layers.SelfAttention(dim, heads, **without_bias)
        self.fc1 = layers.Linear(dim, 4 * dim, **options)
        self.fc2 = layers.Linear(4 * dim, dim, **without_neurons(options))

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.swap(self.fire(self.swap(x))))
        return x + self.fc2(self.fc1(self.swap(self.again(self.swap(x)))))


class Softmax(nn.Module):
    """The block of a ViT, in the place of :class:`Transformer`: layer norm, softmax and GELU."""

    def __init__(self, _: ModuleType, dim: int, heads: int, __: dict[str, Any]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y
