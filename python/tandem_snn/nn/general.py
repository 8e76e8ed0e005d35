"""The general way: neurons driven by any linear operators of torch, where there is no fused layer.

Such operators map spike trains to :class:`Currents`: the input currents I[t] of each step, which make the neurons
spike, and their sum z, the ANN branch, through which gradients flow. The functions of this module take trains, currents
and tensors. With tensors only, they compute what the ANN computes.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

import tandem_ext as te
from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, checks
from tandem_ext._torch import BatchNorm, pytree
from tandem_ext.functional.layer import Input
from tandem_ext.functional.neuron import over_space
from tandem_ext.functional.settings import NeuronSettings, declared
from tandem_ext.train import add_flags

from .batch_norm import normalised
from .currents import AT_ONCE, fire_steps, scan_trace, spikes_of, window_trace
from .options import Gain, HasNeurons
from .signals import describe, effective_counts

Steps = Callable[[int, int], Tensor]
SEVERAL = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split")  # return a tuple, even of one tensor


class Currents:
    """Input currents of neurons, computed on demand so that memory does not grow with T.

    Args:
        total: [B, *features], the sum over the window: the value of the ANN at the real counts, with its gradient.
        steps: (start, stop) -> the currents of these steps, [stop - start, B, *features], without a gradient; start is
            a multiple of 8.
        T: the number of time steps.
        constant: whether every step has the same currents; ``steps`` then returns one step for any range.

    >>> currents = torch.rand(8, 2, 3)
    >>> u = Currents(currents.sum(0), lambda start, stop: currents[start:stop], T=8)
    >>> Neurons()(u).shape
    torch.Size([2, 3])
    """

    def __init__(self, total: Tensor, steps: Steps, T: int, constant: bool = False) -> None:
        self.total, self.steps, self.T, self.constant = total, steps, T, constant

    @property
    def shape(self) -> torch.Size:
        """[B, *features]."""
        return self.total.shape


def currents_of(x: Input | Currents) -> Currents:
    """Return the spikes or values of a signal, times its gain, as currents.

    >>> currents_of(te.SpikeTrain.from_dense(torch.ones(4, 1, 2), gain=0.5)).total
    tensor([[2., 2.]])
    """
    if isinstance(x, Currents):
        return x
    total = effective_counts(x)
    gain = over_space(x.gain.detach() if isinstance(x.gain, Tensor) else x.gain, x.shape)
    if isinstance(x, SpikeTrain):
        planes, dtype = x.planes, total.dtype
        return Currents(total, lambda start, stop: spikes_of(planes, start, stop, dtype) * gain, x.T)
    first = (x.x.detach() * gain).unsqueeze(0)
    if isinstance(x, ConstantInput):
        return Currents(total, lambda start, stop: first, x.T, constant=True)

    def impulse(start: int, stop: int) -> Tensor:
        later = torch.zeros_like(first).expand(stop - start - (start == 0), *first.shape[1:])
        return torch.cat([first, later]) if start == 0 else later

    return Currents(total, impulse, x.T)


def total(x: Any) -> Tensor:
    """Return the value of the ANN for x, [B, *features]; a tensor is returned unchanged.

    >>> total(te.ConstantInput(torch.tensor([[0.25]]), T=8))
    tensor([[2.]])
    """
    return x.total if isinstance(x, Currents) else effective_counts(x)


def linear_map(f: str | nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Apply a linear operator f to trains and currents; if it adds a constant f(0), each step receives f(0)/T.

    Args:
        f: the name of an operator of ``torch.ops.aten``, or a module.
        args, kwargs: the arguments of f, with trains, direct inputs or currents in place of tensors, also in lists.
            A constant tensor with a value for each sample is wrapped in :class:`PerSample`.

    Returns:
        Currents, or a tuple of Currents if f returns several tensors. If all arguments are tensors, the result of f.

    Raises:
        ValueError: the arguments have different T.

    >>> pooled = linear_map("avg_pool2d", te.SpikeTrain.from_dense(torch.ones(4, 1, 2, 4, 4)), [2, 2])
    >>> pooled.shape, pooled.total.unique()
    (torch.Size([1, 2, 2, 2]), tensor([4.]))
    >>> layer, train = torch.nn.Conv1d(2, 3, 2), te.SpikeTrain.from_dense(torch.ones(4, 1, 2, 5))
    >>> u = linear_map(layer, train)
    >>> torch.allclose(u.total, layer(train.counts)), torch.allclose(u.steps(0, 4).sum(0), u.total)
    (True, True)
    """
    function: Any = getattr(torch.ops.aten, f) if isinstance(f, str) else f
    signals, call = _signals_of(args, kwargs)
    if not signals:
        return call(function, [])
    inputs = [currents_of(x) for x in signals]
    windows = {x.T for x in inputs}
    if len(windows) != 1:
        raise ValueError(f"T: the trains of a sum have different numbers of steps, {sorted(windows)}")
    (T,) = windows
    z = call(function, [x.total for x in inputs])
    unhooked: Any = function.forward if isinstance(function, nn.Module) else function  # hooks see the ANN branch only
    samples = None if any(isinstance(leaf, PerSample) for leaf in pytree.tree_leaves((args, kwargs))) else 1
    at_zero: list[Any] = []  # f(0), computed on first use; of one sample if it is the same for each

    def result(index: int | None) -> Currents:
        def pick(value: Any) -> Tensor:
            return value if index is None else value[index]

        def steps(start: int, stop: int) -> Tensor:
            parts = [x.steps(start, stop) for x in inputs]
            n = max(len(value) for value in parts)
            rows = [value.expand(n, *value.shape[1:]).flatten(0, 1) for value in parts]
            if not at_zero:
                at_zero.append(call(unhooked, [torch.zeros_like(x.total[:samples]) for x in inputs]))
            return pick(call(unhooked, rows, n)).unflatten(0, (n, -1)) - pick(at_zero[0]) * (1 - 1 / T)

        return Currents(pick(z), steps, T, all(x.constant for x in inputs))

    return result(None) if isinstance(z, Tensor) else tuple(result(i) for i in range(len(z)))


