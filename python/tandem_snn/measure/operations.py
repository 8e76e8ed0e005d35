"""Synaptic operations of a network, an estimate of their energy, and a penalty on them for training."""

import copy
import math
import operator
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, overload

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.products import Product, convolution

from .. import nn as tnn
from ..frozen import FrozenNetwork
from ..nn.hooks import SYNAPTIC, call_inputs, check_layers, evaluating, only_layers_fire, watching
from ..nn.passing import Pixels
from ..nn.signals import called, describe


@dataclass(frozen=True)
class LayerOps:
    """Operations of one layer per sample.

    Attributes:
        ann_macs: multiply-accumulates of the ANN twin.
        macs: the SNN's multiply-accumulates, of a real-valued input; else 0.
        acs: the SNN's accumulates, one for each spike and each synapse it reaches.
    """

    ann_macs: float
    macs: float
    acs: float


@dataclass(frozen=True)
class SynOps:
    """Operations of a network per sample, by layer and in total.

    Attributes:
        layers: the operations of each layer, by its name.
    """

    layers: dict[str, LayerOps]

    @property
    def ann(self) -> float:
        """MACs of the ANN twin: fan-in times neurons, summed over the layers."""
        return sum(layer.ann_macs for layer in self.layers.values())

    @property
    def snn(self) -> float:
        """Operations of the SNN: one AC per spike and synapse it reaches, and the MACs of a real-valued input, once."""
        return sum(layer.macs + layer.acs for layer in self.layers.values())

    @property
    def ratio(self) -> float:
        """snn / ann, an AC counting as much as a MAC."""
        return self.snn / self.ann


@overload
def synops(net: FrozenNetwork, x: Iterable[Tensor | SpikeTrain]) -> Tensor: ...
@overload
def synops(net: nn.Module, x: Any) -> SynOps: ...
def synops(net: nn.Module, x: Any) -> SynOps | Tensor:
    """Counts a network's synaptic operations on a batch, in evaluation mode; or those of each frame of a video.

        ANN = Σ_l fan-in_l · neurons_l  (MACs)        SNN = Σ_t Σ_l Σ_j fan-out_j · s_j[t]  (ACs)

    The fan-out of a spike is the number of synapses it reaches: exact at borders, strides, dilations and groups. The
    fan-in counts the products that an ANN computes, padding included, as is usual in publications. A layer with
    real-valued input (direct encoding, mean counts) costs the ANN's MACs once, whatever T, and so do currents, with
    step timing at each step. Average pooling is a layer with k² synapses per neuron; the identity of a residual block
    is one synapse per neuron. Pooling to counts, and sums and moves of currents, have no synapses. In attention each
    spike of q and k adds a row of numbers, as many as its head has values; in a stream whenever it is computed again.

    A frozen network with window timing sees frames one after the other, from silence, and settles in each: an operation
    for each move of a neuron and each synapse it reaches, and the MACs of a layer with real-valued input for each
    sample whose input changed. Its stream is left as it is.

    Args:
        net: a network of layers of ``tandem_snn.nn``; or a frozen network.
        x: a batch of inputs of ``net``; for a frozen network several, as for ``frozen.settle``.

    Returns:
        SynOps; for a frozen network int64 [frames, B].

    Raises:
        ValueError: the batch is empty, or there are no frames; the network has no such layers, or layers whose
            synapses cannot be counted, such as your own.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    >>> synops(net, torch.rand(5, 4)).layers["1"]
    LayerOps(ann_macs=12.0, macs=12.0, acs=0.0)
    >>> frozen = tandem_snn.freeze(torch.nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3, timing="window"), net[2]))
    >>> synops(frozen, torch.ones(2, 5, 4))[1]  # the same frame again
    tensor([0, 0, 0, 0, 0])
    """
    if isinstance(net, FrozenNetwork) and any(getattr(layer, "timing", None) == "window" for layer in net.modules()):
        return _of_frames(net, x)
    layers: dict[str, LayerOps] = {}

    def record(name: str, layer: nn.Module, x: Any, kwargs: dict[str, Any], output: Any) -> None:
        if (spent := _spent(layer, x, kwargs.get("residual"), output)) is not None:
            before = astuple(layers[name]) if name in layers else (0.0, 0.0, 0.0)  # a layer can be used more than once
            layers[name] = LayerOps(*map(operator.add, before, (*spent[:2], spent[2].item())))

    check_layers(net, SYNAPTIC, x)
    with evaluating(net), only_layers_fire(net), watching(net, SYNAPTIC, record):
        called(net, x)
    return SynOps(layers)


