"""convert: turn an ANN into a spiking network on the same Parameters."""

import math
import sys
import warnings
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import fx, nn

from tandem_ext import checks

from .. import nn as tnn
from ..nn import maximum
from ..nn.passing import Mode
from ..nn.signals import check_network, inputs_of
from .calibrate import batches_of, calibrate
from .exported import Example, exported
from .graph import CannotConvert
from .lowering import Conversion

SPIKING = (tnn.Encoder, tnn.SpikingLayer, tnn.AvgPool2d, tnn.MaxPool2d, tnn.Readout, maximum.MaxPool)


def convert(
    ann: nn.Module,
    T: int,
    example: Example | tuple[Example, ...] | None = None,
    data: Iterable[Any] | None = None,
    *,
    mode: Mode = "direct",
    threshold: float | None = None,
    v_init: float = 0.5,
    timing: checks.Timing = "window",
) -> fx.GraphModule:
    """Convert an ANN to a spiking network that shares its Parameters and batch norms: training one trains the other.

    Every ReLU (module, function or method) becomes a layer of neurons. Their input can be any sum of linear operators
    on spikes: products of spikes are layers of ``tandem_snn.nn``, and what stands between these and the neurons are
    currents, for :class:`tandem_snn.nn.Neurons`. ReLU6 and hardtanh(0, c) become neurons with the ceiling ϑT = c.
    Operations before the first synapses and after the last neurons are kept; linear layers and convolutions that answer
    become readouts, and with timing "window" what linear maps make of spikes before them are currents, too.

    The graph comes from ``torch.export`` for an input like ``example``, with batches of any size. The network calls the
    live modules of the ANN, so it follows their mode, momentum, hooks and parametrisations. Without an example, convert
    tries inputs with the channels of the first layer, square images of usual sizes. If several sizes are accepted, the
    network is for all of them; if none is, or the forward depends on the size, convert asks for an example. The graph
    is of evaluation: what the ANN's own code does only ``if self.training``, such as stochastic depth by hand, is not
    in it, and the spiking network trains without it. Dropout modules and functions are kept.

    The value of a spike is the threshold of its layer. So z is the ANN's pre-activation in the ANN's units, and biases
    and batch-norm statistics remain valid. A count represents activations up to ϑT; give ``data`` from which
    :func:`calibrate` sets ϑ, or call it later.

    Args:
        ann: a network for images or vectors, in any mode; it is not changed. Its layers' modes carry over.
        T: the number of time steps, 1..255; with timing "step" 1..65535. For another T, convert the ANN again, which
            chooses thresholds for it; :func:`tandem_snn.nn.set_T` keeps their ranges ϑT.
        example: a batch of inputs of the ANN, or a tuple of one for each of its arguments, which several need; only the
            size matters, and one sample is enough. With mode "pixels" it may be of pixels, uint8. Where numbers in the
            ANN's forward depend on the size, such as ``F.interpolate(x, size=y.shape[-2:])``, or hidden layers read
            means or maxima of whole images, the spiking network refuses inputs of another size with a ValueError. None:
            the first batch of ``data``, if given.
        data: batches of inputs of the spiking network, or tuples that begin with one, such as a DataLoader gives:
            thresholds are calibrated on all of them. None: thresholds are not calibrated, with a warning if they are
            not given either.
        mode: the encoding of the input, as in ``tnn.Encoder``. "events": the spiking network takes a SpikeTrain; its
            ``gain * counts`` are the input of the ANN.
        threshold: ϑ of every layer without a ceiling, until it is calibrated. None: with timing "window" that of
            ``tnn.default_threshold``, for activations of unit variance; with "step" 4/T, for activations up to 4.
        v_init: the initial membrane potential, in units of ϑ. 0.5 rounds ρ(z)/ϑ to the nearest count, 0 rounds down.
        timing: "window" or "step", for all neurons. With "window" they integrate the whole window before they fire, so
            that the only error is the rounding to T levels, and ``tnn.MaxPool2d`` pools images. With "step" they fire
            as soon as they can, and sometimes too early; maximum pooling, exact by
            :class:`tandem_snn.nn.maximum.MaxPool`, then can be neither streamed nor exported.

    Returns:
        A ``torch.fx.GraphModule`` with the inputs and outputs of the ANN. Its submodules have the names of the ANN's
        synapses.

    Raises:
        CannotConvert: ``torch.export`` cannot trace the ANN, an example is needed, a node has no spiking counterpart,
            or nothing would spike. It is a ValueError; its message names the node, its module and its line, and says
            what to use instead.
        TypeError: ann is not a module or is a TorchScript module, T is not an int, threshold or v_init is not a number,
            example is not a batch, or data are not batches.
        ValueError: T, mode, threshold or v_init is out of range, the ANN does not accept the example, or ``data`` has
            no sample.

    >>> ann = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> snn = convert(ann, T=8, data=[torch.rand(100, 6)])
    >>> snn(torch.rand(2, 6)).shape, snn.get_submodule("0").weight is ann[0].weight
    (torch.Size([2, 3]), True)
    """
    ann = check_network("ann", ann)
    if isinstance(ann, torch.jit.ScriptModule):
        raise TypeError("ann: TorchScript has no Python to export: give the module that was traced or scripted")
    encoder = tnn.Encoder(T, mode)
    first = threshold
    if first is None:  # steps of step timing may be as fine as T allows: here spikes cost no training
        first = 4 / T if timing == "step" else tnn.default_threshold(T, timing)
    checks.number("threshold", first, "a number", "a positive number", math.ulp(0.0))
    checks.number("v_init", v_init, "a number", "a finite number", -sys.float_info.max)
    checks.one_of("timing", timing, checks.TIMINGS)
    checks.T("T", T, timing)
    for name, module in ann.named_modules():
        if isinstance(module, SPIKING):
            raise CannotConvert(f"module {name!r}: it is spiking already; to_ann gives the ANN of a spiking network")
        if isinstance(module, tnn.Attention):
            instead = "build the network of tandem_snn.nn, which loads the state dict of the ANN"
            raise CannotConvert(f"module {name!r}: attention is not converted: {instead}")
        if ".quantized" in type(module).__module__:
            kind = f"module {name!r}, {type(module).__name__}, is quantized"
            raise CannotConvert(f"{kind}: convert the ANN of floating point, and freeze(snn, weight_bits=8)")
    batches = iter(()) if data is None else batches_of(data, len(inputs_of(ann)))
    begin = [*islice(batches, 1)]
    if data is not None and not begin:
        raise ValueError("data: expected at least one sample, got none")
    given = example if isinstance(example, tuple) or example is None else (example,)
    given = begin[0] if given is None and begin else given
    if given is not None and mode == "pixels":  # for which the ANN takes real numbers
        given = tuple(x / 255 if isinstance(x, torch.Tensor) and x.dtype == torch.uint8 else x for x in given)
    snn = Conversion(
        exported(ann, given, "data" if example is None else "example"), encoder, first, v_init, timing
    ).run(type(ann).__name__)
    if given is not None:
        snn.meta["shapes"] = tuple(tuple(x.shape[1:]) for x in given)  # for FrozenNetwork
    if data is not None:
        calibrate(snn, chain(begin, batches))
    elif threshold is None:
        warnings.warn(
            f"convert: thresholds are not calibrated: each is {first:.3g}, for activations up to {first * T:.3g}. Give "
            "batches of inputs, convert(ann, T, data=batches), or call calibrate",
            stacklevel=2,
        )
    return snn
