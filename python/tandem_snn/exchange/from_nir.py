"""from_nir: a graph of the Neuromorphic Intermediate Representation as a network of our layers."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import fx

from .. import nn as tnn
from ..errors import extra
from .nir_file import plain, read_nir
from .nir_reader import Reader

HARD_RESET_SINCE = (1, 0, 8)


def from_nir(
    graph: Any, T: int | None = None, *, mode: str | None = None, dt: float | None = None, reset: str | None = None
) -> fx.GraphModule:
    """A spiking network from a NIR graph of Conv1d, Conv2d, Affine, Linear, AvgPool2d, Flatten, Scale, IF and LIF, or
    of the loops of primitives that :func:`to_nir` writes for IF and LIF.

    The network runs T steps and returns the sum of the graph's output over them, or the spike train if the graph ends
    in neurons. Where synapses, with a shortcut or a projection, are followed by neurons they are a layer of
    ``tandem_snn.nn``, into whose weights and threshold Scale nodes are folded; any other sum of maps takes the general
    way (:class:`tandem_snn.nn.general.Neurons`). The bias of a layer is T times the bias of a step. A graph from
    :func:`to_nir` gives the same spikes, except for rounding by factors that are not powers of two.

    Args:
        graph: a ``nir.NIRGraph`` or the path of a file.
        T: the number of time steps; None: from the metadata, if :func:`to_nir` wrote the graph.
        mode: of the encoder; None: from the metadata, else "direct".
        dt: the length of a time step in the unit of the graph's time constants; None: from the metadata, else 1.
        reset: "subtract": IF and LIF nodes subtract their threshold, LIF nodes after their leak, v = (1 - dt/τ)v - ϑ.
            None: as the nodes' metadata say; files of nir before 1.0.8 meant subtraction.

    Raises:
        UserError: a file that cannot be read; the package nir is not installed.
        ValueError: a node is not supported, above all neurons that reset to a value; the message names it.

    >>> from tandem_snn import to_nir
    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> x = torch.rand(2, 4)
    >>> torch.allclose(from_nir(to_nir(net, x))(x), net(x))
    True
    """
    nir = extra("nir", "the import of NIR")
    if reset not in (None, "subtract"):
        raise ValueError(f"reset: expected None or 'subtract', the only reset of these layers, got {reset!r}")
    if isinstance(graph, (str, PathLike)):
        graph, version = read_nir(Path(graph))
        if version < HARD_RESET_SINCE:
            reset = "subtract"
    facts = {} if graph.metadata is dict else {key: plain(value) for key, value in graph.metadata.items()}
    T = facts.get("T") if T is None else T
    if T is None:
        raise ValueError("T: give the number of time steps: the graph does not say it")
    encoder = tnn.Encoder(int(T), mode or facts.get("input", "direct"))
    return Reader(nir, graph, encoder, float(dt or facts.get("dt", 1.0)), reset).network()
