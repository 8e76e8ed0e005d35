"""Spikes of a given rate, and networks from which every rival builds its own version.

Weights are multiples of 2⁻¹⁸, or of 2⁻¹⁰ where they meet images, multiples of 2⁻⁸, and T is a power of two. Sums, below
64, are then exact in float32 in any order, and all versions of a network without batch norm must give the same spikes.

Two numbers say what spikes cost: how many there are, and how bunched they are. A kernel that reads trains four steps at
a time pays for nonzero nibbles, not for spikes, and independent spikes cost most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_ext import ConstantInput, SpikeTrain

_SAMPLE = 1 << 16  # neurons that suffice to find the drive of a rate


class Rate(NamedTuple):
    """Of a train: the mean number of spikes per neuron and step, and of nonzero half-bytes per byte (0 to 2)."""

    spikes: float
    nibbles: float


def rate_of(train: SpikeTrain) -> Rate:
    """
    >>> rate_of(SpikeTrain(torch.tensor([[[0b00010001, 0]]], dtype=torch.uint8), T=8))
    Rate(spikes=0.125, nibbles=1.0)
    """
    planes = train.planes
    nibbles = ((planes & 0x0F) != 0).double().mean() + ((planes & 0xF0) != 0).double().mean()
    return Rate(train.counts.double().mean().item() / train.T, nibbles.item())


def iid(T: int, shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Spikes bool [T, *shape], independent of each other: the worst case."""
    return torch.rand(T, *shape, generator=generator) < rate