def _of_frames(frozen: FrozenNetwork, frames: Iterable[Tensor | SpikeTrain]) -> Tensor:
    apart = copy.copy(frozen)
    apart.reset()
    found = []
    for frame in frames:
        apart.settle(frame)
        assert apart._stream is not None
        found.append(apart._stream.facts[2])
    if not found:
        raise ValueError("x: expected at least one frame")
    return torch.stack(found)


def _spent(layer: Any, x: Any, residual: Any, output: Any) -> tuple[float, float, Tensor] | None:
    """Per sample: the ANN's MACs, the SNN's MACs of real values, and its ACs, differentiable; None without synapses."""
    pool = isinstance(layer, tnn.AvgPool2d)
    if isinstance(layer, tnn.Neurons) or (pool and not isinstance(output, SpikeTrain)):
        return None
    outputs = output.shape[1:]
    if isinstance(layer, tnn.Attention):  # a spike of q or k adds a row of the values of its head
        row = outputs[1] // layer.heads
        return 2.0 * outputs.numel() * row, 0.0, x.counts[..., : -outputs[1]].sum(dtype=torch.float64) * (row / len(x))
    fan_in = math.prod(layer.kernel_size) if pool else layer.weight[0].numel()
    transposed = isinstance(layer, tnn.ConvTranspose1d | tnn.ConvTranspose2d)  # each input reaches fan_in outputs
    ann = macs = float(fan_in * (x.shape[1:] if transposed else outputs).numel())
    if isinstance(x, tnn.Currents) and getattr(layer, "timing", "window") == "step" and not x.constant:
        macs *= x.T
    acs = torch.zeros((), dtype=torch.float64)
    if isinstance(x, SpikeTrain) and not isinstance(x, Pixels):  # whose levels are multiplied, as real numbers are
        counts = layer.arranged(x.counts) if isinstance(layer, tnn.SpikingLayer) else x.counts
        macs, acs = 0.0, _acs(layer, counts, outputs)
    if isinstance(residual, SpikeTrain):
        ann, acs = ann + outputs.numel(), acs + residual.counts.sum(dtype=torch.float64) / len(residual)
    return ann, macs, acs


