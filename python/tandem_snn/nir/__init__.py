"""to_nir and from_nir: export to and import from the Neuromorphic Intermediate Representation (NIR)."""

import math
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

from torch import fx, nn

from tandem_ext import checks

from .. import info
from .. import nn as tnn
from ..errors import UserError, extra
from ..frozen.instruction import CannotLower
from ..listing import listing_of
from ..nn.passing import Mode
from ..nn.signals import batches, check_network
from .reader import Reader
from .values import plain
from .writer import Writer, folded

HARD_RESET_SINCE = (1, 0, 8)
_DENSEST = 1100  # the largest compression ratio to accept; gzip's is 1,032
_DEEPEST = 16


def to_nir(net: nn.Module, x: Any, *, dt: float = 1.0, window: bool = False) -> Any:
    """Export a network in evaluation mode as a NIR graph, for inputs shaped like x.

    One run of the graph is one time step; the sum of its outputs over T steps is the answer of the network. Gains,
    batch norm, per-channel thresholds and the bias of a step (bias/T) are folded into weights and biases. Neurons are
    IF and LIF nodes with the metadata ``reset = "subtract"``: since nir 1.0.8 the nodes alone mean a reset to
    ``v_reset``. docs/nir.md describes the metadata, which mark neurons with timing "window" too.

    Args:
        net: a network of layers of ``tandem_snn.nn``, or a frozen network.
        x: a batch of inputs, for the shapes. The graph reads spikes of value 1: the gain of a train is no part of it.
        dt: the length of a time step, in the unit of the time constants: an IF node has r = 1/dt.
        window: the graph's readers follow the metadata of timing "window". If not, such a network gives a warning.

    Returns:
        A ``nir.NIRGraph``; ``nir.write(path, graph)`` writes the file.

    Raises:
        CannotLower: not supported are maximum pooling, one-sided padding, an initial potential with timing "step",
            layers that are not a chain to the Readout, and moves without a NIR node, such as upsampling. It is a
            ValueError that names the layer.
        TypeError, ValueError: net, x or dt is not allowed.
        UserError: the package nir is not installed.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> sorted(to_nir(net, torch.rand(1, 4)).nodes)
    ['input', 'n1', 'n1_neurons', 'n2', 'output']
    """
    net = check_network("net", net)
    batches(x)
    checks.number("dt", dt, "a number", "a positive number", math.ulp(0.0))
    network = folded(listing_of(net, x))
    if network.mode == "pixels":
        raise CannotLower("net", "NIR has no pixels as counts: use an Encoder of another mode")
    writer = Writer(network.shape, network.T, dt, network.window_timing)
    writer.taken |= {stage.name for stage in network.stages}
    for stage in network.stages:
        writer.write(stage)
    last = network.stages[-1]
    graph = writer.graph(writer.result[last.name], last.shape, network.mode)
    if "timing" in graph.metadata and not window:
        warnings.warn(
            'to_nir: readers that ignore the metadata of timing "window" run other spikes and give other answers; pass '
            "window=True if yours follows them",
            stacklevel=2,
        )
    return graph


def from_nir(
    graph: Any, T: int | None = None, *, mode: Mode | None = None, dt: float | None = None, reset: str | None = None
) -> fx.GraphModule:
    """Import a NIR graph as a spiking network.

    Supported nodes are Conv1d, Conv2d, Affine, Linear, AvgPool2d, SumPool2d, Flatten, Scale, IF and LIF. The network
    runs T steps and returns the sum of the graph's outputs, or the spike train if the graph ends in neurons. Synapses
    that are followed by neurons, optionally with a shortcut or a projection, become a layer of ``tandem_snn.nn``; Scale
    nodes are folded into its weights and threshold. Other sums of operators are currents of
    :class:`tandem_snn.nn.Neurons`. The bias of a layer is T times the bias of a step. A graph of
    :func:`to_nir` gives the same spikes, except for rounding by factors that are not powers of two.

    Args:
        graph: a ``nir.NIRGraph`` or the path of a file.
        T: the number of time steps; None: from the metadata, if :func:`to_nir` wrote the graph.
        mode: the mode of the encoder; None: from the metadata, else "direct".
        dt: the length of a time step in the unit of the graph's time constants; None: from the metadata, else 1.
        reset: "subtract": IF and LIF nodes subtract their threshold at once, so that the next decay of a LIF node acts
            on the rest: v ← (1 - dt/τ)v + I, v ← v - ϑ. None: follow the metadata of the nodes; files of nir before
            1.0.8 meant subtraction. LIF nodes of :func:`to_nir` decay before they subtract, as their metadata say.

    Returns:
        A ``torch.fx.GraphModule``.

    Raises:
        UserError: the file cannot be read, or the package nir is not installed.
        TypeError, ValueError: graph, T, mode, dt or reset is not allowed.
        ValueError: a node is not supported, for example neurons that reset to a value; the message names it.

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
    elif not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph: expected a nir.NIRGraph or the path of a file, got {type(graph).__name__}")
    metadata = {} if graph.metadata is dict else {key: plain(value) for key, value in graph.metadata.items()}
    T = int(metadata["T"]) if T is None and "T" in metadata else T
    if T is None:
        raise ValueError("T: give the number of time steps: the graph does not say it")
    encoder = tnn.Encoder(T, mode or metadata.get("input", "direct"))
    if encoder.mode == "direct":
        encoder.gain = float(T)  # the graph receives the input at each step
    dt = float(metadata.get("dt", 1.0)) if dt is None else dt
    checks.number("dt", dt, "a number", "a positive number", math.ulp(0.0))
    return Reader(nir, graph, encoder, dt, reset).read()


def read_nir(path: Path) -> tuple[Any, tuple[int, ...]]:
    """Return the graph in a file, and the version of nir that wrote it; raise UserError if the file is not valid."""
    nir = extra("nir", "the import of NIR")
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with extra("h5py", "the import of NIR").File(path, "r") as file:
            _check(file, "", 0)
        version = extra("nir.serialization", "the import of NIR").read_version(path)
        return nir.read(path), tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    except Exception as error:  # h5py and nir may raise anything for an invalid file
        raise UserError(f"{path} is not a NIR file that can be read ({type(error).__name__}: {error})") from error


def _check(group: Any, where: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"groups are nested more than {_DEEPEST} times")
    for name in group:
        place = f"{where}/{name}"
        if type(group.get(name, getlink=True)).__name__ != "HardLink":
            raise ValueError(f"{place} is a link to another place")
        values = group[name]
        if group.get(name, getclass=True).__name__ == "Group":
            _check(values, place, depth + 1)
            continue
        if values.external or values.is_virtual:
            raise ValueError(f"{place} lies in another file")
        stored = values.id.get_storage_size()
        if values.nbytes > _DENSEST * stored or values.nbytes > info.total_memory():
            raise ValueError(f"{place} declares {values.nbytes:,} bytes, and the file holds {stored:,} for it")