def rate_coded(T: int, shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Spikes bool [T, *shape] as layers with ReLU-like activity emit them.

    Half of the neurons are silent; the others are IF neurons with the positive half of a normal distribution as mean
    current, half as much noise on it at every step, and a random initial potential. ``rate`` is met in the mean.

    Raises:
        ValueError: a rate that half of the neurons cannot reach.
    """
    if not 0 < rate <= 0.45:
        raise ValueError(f"rate: expected 0 < rate <= 0.45, since half of the neurons are silent, got {rate}")
    drive = torch.relu(torch.randn(*shape, generator=generator))
    v = torch.rand(*shape, generator=generator)
    noise = [1 + 0.5 * torch.randn(*shape, generator=generator) for _ in range(T)]
    sample = slice(0, _SAMPLE)
    few = [x.flatten()[sample] for x in (drive, v, *noise)]
    low, high = 0.0, 1.0
    while _fire(high * few[0], few[1], few[2:]).double().mean() < rate and high < 1e3:
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        below = _fire(middle * few[0], few[1], few[2:]).double().mean() < rate
        low, high = (middle, high) if below else (low, middle)
    return _fire(high * drive, v, noise)


def _fire(current: Tensor, v: Tensor, noise: Sequence[Tensor]) -> Tensor:
    v = v * (current > 0)
    spikes = []
    for factor in noise:
        v = v + current * factor.clamp_min(0)
        spikes.append(v >= 1)
        v = v - spikes[-1].float()
    return torch.stack(spikes)


KINDS = {"rate": rate_coded, "iid": iid}


GRID, GRID_BESIDE_IMAGES = 2.0**-18, 2.0**-10


def _leaf(tensor: Tensor) -> Tensor:
    """A copy, with the same layout, that receives a gradient."""
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()


@dataclass(frozen=True)
class Batch:
    """One input in the forms that the competitors take, and what the training step needs.

    x: real values, the input of the ANN and of a direct encoder. train, spikes: the same spikes as bytes and as floats
    [T, B, *features]; None with a direct encoder. counts: spike counts. target: labels [B], or, where there is
    no readout, the gradient of the last counts.
    """

    x: Tensor
    target: Tensor
    counts: Tensor
    train: SpikeTrain | None = None
    spikes: Tensor | None = None

    def differentiable(self) -> Batch:
        """The batch with inputs that receive gradients, as inside a network."""
        assert self.train is not None
        x, counts = _leaf(self.x), _leaf(self.counts)
        return replace(self, x=x, counts=counts, train=SpikeTrain.unchecked(self.train.planes, self.train.T, counts))

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.x, self.counts) if t.requires_grad]


@dataclass
class Problem:
    """A network and batches for it.

    network: an encoder of real-valued inputs or none, layers with neurons and, where there are classes, a readout, as a
    user writes them. rates: of the input, where it is spikes, and of every layer. neurons: of all layers, in one batch.
    """

    T: int
    network: nn.Sequential
    batches: list[Batch]
    rates: dict[str, Rate]
    neurons: int


def spiking_input(
    T: int, shape: Sequence[int], rate: float, kind: str, batches: int, generator: torch.Generator
) -> list[Batch]:
    """Batches of spikes of ``kind`` "rate" or "iid"; targets are yet to be given."""
    return [_spiking_batch(KINDS[kind](T, shape, rate, generator)) for _ in range(batches)]


def _spiking_batch(spikes: Tensor) -> Batch:
    dense = _channels_last(spikes.float(), lead=2)
    train = SpikeTrain.from_dense(dense)
    return Batch(x=train.counts / train.T, target=torch.empty(0), counts=train.counts, train=train, spikes=dense)


def image_input(shape: Sequence[int], batches: int, generator: torch.Generator, nonzero: float = 1.0) -> list[Batch]:
    """Batches of real values in [0, 1), of which a fraction is not zero."""

    def batch() -> Batch:
        x = torch.randint(0, 256, tuple(shape), generator=generator) / 256
        x = _channels_last(x * (torch.rand(*shape, generator=generator) < nonzero), lead=1)
        return Batch(x=x, target=torch.empty(0), counts=x)

    return [batch() for _ in range(batches)]


def _channels_last(x: Tensor, lead: int) -> Tensor:
    """[*lead, C, *space] with the channels innermost in memory."""
    return x.movedim(lead, -1).contiguous().movedim(-1, lead)


@dataclass(frozen=True)
class Shape:
    """Of a layer to be drawn: its outputs and, for a convolution, kernel, stride and padding."""

    outputs: int
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    norm: bool = False


@torch.no_grad()
def make_problem(
    T: int, batches: list[Batch], shapes: Sequence[Shape], rate: float, classes: int, generator: torch.Generator
) -> Problem:
    """Draws a network whose layers fire at ``rate`` on average, with a readout where there are ``classes``."""
    first = batches[0]
    signal: SpikeTrain | ConstantInput = ConstantInput(first.x, T) if first.train is None else first.train
    rates = {"input": rate_of(signal)} if isinstance(signal, SpikeTrain) else {}
    network, neurons = nn.Sequential(*[tnn.Encoder(T)] * (first.train is None)), 0
    for i, shape in enumerate(shapes):
        layer = _draw(shape, signal, rate, generator)
        network.append(layer)
        signal = fired = layer(signal)
        rates[f"layer {i + 1}"] = rate_of(fired)
        neurons += signal.shape.numel()
    features = signal.shape[1:]
    if classes:
        fan_in = features.numel()
        readout = tnn.Readout(fan_in, classes)
        readout.weight.copy_(_normal((classes, fan_in), 0.3 * (fan_in * rate) ** -0.5 / T, GRID, generator))
        readout.bias.zero_()
        network.extend([tnn.Flatten(), readout])
    batches = [replace(batch, target=_target(batch.x.shape[0], features, classes, generator)) for batch in batches]
    return Problem(T, network, batches, rates, neurons)


def _target(B: int, features: Sequence[int], classes: int, generator: torch.Generator) -> Tensor:
    if classes:
        return torch.randint(0, classes, (B,), generator=generator)
    return _channels_last(torch.randn(B, *features, generator=generator), lead=1)


def _draw(shape: Shape, signal: SpikeTrain | ConstantInput, rate: float, generator: torch.Generator) -> Any:
    """A layer whose bias (or β) makes it fire at ``rate`` on average."""
    power = signal.x.square().mean().item() if isinstance(signal, ConstantInput) else rate_of(signal).spikes
    inputs, norm = signal.shape[1], shape.norm
    layer: Any
    if shape.kernel:
        layer = tnn.Conv2d(inputs, shape.outputs, shape.kernel, shape.stride, shape.padding, bias=not norm, norm=norm)
        layer.to(memory_format=torch.channels_last)
    else:
        layer = tnn.Linear(inputs, shape.outputs, bias=not norm, norm=norm)
    fan_in = layer.weight[0].numel()
    grid = GRID_BESIDE_IMAGES if isinstance(signal, ConstantInput) else GRID
    layer.weight.copy_(_normal(layer.weight.shape, 0.7 * (fan_in * power) ** -0.5, grid, generator))
    offset = layer.norm.bias if norm else layer.bias
    if norm:
        layer.norm.weight.fill_(3.0)

    def fires(b: float) -> float:
        offset.fill_(round(b * 128) / 128)
        return rate_of(layer(signal[:8])).spikes

    low, high = -4.0 * signal.T, 1.0 * signal.T
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if fires(middle) < rate else (low, middle)
    fires((low + high) / 2)
    return layer


def _normal(size: Sequence[int], std: float, grid: float, generator: torch.Generator) -> Tensor:
    return (torch.randn(*size, generator=generator) * std / grid).round() * grid