class PerSample:
    """A constant argument of an operator with a value for each sample, [B, ...], which is the same at every step.

    >>> train = te.SpikeTrain.from_dense(torch.ones(4, 2, 1))
    >>> linear_map("mul", train, PerSample(torch.tensor([[0.5], [3.0]]))).steps(0, 1).flatten()
    tensor([0.5000, 3.0000])
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value


def _signals_of(args: Any, kwargs: Any) -> tuple[list[Any], Callable[..., Any]]:
    """Return the signals among these arguments, and a function that calls another one with tensors in their places.

    If these tensors hold several steps, one after the other, the function needs the number of steps.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=_is_signal)
    places = [i for i, leaf in enumerate(leaves) if _is_signal(leaf)]

    def call(function: Any, values: list[Tensor], steps: int = 1) -> Any:
        arguments = [torch.cat([x.value] * steps) if isinstance(x, PerSample) else x for x in leaves]
        for i, value in zip(places, values, strict=True):
            arguments[i] = value
        a, k = pytree.tree_unflatten(arguments, spec)
        return function(*a, **k)

    return [leaves[i] for i in places], call


def rearranged(f: str, by_channel: bool, *args: Any, **kwargs: Any) -> Any:
    """Apply an operator f that only moves, repeats or drops features: a view, permutation, slice or concatenation.

    Unlike :func:`linear_map`, it returns trains if all arguments are trains with the same T.

    Args:
        f: the name of an operator of ``torch.ops.aten``.
        by_channel: whether all spikes of a channel of the result have the same gain. If the gains of the trains differ,
            the result has a gain per channel if True, else one per feature.
        args, kwargs: the arguments of f.

    >>> a, b = (te.SpikeTrain.from_dense(torch.ones(4, 1, 2), gain=g) for g in (0.5, 2.0))
    >>> rearranged("cat", True, [a, b], 1).gain
    tensor([0.5000, 0.5000, 2.0000, 2.0000])
    """
    trains, call = _signals_of(args, kwargs)
    if not trains or not all(isinstance(x, SpikeTrain) and x.T == trains[0].T for x in trains):
        return linear_map(f, *args, **kwargs)
    function: Any = getattr(torch.ops.aten, f)

    def apply(tensor_of: Callable[[SpikeTrain], Tensor]) -> list[Tensor]:
        result = call(function, [tensor_of(x) for x in trains])
        return [result] if isinstance(result, Tensor) else list(result)

    first = trains[0]
    timing = "window" if all(x.timing == "window" for x in trains) else "step"
    P = 1 if timing == "window" else (first.T + 7) // 8
    stored = apply(lambda x: x.stored_as(timing).flatten(0, 1))
    stored = [part.unflatten(0, (P, -1)) for part in stored]
    edges = any(x.edge is not None for x in trains)
    counts = apply(lambda x: x.counts) if edges else [None] * len(stored)
    bad = reduce(add_flags, [x.bad for x in trains])
    gains: list[Any] = [first.gain] * len(stored)
    if len({x.gain for x in trains}) > 1 or (isinstance(first.gain, Tensor) and first.gain.dim()):
        dtype = next((x.gain.dtype for x in trains if isinstance(x.gain, Tensor)), torch.get_default_dtype())
        gains = apply(
            lambda x: over_space(torch.as_tensor(x.gain, dtype=dtype, device=x.device), x.shape).expand(1, *x.shape[1:])
        )
        # the largest, because padding has gain 0
        gains = [g[0].flatten(1).amax(1) if by_channel and g.dim() > 2 else g[0] for g in gains]
    results = tuple(
        SpikeTrain.unchecked(s, first.T, c, g, first._dtype, timing, bad)
        for s, c, g in zip(stored, counts, gains, strict=True)
    )
    return results[0] if len(results) == 1 and f not in SEVERAL else results