def _acs(layer: Any, spikes: Tensor, outputs: torch.Size) -> Tensor:
    """The number of synapses, per sample, that ``spikes`` [B, *features], numbers of spikes, reach."""
    if spikes.dim() == 2 or isinstance(layer, tnn.Linear | tnn.Readout):
        return spikes.sum(dtype=torch.float64) * (outputs[-1] / len(spikes))
    # A sum over samples as a matrix product: exact, since these are integers, and faster than torch's sum.
    innermost = spikes.movedim(1, -1).float()
    total = (innermost.new_ones(len(spikes)) @ innermost.flatten(1)).double().view(innermost.shape[1:])  # [*space, C]
    groups = total.shape[-1] if isinstance(layer, tnn.AvgPool2d) else layer.groups
    reached = fan_out(layer, total.shape[:-1]).to(total.device) * (outputs[0] // groups / len(spikes))
    return (total.sum(-1) * reached).sum()


def fan_out(layer: Any, space: torch.Size) -> Tensor:
    """How many output positions each input position reaches in a convolution or pooling layer: float64 [*space].

    It is the gradient of the sum over the convolution of ones with a kernel of ones.

    >>> fan_out(tnn.Conv1d(1, 1, 3, padding=1), torch.Size([4]))
    tensor([2., 3., 3., 2.], dtype=torch.float64)
    """
    if hasattr(layer, "synapses"):
        product = layer.synapses(len(space))._replace(groups=1)
    else:
        product = convolution(layer.kernel_size, layer.stride, layer.padding, layer.dilation, 1)
    return _fan_out(space, layer.kernel_size, product).clone()


@lru_cache(256)  # a penalty calls this at every training step
def _fan_out(space: torch.Size, kernel: tuple[int, ...], product: Product) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        ones = torch.ones(1, 1, *space, dtype=torch.float64, requires_grad=True)
        reached = product.direct(ones, torch.ones(1, 1, *kernel, dtype=torch.float64)).sum()
        (gradient,) = torch.autograd.grad(reached, ones)
    return gradient[0, 0]


MAC_PJ = 4.6  # a 32-bit floating-point multiplication, 3.7 pJ, and addition, 0.9 pJ
AC_PJ = 0.9  # a 32-bit floating-point addition


@dataclass(frozen=True)
class Energy:
    """Picojoules per sample.

    Attributes:
        snn: of the network.
        ann: of its ANN twin.
    """

    snn: float
    ann: float

    @property
    def ratio(self) -> float:
        """snn / ann."""
        return self.snn / self.ann


def energy(ops: SynOps, *, mac: float = MAC_PJ, ac: float = AC_PJ) -> Energy:
    """An estimate of the energy of a network's arithmetic per sample.

        E = mac · MACs + ac · ACs

    The defaults are for 32-bit floating point in a 45 nm process at 0.9 V (M. Horowitz, "Computing's energy problem",
    ISSCC 2014), as usual in the field. They leave out memory accesses, which cost far more than arithmetic on most
    machines, and the updates of neurons. Use them to compare networks, not machines.

    Args:
        ops: the result of :func:`synops`.
        mac, ac: picojoules per multiply-accumulate and per accumulate; for 32-bit integers 3.2 and 0.1.

    Raises:
        TypeError: ops is not SynOps, or mac or ac is not a number.
        ValueError: mac or ac is below 0 or not finite.

    >>> from tandem_snn.measure import LayerOps, SynOps
    >>> energy(SynOps({"fc": LayerOps(ann_macs=10.0, macs=0.0, acs=6.0)}))
    Energy(snn=5.4, ann=46.0)
    """
    if not isinstance(ops, SynOps):
        raise TypeError(f"ops: expected the SynOps of synops(), got {describe(ops)}")
    for name, value in (("mac", mac), ("ac", ac)):
        checks.number(name, value, "picojoules, a float", "picojoules of at least 0", 0)
    return Energy(snn=sum(mac * layer.macs + ac * layer.acs for layer in ops.layers.values()), ann=mac * ops.ann)


class synops_penalty:  # used like a function: penalty = synops_penalty(net)
    """A regulariser on the synaptic operations of a network's last forward pass with gradients.

        penalty = Σ_l Σ_j fan-out_j · c_j  /  Σ_l MACs_l

    per sample: the accumulates for the spike counts c, relative to the multiply-accumulates of the ANN twin. It is
    :func:`synops` without the cost of a real-valued input. A spike costs as much as it reaches synapses. The gradient
    flows through the counts, as that of the loss does.

    Args:
        net: a network of layers of ``tandem_snn.nn``, the only ones that are counted; hooks watch it until
            :meth:`remove`.

    Raises:
        ValueError: the network has no such layers.
        RuntimeError: on a call, no forward pass since the last one.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3, norm=True), tnn.Readout(3, 2))
    >>> penalty = synops_penalty(net)
    >>> loss = net(torch.rand(5, 4)).square().mean() + 0.1 * penalty()
    >>> loss.backward()
    """

    def __init__(self, net: nn.Module) -> None:
        self._spent: list[tuple[float, float, Tensor]] = []  # of each use of a layer
        check_layers(net, SYNAPTIC)
        layers = [m for m in net.modules() if isinstance(m, SYNAPTIC)]
        self._handles = [m.register_forward_hook(self._record, with_kwargs=True) for m in layers]
        self._handles.append(net.register_forward_pre_hook(self._begin))

    def _begin(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self._spent.clear()

    def _record(self, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        x, further = call_inputs(args, kwargs)
        if torch.is_grad_enabled() and (spent := _spent(layer, x, further.get("residual"), output)) is not None:
            self._spent.append(spent)

    def __call__(self) -> Tensor:
        """The penalty of the last forward pass, a 0-dim tensor; once per pass."""
        if not self._spent:
            raise RuntimeError("synops_penalty: run the network forward first; each pass gives one penalty")
        macs, _, acs = zip(*self._spent, strict=True)
        self._spent.clear()
        return sum(acs, torch.zeros((), dtype=torch.float64)) / sum(macs)

    def remove(self) -> None:
        """Stops watching the network."""
        for handle in self._handles:
            handle.remove()
