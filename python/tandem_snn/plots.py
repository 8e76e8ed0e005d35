"""Plot spike trains, potentials, counts and rates.

Each function draws into the given matplotlib ``axes``, or into new ones, and returns them.

>>> train = te.SpikeTrain.from_dense((torch.rand(16, 1, 40) < 0.2).float())
>>> axes = tandem_snn.plots.raster(train)
>>> axes.figure.savefig("raster.png")
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks

from .errors import abridged, extra
from .measure import Recording, activations, firing_rates

__all__ = ["counts_against_activations", "potentials", "raster", "rates"]

SNN, ANN = "tab:blue", "tab:orange"


def given_or_new(axes: Any) -> Any:
    """Return ``axes``, or new ones if it is None."""
    return extra("matplotlib.pyplot", "a picture").subplots(layout="constrained")[1] if axes is None else axes


def step_axis(axes: Any, T: int) -> None:
    """Label time steps from 1 to T: the first, and at most eight at round distances."""
    distance = next(10**k * d for k in range(9) for d in (1, 2, 5) if T / (10**k * d) <= 8)
    axes.set(xlabel="time step", xlim=(0.4, T + 0.6), xticks=sorted({1, *range(distance, T + 1, distance)}))


def raster(train: SpikeTrain | Recording | Tensor, axes: Any = None, *, sample: int = 0, neurons: int = 200) -> Any:
    """Plot the spikes of one sample, with a mark for each spike of a neuron.

    Args:
        train: a train, the recording of a layer by :class:`tandem_snn.measure.Monitor`, or the moves of a layer in some
            steps, [steps, B, *features], of ``FrozenNetwork.follow``: those of -1 have another colour.
        sample: the index in the batch.
        neurons: the largest number of neurons shown; they are evenly spaced.

    Raises:
        TypeError: train is none of these, or neurons is not an int.
        IndexError: the batch has no such sample.
        ValueError: neurons is less than 1.

    >>> train = te.SpikeTrain.from_dense((torch.rand(16, 2, 40) < 0.2).float())
    >>> raster(train, sample=1).get_xlabel()
    'time step'
    """
    train = train.train if isinstance(train, Recording) else train
    if not isinstance(train, SpikeTrain) and not (isinstance(train, Tensor) and train.dtype == torch.int8):
        raise TypeError(f"train: expected a SpikeTrain, a Recording or int8 moves, got {type(train).__name__}")
    checks.positive("neurons", neurons)
    spikes = train[:, sample] if isinstance(train, Tensor) else train[sample].to_dense(torch.int8)[:, 0]
    spikes = spikes.flatten(1).cpu()
    distance = math.ceil(spikes.shape[1] / neurons)
    axes = given_or_new(axes)
    size = min(80.0, max(8.0, (300 / max(1, len(spikes[0]) // distance)) ** 2))  # points squared
    for sign, color in ((1, SNN), (-1, ANN)):
        steps, shown = (spikes[:, ::distance] == sign).nonzero(as_tuple=True)
        axes.scatter((steps + 1).tolist(), (shown * distance).tolist(), s=size, marker="|", color=color)
    step_axis(axes, len(spikes))
    every = f", 1 of {distance} shown" if distance > 1 else ""
    axes.set(ylabel=f"neuron{every}", ylim=(-0.02 * spikes.shape[1] - 0.5, 1.02 * spikes.shape[1] - 0.5))
    return axes


def potentials(recording: Recording, axes: Any = None, *, sample: int = 0, neurons: int = 4) -> Any:
    """Plot the membrane potentials of a few neurons after each step, with their spikes above.

    With timing "window" the plot has T steps of integration, then T steps of firing.

    Args:
        recording: of a layer, by a :class:`tandem_snn.measure.Monitor` with ``potentials=True``.
        sample: the index in the batch.
        neurons: the number of neurons shown, starting with those that fire earliest.

    Raises:
        TypeError: recording is none, or neurons is not an int.
        ValueError: there are no potentials, or neurons is less than 1.
        IndexError: the batch has no such sample.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2)).eval()
    >>> with tandem_snn.measure.Monitor(net, potentials=True) as monitor:
    ...     _ = net(torch.rand(5, 4))
    >>> potentials(monitor["1"]).get_ylabel()
    'membrane potential v'
    """
    if not isinstance(recording, Recording):
        raise TypeError(f'recording: expected that of a layer, such as monitor["1"], got {type(recording).__name__}')
    if recording.potentials is None:
        raise ValueError("recording: no potentials were recorded: use Monitor(net, potentials=True)")
    checks.positive("neurons", neurons)
    spikes = recording.train[sample].to_dense(torch.uint8)[:, 0].flatten(1).bool()
    v = recording.potentials[:, sample].flatten(1)
    first = torch.where(spikes.any(0), spikes.int().argmax(0), len(spikes))
    shown = first.argsort(stable=True)[:neurons]
    top, bottom = float(v[:, shown].max()), float(v[:, shown].min())
    start = len(v) - len(spikes)
    row = 0.07 * max(0.5, top - bottom)
    axes = given_or_new(axes)
    for i, neuron in enumerate(shown.tolist()):
        (line,) = axes.plot(range(1, len(v) + 1), v[:, neuron].tolist(), ".-", linewidth=1, label=f"neuron {neuron}")
        fired = (spikes[:, neuron].nonzero().flatten() + 1 + start).tolist()
        axes.scatter(fired, [top + (i + 1.5) * row] * len(fired), s=40, marker="|", color=line.get_color())
    step_axis(axes, len(v))
    axes.set(ylabel="membrane potential v")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


def counts_against_activations(
    net: nn.Module, x: Any, axes: Any = None, *, layer: str | None = None, points: int = 1500
) -> Any:
    """Plot the spike count of each neuron against ρ(z)/ϑ, the activation of its ANN branch.

    Counts are jittered by up to a quarter. The line shows equality, up to T.

    Args:
        net: a network of layers of ``tandem_snn.nn``; it is run in evaluation mode.
        x: a batch of its inputs.
        layer: the name of one layer; None: all.
        points: the largest number of points per layer.

    Raises:
        ValueError: the network has no spiking layers, or none with this name.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(64, 32), tnn.Readout(32, 2))
    >>> counts_against_activations(net, torch.rand(5, 64)).get_ylabel()
    'spike count'
    """
    found = activations(net, x)
    if layer is not None and layer not in {activation.name for activation in found}:
        raise ValueError(f"layer: expected one of {abridged(activation.name for activation in found)}, got {layer!r}")
    axes = given_or_new(axes)
    T, highest = max(each.T for each in found if layer in (None, each.name)), 1.0
    for activation in found:
        if layer in (None, activation.name):
            generator = torch.Generator().manual_seed(0)
            chosen = torch.randperm(activation.a.numel(), generator=generator)[:points]
            jitter = torch.rand(len(chosen), generator=generator) * 0.5 - 0.25
            a = activation.a.relu().flatten().cpu()[chosen].tolist()
            counts = (activation.counts.flatten().cpu()[chosen] + jitter).tolist()
            highest = max(highest, *a, *counts)
            axes.scatter(a, counts, s=3, alpha=0.4, label=f"layer {activation.name}")
    axes.plot([0, T, 2 * T], [0, T, T], color="black", linewidth=0.8)
    axes.set(xlabel="ANN activation ρ(z)/ϑ", ylabel="spike count")
    axes.set(xlim=(-0.03 * highest, min(1.05 * highest, 1.5 * T)), ylim=(-0.5, min(highest, T) + 0.5))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(markerscale=3, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return axes


def rates(net: nn.Module, x: Any, axes: Any = None) -> Any:
    """Plot the firing rate of each layer with neurons, in per cent of the time steps.

    Args:
        net: a network of layers of ``tandem_snn.nn``; it is run in evaluation mode.
        x: a batch of its inputs.

    Raises:
        ValueError: the network has no layers with neurons.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> rates(net, torch.rand(5, 4)).get_xlabel()
    'firing rate, %'
    """
    found = firing_rates(net, x)
    axes = given_or_new(axes)
    bars = axes.barh(list(found), [100 * rate for rate in found.values()], height=0.6, color=SNN)
    axes.bar_label(bars, fmt=" %.1f", padding=2)
    axes.set(xlabel="firing rate, %", ylabel="layer", xlim=(0, 115 * max(*found.values(), 0.01)))
    axes.invert_yaxis()
    return axes
