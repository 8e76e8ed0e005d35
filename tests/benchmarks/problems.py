"""Spikes of a given rate, and networks of given layers that every competitor computes.

Weights are multiples of 2⁻¹⁸, or of 2⁻¹⁰ for images, whose pixels are multiples of 2⁻⁸. T is a power of two. Sums stay
below 64, so they are exact in float32 in any order, and all versions of a network without batch norm give the same
spikes.

The cost of spikes depends on their number and on how bunched they are: a kernel that reads four steps at a time pays
for nonzero half-bytes (nibbles), so that independent spikes cost most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_ext import ConstantInput, SpikeTrain
from tandem_ext.functional import if_scan

GRID, GRID_BESIDE_IMAGES = 2.0**-18, 2.0**-10
SAMPLE = 1 << 16  # neurons, enough to find the drive for a rate


class Rate(NamedTuple):
    """Spikes per neuron and step of a train, and nonzero half-bytes per byte (0 to 2), both as means."""

    spikes: float
    nibbles: float


def rate_of(train: SpikeTrain) -> Rate:
    planes = train.planes
    nibbles = ((planes & 0x0F) != 0).double().mean() + ((planes & 0xF0) != 0).double().mean()
    return Rate(train.counts.double().mean().item() / train.T, nibbles.item())


def iid(T: int, shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Spikes bool [T, *shape], independent of each other: the worst case."""
    return torch.rand(T, *shape, generator=generator) < rate