def normalise(x: Any, norm: BatchNorm) -> Any:
    """Apply batch norm to currents, with the same statistics for the currents and the ANN branch, as fused layers do.

    In training these are the statistics of z over the batch, which also update the running statistics; in evaluation
    they are the running statistics.

    >>> norm = torch.nn.BatchNorm1d(2)
    >>> x = te.SpikeTrain.from_dense((torch.rand(4, 8, 2) < 0.5).float())
    >>> torch.equal(normalise(x, norm).total, norm(x.counts))
    True
    """
    if isinstance(x, Tensor):
        return norm(x)
    u = currents_of(x)
    z, scale, shift = normalised(norm, u.total)
    scale, shift = (over_space(value, u.shape) for value in (scale, shift / u.T))
    return Currents(z, lambda start, stop: torch.addcmul(shift, u.steps(start, stop), scale), u.T, u.constant)


def dropped(x: Any, dropout: nn.Module) -> Any:
    """Apply dropout to currents, with one mask for the whole window.

    >>> dropped(te.SpikeTrain.from_dense(torch.ones(8, 2, 3)), torch.nn.Dropout(0.5)).total.shape
    torch.Size([2, 3])
    """
    if isinstance(x, Tensor):
        return dropout(x)
    u = currents_of(x)
    return linear_map("mul", u, PerSample(dropout(torch.ones_like(u.total)))) if dropout.training else u


_OTHERS = {name: s.default for name, s in declared(NeuronSettings).items() if name not in ("threshold", "v_init")}


