"""to_onnx: a network as an ONNX graph, of one time step or of a whole window."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from ..container import atomically
from ..errors import extra
from ..frozen.network import FrozenNetwork, freeze
from .listing import listing_of
from .onnx_step import StepGraph
from .onnx_window import WindowGraph


def to_onnx(net: nn.Module, path: str | PathLike[str], x: Any = None) -> None:
    """Writes one time step of a frozen network as an ONNX file, the counterpart of :meth:`FrozenNetwork.step`.

    Where layers have timing "window" it writes the whole window, the counterpart of a call (see below). Else inputs
    of the graph, all float32, are ``x`` [batch, *features], the step's spikes, 0 and 1, or the image, the same
    at every step; ``step`` [1], the number of the step from 0; and the state: ``NAME.v`` [batch, *features], the
    potentials of each layer with neurons, and ``NAME.counts``, the spikes that the readout has seen. Before the first
    step the state is zeros. Outputs are ``answer`` [batch, outputs], the readout so far; ``NAME.v.next`` and
    ``NAME.counts.next``, the state for the next step; and ``NAME.spikes`` of each layer with neurons, which cost
    nothing unless they are asked for. The batch is free; T and the kind of input stand in the model's metadata.

    The graph of a whole window, whose metadata say ``timing`` "window", has no state. Its input ``x`` is the image
    [batch, *features], or the spikes [T, batch, *features]; its outputs are ``answer`` and ``NAME.counts`` of each
    layer with neurons. A layer with timing "window" is a product, a Floor and a Clip, or T subtractions where its
    threshold is no power of two; one that fires at once is written T times.

    Weights that ``freeze(weight_bits=...)`` rounded are int8 or, up to 4 bits, int4, in a DequantizeLinear node; their
    step is in the scale of the currents, but for the readout. Sums are those of the engine that runs the file, in
    float32: a potential within rounding of its threshold may fall on the other side.

    Args:
        net: a frozen network, or one to freeze.
        path: the file.
        x: a batch of what it takes, for the shapes; not needed if the frozen network has run.

    Raises:
        ValueError: neither x nor a run gave the shapes; a layer that has no step (see :class:`CannotLower`).
        UserError: the package onnx is not installed.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> to_onnx(net, "net.onnx", torch.rand(1, 4))
    """
    extra("onnx", "the export to ONNX")
    frozen = net if isinstance(net, FrozenNetwork) else freeze(net)
    network = listing_of(frozen, frozen.example() if x is None else x)
    model = (WindowGraph if network.waits else StepGraph)(network).model()
    atomically(Path(path), lambda temporary: temporary.write_bytes(model.SerializeToString()))
