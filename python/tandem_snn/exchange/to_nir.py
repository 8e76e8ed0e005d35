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

    The input of each time step is the image (direct encoding), the image once and then zeros (zero expand), or the
    step's spikes. The output of a step is its share of the readout: the sum over T steps is the network's answer.
    Gains, batch norm, per-channel thresholds and the bias of a step (bias/T) are folded into weights and biases;
    adaptive pooling becomes pooling over windows. Neurons on sums of linear maps, as :func:`convert` makes them, are
    written map by map, with what their spikes are worth in Scale nodes.

    NIR's IF resets to ``v_reset`` (since nir 1.0.8; older versions subtract the threshold), so the reset by subtraction
    is written in one of two ways:

    * ``neurons="IF"``: IF and LIF nodes with the metadata ``reset = "subtract"``. Chips and simulators know these
      nodes; use a tool that subtracts, or map the nodes to neurons that do.
    * ``neurons="primitives"``: an IF neuron as a loop of an integrator (I; LI with a leak), a Threshold, and a Scale
      that returns -ϑ to the integrator one step later. It means the same in every tool that runs recurrent graphs.

    Neurons with timing "window" integrate T steps and fire in the next T. They are IF nodes with the metadata
    ``timing = "window"`` and, if it is not zero, ``v_init``. With such neurons in the network, every IF node has a
    ``phase``: the number of windows by which its input is delayed. A reader that works layer by layer sums the currents
    of T steps, then runs the node T times without input.

    Args:
        net: a network of layers of ``tandem_snn.nn``, or a frozen one.
        x: a batch of inputs, for the shapes.
        neurons: "IF" or "primitives".
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