def rate_coded(T: int, shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Spikes bool [T, *shape], distributed as the output of a layer of IF neurons, with mean ``rate``.

    Half of the neurons are silent. The others are IF neurons with random initial potentials; their mean currents are
    the positive half of a normal distribution, with noise of half that size at every step.
    """
    if not 0 < rate <= 0.45:
        raise ValueError(f"rate: expected 0 < rate <= 0.45, since half of the neurons are silent, got {rate}")
    drive = torch.relu(torch.randn(*shape, generator=generator))
    v = torch.rand(*shape, generator=generator) * (drive > 0)
    noise = torch.stack([1 + 0.5 * torch.randn(*shape, generator=generator) for _ in range(T)]).clamp_min(0)

    def fire(factor: float, neurons: slice = slice(None)) -> Tensor:
        currents = factor * drive.flatten()[neurons] * noise.flatten(1)[:, neurons]
        return if_scan(currents, v_init=v.flatten()[neurons]).to_dense(torch.bool)

    def rate_at(factor: float) -> float:
        return fire(factor, slice(SAMPLE)).double().mean().item()

    most = 1.0
    while rate_at(most) < rate and most < 1e3:
        most *= 2
    return fire(bisected(rate_at, rate, 0.0, most, 20)[1]).view(T, *shape)


def bisected(f: Callable[[float], float], wanted: float, low: float, high: float, rounds: int) -> tuple[float, float]:
    """The interval in which a rising function has that value."""
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < wanted else (low, middle)
    return low, high


KINDS = {"rate": rate_coded, "iid": iid}


@dataclass(frozen=True)
class Shape:
    """The shape of a layer: its outputs and, for a convolution, which pads by half its kernel, kernel and stride."""

    outputs: int
    kernel: int = 0
    stride: int = 1
    norm: bool = False

    def __str__(self) -> str:
        convolution = f"C{self.kernel}" * bool(self.kernel) + f"s{self.stride}" * (self.stride > 1)
        return f"{self.outputs}{convolution}{'+norm' * self.norm}"


@dataclass(frozen=True)
class Batch:
    """One input in the forms that competitors take, and the target of the training step.

    x: real values, for the ANN and a direct encoder. train, spikes: the same spikes as bytes and as floats
    [T, B, *features]; None with a direct encoder. counts: spike counts. target: labels [B]; without a readout, the
    gradient of the last counts.
    """

    x: Tensor
    counts: Tensor
    train: SpikeTrain | None = None
    spikes: Tensor | None = None
    target: Tensor = field(default_factory=lambda: torch.empty(0))

    def differentiable(self) -> Batch:
        """The same batch with inputs that require gradients, as in the middle of a network."""
        assert self.train is not None
        x, counts = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (self.x, self.counts))
        return replace(self, x=x, counts=counts, train=SpikeTrain(self.train.planes, self.train.T, counts))


@dataclass
class Problem:
    """A network and batches for it.

    network: an encoder for real-valued inputs, layers with neurons, and a readout if there are classes. rates: of
    every layer, and of an input of spikes. neurons: their number in all layers, for one batch.
    """

    T: int
    network: nn.Sequential
    batches: list[Batch]
    rates: dict[str, Rate]
    neurons: int


def draw_batch(T: int, shape: Sequence[int], kind: str, rate: float, generator: torch.Generator) -> Batch:
    """Spikes of a kind, or, of kind "direct", real values in [0, 1) of which ``rate`` are nonzero; without a target."""
    if kind == "direct":
        x = torch.randint(0, 256, tuple(shape), generator=generator) / 256
        x = channels_last(x * (torch.rand(*shape, generator=generator) < rate), lead=1)
        return Batch(x=x, counts=x)
    dense = channels_last(KINDS[kind](T, shape, rate, generator).float(), lead=2)
    train = SpikeTrain.from_dense(dense)
    return Batch(x=train.counts / T, counts=train.counts, train=train, spikes=dense)


def channels_last(x: Tensor, lead: int) -> Tensor:
    """[*lead, C, *space] with the channels innermost in memory."""
    return x.movedim(lead, -1).contiguous().movedim(-1, lead)


@torch.no_grad()
def make_problem(
    T: int, batches: list[Batch], shapes: Sequence[Shape], rate: float, classes: int, generator: torch.Generator
) -> Problem:
    """A random network whose layers fire at ``rate`` on average, with a readout if ``classes`` is not 0."""
    first = batches[0]
    signal: Any = ConstantInput(first.x, T) if first.train is None else first.train
    rates = {} if first.train is None else {"input": rate_of(signal)}
    encoder = tnn.Encoder(T, gain=1 / tnn.Encoder(T)(torch.ones(1, 1)).gain)  # x in each step, in older trees too
    network, neurons = nn.Sequential(*[encoder] * (first.train is None)), 0
    for i, shape in enumerate(shapes, 1):
        layer = draw_layer(shape, signal, rate, generator)
        network.append(layer)
        signal = layer(signal)
        rates[f"layer {i}"] = rate_of(signal)
        neurons += signal.shape.numel()
    features = signal.shape[1:]
    if classes:
        fan_in = features.numel()
        readout = tnn.Readout(fan_in, classes)
        readout.weight.copy_(normal((classes, fan_in), 0.3 * (fan_in * rate) ** -0.5 / T, GRID, generator))
        readout.bias.zero_()
        network.extend([tnn.Flatten(), readout])

    for i, batch in enumerate(batches):
        gradient = channels_last(torch.randn(len(first.x), *features, generator=generator), lead=1)
        labels = torch.randint(0, max(1, classes), (len(first.x),), generator=generator)
        batches[i] = replace(batch, target=labels if classes else gradient)
    return Problem(T, network, batches, rates, neurons)


def draw_layer(shape: Shape, signal: Any, rate: float, generator: torch.Generator) -> Any:
    """A random layer whose bias (or β) is set so that it fires at ``rate`` on average."""
    images = isinstance(signal, ConstantInput)
    power = signal.x.square().mean().item() if images else rate_of(signal).spikes
    inputs, norm = signal.shape[1], shape.norm
    options: Any = {"bias": not norm, "norm": norm, "threshold": 1.0, "gain": 1.0, "gate": "relu"}
    layer: Any
    if shape.kernel:
        layer = tnn.Conv2d(inputs, shape.outputs, shape.kernel, shape.stride, shape.kernel // 2, **options)
        layer.to(memory_format=torch.channels_last)
    else:
        layer = tnn.Linear(inputs, shape.outputs, **options)
    std = 0.7 * (layer.weight[0].numel() * power) ** -0.5
    layer.weight.copy_(normal(layer.weight.shape, std, GRID_BESIDE_IMAGES if images else GRID, generator))
    offset = layer.norm.bias if norm else layer.bias
    if norm:
        layer.norm.weight.fill_(3.0)

    def fires(b: float) -> float:
        offset.fill_(round(b * 128) / 128)
        return rate_of(layer(signal[:8])).spikes

    fires(sum(bisected(fires, rate, -4.0 * signal.T, 1.0 * signal.T, 10)) / 2)
    return layer


def normal(size: Sequence[int], std: float, grid: float, generator: torch.Generator) -> Tensor:
    return (torch.randn(*size, generator=generator) * std / grid).round() * grid
