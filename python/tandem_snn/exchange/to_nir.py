"""to_nir: a network as a graph of the Neuromorphic Intermediate Representation."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..nn.general import Neurons
from .listing import listing_of
from .nir_maps import graph_of_maps
from .nir_writer import Writer

FORMS = ("IF", "primitives")


def to_nir(net: nn.Module, x: Any, *, neurons: str = "IF", dt: float = 1.0) -> Any:
    """A NIR graph of the network's evaluation, for inputs shaped like x.

    One run of the graph is one time step; the sum of its outputs over T steps is the network's answer. Gains, batch
    norm, per-channel thresholds and the bias of a step (bias/T) are folded into weights and biases. Neurons on sums of
    linear maps, as :func:`convert` makes them, are written map by map. docs/nir.md has the metadata, by which neurons
    with timing "window" differ from others.

    Args:
        net: a network of layers of ``tandem_snn.nn``, or a frozen one.
        x: a batch of inputs, for the shapes.
        neurons: "IF": IF and LIF nodes with the metadata ``reset = "subtract"``, for tools that subtract the threshold:
            since nir 1.0.8 the nodes alone mean a reset to ``v_reset``. "primitives": a loop of an integrator (I; LI
            with a leak), a Threshold, and a Scale that returns -ϑ one step later. It means the same in every tool that
            runs recurrent graphs.
        dt: the length of a time step, in the unit of the time constants: an IF node has r = 1/dt.

    Returns:
        A ``nir.NIRGraph``; ``nir.write(path, graph)`` writes the file.

    Raises:
        CannotLower: maximum pooling, one-sided padding, an initial potential in the form "IF" (or with a leak), timing
            "window" as primitives, layers that are not a chain to the Readout, an operator without a node, such as an
            upsampling or a concatenation. It is a ValueError that names the layer.
        UserError: the package nir is not installed.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> sorted(to_nir(net, torch.rand(1, 4)).nodes)
    ['input', 'n1', 'n1_neurons', 'n2', 'output']
    """
    if neurons not in FORMS:
        raise ValueError(f"neurons: expected one of {', '.join(map(repr, FORMS))}, got {neurons!r}")
    if not dt > 0:
        raise ValueError(f"dt: expected a positive number, got {dt}")
    if any(isinstance(module, Neurons) for module in net.modules()):
        return graph_of_maps(net, x, neurons, dt)
    network = listing_of(net, x)
    writer = Writer(network.shape, network.T, neurons, dt, network.waits)
    writer.taken |= {stage.name for stage in network.stages}
    for stage in network.stages:
        writer.write(stage)
    last = network.stages[-1]
    return writer.graph(writer.result[last.name], last.shape, network.mode, last.depth)