class Neurons(HasNeurons):
    """A layer of IF or LIF neurons driven by trains or :class:`Currents`: the general way, for any linear operators.

    Args:
        threshold, v_init: threshold and initial membrane potential in units of z: floats, or tensors, 0-dim or one per
            channel. They become float32 buffers.
        offset: a constant current at every step, a float or tensor like threshold.
        gain: the value of a spike; None: ϑ, so that gain times count approximates ρ(z).
        ceiling: c of a ReLU6 or hardtanh(0, c), the largest activation. None: a ReLU.
        sums: names of the operators that feed the neurons, for repr and error messages.
        neuron: other settings of ``tandem_ext.functional.NeuronSettings``. With timing "window" there are as many
            products as in the ANN.

    Shape: train or currents [B, *features] -> SpikeTrain of the same shape.

    Raises:
        TypeError, ValueError: a setting is out of range; or, when called, x is a plain tensor.

    >>> layer = Neurons(threshold=0.5)
    >>> layer(te.ConstantInput(torch.tensor([[0.25, -1.0]]), T=4)).counts
    tensor([[2., 0.]])
    """

    threshold: Tensor
    v_init: Tensor | None
    offset: Tensor

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        v_init: float | Tensor | None = None,
        *,
        offset: float | Tensor = 0.0,
        gain: Gain = None,
        ceiling: float | None = None,
        sums: str = "",
        **neuron: Any,
    ) -> None:
        super().__init__()
        for name, value in (("threshold", threshold), ("v_init", v_init), ("offset", offset)):
            buffer = None if value is None else torch.as_tensor(value, dtype=torch.float32).detach().clone()
            self.register_buffer(name, buffer)
        checks.threshold(self.threshold, self.threshold.numel(), self.threshold.device)
        if neuron.keys() - _OTHERS.keys():
            raise TypeError(f"{min(neuron.keys() - _OTHERS.keys())}: no such argument; there are {', '.join(_OTHERS)}")
        self.gain, self.ceiling, self.sums = gain, ceiling, sums
        for name, setting in neuron.items():
            setattr(self, name, setting)
        self.has_offset = bool(self.offset.any())

    def forward(self, x: Input | Currents) -> SpikeTrain:
        if not _is_signal(x):
            raise TypeError(f"x: Neurons takes trains or currents, got {describe(x)}")
        u = currents_of(x)
        with torch.no_grad():
            train = self._fire(u)
        z = u.total
        if self.has_offset:
            z = z + u.T * over_space(self.offset, u.shape)
        if self.ceiling is not None:
            z = nn.functional.hardtanh(z, -1.0, self.ceiling)  # no gradient beyond the ceiling
        sums = u.total.detach().flatten(1).sum(1)  # not finite if any current is not; spikes would not show it
        train = train.replace(bad=add_flags(train.bad, (sums - sums).float()))
        train = te.functional.couple(train, z, threshold=self.threshold, gate=self.gate)
        return self.with_gain(train)

    def _fire(self, u: Currents) -> SpikeTrain:
        v = self._before(u)
        offset = over_space(self.offset, u.shape) if self.has_offset else 0.0
        neuron = self.dynamics()
        if self.timing == "window":
            total = ImpulseInput(u.total + u.T * offset, u.T)
            return te.functional.if_scan(total, v_init=v, timing="window", **neuron)  # type: ignore[return-value]
        if u.constant:
            current = ConstantInput(u.steps(0, 1)[0] + offset, u.T)
            return te.functional.if_scan(current, v_init=v, **neuron)  # type: ignore[return-value]
        return fire_steps(lambda start, stop: u.steps(start, stop) + offset, u.T, v, u.total.dtype, **neuron)

    def _before(self, u: Currents) -> Any:
        v = over_space(self.initial_potential, u.shape)
        return v.expand(u.shape) if isinstance(v, Tensor) and v.dim() else v

    @torch.no_grad()
    def potentials(self, x: Input | Currents) -> Tensor:
        """Return membrane potentials, like ``potentials`` of :class:`tandem_snn.nn.SpikingLayer`."""
        u = currents_of(x)
        starts = range(0, 1 if u.constant else u.T, AT_ONCE)
        chunks = [u.steps(start, min(start + AT_ONCE, u.T)) for start in starts]
        currents = torch.cat(chunks) + over_space(self.offset, u.shape)
        currents = currents.expand(u.T, *u.shape) if u.constant else currents
        v_init = self._before(u)
        if self.timing == "window":
            return window_trace(u.T, lambda t: v_init + currents[:t].sum(0), self.threshold)
        return scan_trace(currents, v_init, **self.dynamics())

    def extra_repr(self) -> str:
        shown = [f"the general way: {self.sums}" if self.sums else "the general way"]
        shown += [f"ceiling={self.ceiling}"] * (self.ceiling is not None)
        return ", ".join(shown + self.changed(_OTHERS | {"gain": None}))


def _is_signal(x: Any) -> bool:
    return isinstance(x, (Currents, SpikeTrain, ConstantInput, ImpulseInput))
