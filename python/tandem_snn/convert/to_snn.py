"""convert: from an ANN to the spiking network that is its tandem twin."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import fx, nn

from tandem_ext import checks

from .. import nn as tnn
from ..nn import general, maximum
from ..nn.signals import check_network
from .exported import Example, exported
from .graph import CannotConvert
from .lowering import Lowering

SPIKING = (tnn.Encoder, tnn.SpikingLayer, tnn.AvgPool2d, tnn.MaxPool2d, tnn.Readout, general.Neurons, maximum.MaxPool)


def convert(
    ann: nn.Module,
    T: int,
    *,
    mode: str = "direct",
    threshold: float | None = None,
    v_init: float = 0.5,
    example: Example | None = None,
    gate: str | None = None,
    timing: str = "step",
    max_pool: str | None = None,
    after: str | None = None,
    until: str | None = None,
    verbose: bool = False,
) -> fx.GraphModule:
    """A spiking network that shares the ANN's very Parameters and batch norms: training one trains the other.

    A layer of neurons stands where a ReLU stands, be it a module, a function or a method. What it receives is any sum
    of linear maps of trains. Where that is a layer of ``tandem_snn.nn``, that is what it becomes (the fused way);
    elsewhere torch's own operators compute the currents of all steps, for :class:`tandem_snn.nn.general.Neurons` (the
    general way, with T times the products of the ANN). ReLU6 and hardtanh(0, c) are neurons with the ceiling ϑT = c.
    What comes before the first synapses, or after the last neurons, stays as it is.

    The graph is that of ``torch.export`` for an input like ``example``, with batches of any size. Mode, momentum, hooks
    and parametrisations of the live modules count when they run. Without an example an input is looked for that the ANN
    takes: the features or channels of its first layer, and square images of a size that fits. If several sizes do, the
    network is for all of them, or, if the forward looks at the size, an example is asked for.

    Every layer's spikes are worth its threshold, and the input 1/T per step, so z is the ANN's own pre-activation in
    the ANN's own units: biases and batch-norm statistics hold. A count stands for activations up to ϑT, which is what
    :func:`calibrate` sets from data.

    Args:
        ann: a network for images or vectors, in any mode; it is not changed. Its layers' modes carry over.
        T: the number of time steps, 1..65535.
        mode: how the input is encoded, as in ``tnn.Encoder``. "events": the spiking network takes a SpikeTrain, of
            which the ANN takes ``gain * counts``.
        threshold: ϑ of every layer without a ceiling, until it is calibrated. None: 4/T, which covers activations up
            to 4.
        v_init: the neurons' initial potential, in units of ϑ. 0.5 rounds ρ(z)/ϑ to a count where 0 cuts it off.
        example: a batch of what the ANN takes; one sample is enough. Only its size counts, and the spiking network is
            for inputs of that size wherever the ANN's forward looks at it.
        gate: of the neurons, "relu" or "resu". An IF neuron cannot take back a spike, so neurons fire a little on their
            way to a z that is not positive; "resu" silences those at the end of the window. None is "resu" with an
            example and "relu" without, or with timing "window". Neurons with a ceiling take the general way with
            "resu"; with "relu" they may be fused, as "clip".
        timing: "step" or "window", of all neurons: with "window" they integrate the whole window before they fire, so
            that no spike is early, and what is left of an error is the rounding to T levels.
        max_pool: "exact": a window has the largest of its neurons' counts (:class:`tandem_snn.nn.maximum.MaxPool`).
            "or": a window spikes where any of its neurons does (``tnn.MaxPool2d``), which freezes, streams and exports,
            but counts more than the maximum. None is "exact" with an example and "or" without.
        after: the path of a module up to which, with all that comes before, the ANN stays an ANN: its results are
            encoded.
        until: the path of a module after which the ANN stays an ANN: its results are counted. So a network of which
            only a part has a spiking counterpart is spiking in that part.
        verbose: print each layer of neurons with the way that it took. They are in ``meta["ways"]`` of the result too.

    Returns:
        A ``torch.fx.GraphModule`` that takes what the ANN takes and returns what it returns. Its submodules have the
        names of the ANN's synapses.

    Raises:
        CannotConvert: ``torch.export`` cannot follow the ANN, an example is needed, a node has no spiking counterpart,
            or nothing would spike; the message names the node, its module and its line, and says what to use instead.
            It is a ValueError.
        TypeError: ann is no module, T no int, or example no batch.
        ValueError: T, mode, threshold or v_init out of range, an example that the ANN does not take, or a module of
            ``after`` or ``until`` that it does not call.

    >>> ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> snn = convert(ann, T=8)
    >>> snn(torch.rand(2, 6)).shape, snn.get_submodule("0").weight is ann[0].weight
    (torch.Size([2, 3]), True)
    """
    check_network("ann", ann)
    encoder = tnn.Encoder(T, mode)
    if mode == "direct":
        encoder.gain = 1 / T
    threshold = 4 / T if threshold is None else threshold
    for name, value in (("threshold", threshold), ("v_init", v_init)):
        if not isinstance(value, Real) or not math.isfinite(value) or (name == "threshold" and value <= 0):
            raise ValueError(f"{name}: expected a {'positive ' * (name == 'threshold')}number, got {value!r:.80}")
    if max_pool not in (None, "exact", "or"):
        raise ValueError(f"max_pool: expected 'exact', 'or' or None, got {max_pool!r:.80}")
    if gate not in (None, "relu", "resu"):
        raise ValueError(f"gate: expected 'relu', 'resu' or None, got {gate!r:.80}")
    checks.one_of("timing", timing, checks.TIMINGS)
    checks.timing_fits(timing, 1.0, gate or "relu")
    gate = gate or ("relu" if example is None or timing == "window" else "resu")
    max_pool = max_pool or ("or" if example is None else "exact")
    ann = getattr(ann, "_orig_mod", ann)  # of torch.compile
    for name, module in ann.named_modules():
        if isinstance(module, SPIKING):
            raise CannotConvert(f"module {name!r}: it is spiking already; to_ann gives the ANN of a spiking network")
    graph = exported(ann, example)
    ways: dict[str, Any] = {"gate": gate, "timing": timing, "max_pool": max_pool, "after": after, "until": until}
    lowering = Lowering(graph, encoder, threshold, v_init, **ways)
    snn = lowering.run(type(ann).__name__)
    if verbose:
        width = max(len(name) for name in lowering.ways)
        print(*(f"{name:{width}}  {way}" for name, way in lowering.ways.items()), sep="\n")
    return snn
