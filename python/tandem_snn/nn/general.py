"""Operators of torch on trains and currents, for converted networks: sums, moves, and any linear map.

The functions of this module take trains, currents and tensors. With tensors only, they compute what the ANN computes.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain
from tandem_ext._torch import pytree
from tandem_ext.functional.neuron import over_space
from tandem_ext.signal import Signal, offsets_of
from tandem_ext.train import add_flags

from .currents import Currents, currents_of, in_steps
from .signals import effective_counts

SEVERAL = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split")  # return a tuple, even of one tensor
_ALPHA = 1.7580993408473766  # of SELU: that times its scale, as in nn.AlphaDropout


def add(a: Any, b: Any, alpha: float = 1) -> Any:
    """Return a + alpha * b, of trains and currents or of tensors.

    >>> add(te.SpikeTrain.from_dense(torch.ones(4, 1, 2)), te.SpikeTrain.from_dense(torch.ones(4, 1, 2)), -1).total
    tensor([[0., 0.]])
    """
    if isinstance(a, Tensor):
        return torch.add(a, b, alpha=alpha)
    a, b = currents_of(a), currents_of(b)
    return a + (b if alpha == 1 else b * alpha)


def scaled(x: Any, factor: Any) -> Any:
    """Return x times a number, or a tensor that broadcasts with one sample.

    >>> scaled(te.SpikeTrain.from_dense(torch.ones(4, 1, 2)), 0.5).total
    tensor([[2., 2.]])
    """
    return currents_of(x) * factor


def shifted(x: Any, term: Any) -> Any:
    """Return x plus a number, or a tensor that broadcasts with one sample; each step receives its T-th part.

    >>> shifted(te.SpikeTrain.from_dense(torch.ones(4, 1, 2)), 0.5).total
    tensor([[4.5000, 4.5000]])
    """
    return x + term if isinstance(x, Tensor) else currents_of(x).plus(term)


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
    z = call(function, [x.total for x in inputs])
    unhooked: Any = function.forward if isinstance(function, nn.Module) else function  # hooks see the ANN branch only
    samples = None if any(isinstance(leaf, PerSample) for leaf in pytree.tree_leaves((args, kwargs))) else 1
    at_zero: list[Any] = []  # f(0), computed on first use; of one sample if it is the same for each

    def result(index: int | None) -> Currents:
        def pick(value: Any) -> Tensor:
            return value if index is None else value[index]

        def linear(*parts: Tensor) -> Tensor:
            if not at_zero:
                at_zero.append(call(unhooked, [torch.zeros_like(part[:samples]) for part in parts]))
            return pick(call(unhooked, parts)) - pick(at_zero[0]) * (1 - 1 / T)

        steps, T, constant = in_steps(linear, inputs)
        return Currents(pick(z), steps, T, constant)

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
    """Return the signals among these arguments, and a function that calls another one with tensors in their places."""
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=_is_signal)
    places = [i for i, leaf in enumerate(leaves) if _is_signal(leaf)]

    def call(function: Any, values: Sequence[Tensor]) -> Any:
        arguments = [x.value if isinstance(x, PerSample) else x for x in leaves]
        for i, value in zip(places, values, strict=True):
            arguments[i] = value
        a, k = pytree.tree_unflatten(arguments, spec)
        return function(*a, **k)

    return [leaves[i] for i in places], call


def rearranged(f: str, by_channel: bool, *args: Any, **kwargs: Any) -> Any:
    """Apply an operator f that only moves, repeats or drops features: a view, permutation, slice or concatenation.

    Unlike :func:`linear_map`, it returns trains if all arguments are trains with the same T, or with timing "window".

    Args:
        f: the name of an operator of ``torch.ops.aten``.
        by_channel: whether all spikes of a channel of the result have the same gain. If the gains of the trains differ,
            the result has a gain per channel if True, else one per feature.
        args, kwargs: the arguments of f.

    >>> a, b = (te.SpikeTrain.from_dense(torch.ones(4, 1, 2), gain=g) for g in (0.5, 2.0))
    >>> rearranged("cat", True, [a, b], 1).gain
    tensor([0.5000, 0.5000, 2.0000, 2.0000])
    """
    if any(isinstance(value, Tensor) for value in pytree.tree_leaves(args, _is_signal)):  # of silenced
        args = pytree.tree_map(lambda x: effective_counts(x) if _is_signal(x) else x, args, is_leaf=_is_signal)
    trains, call = _signals_of(args, kwargs)
    timing = "window" if all(x.timing == "window" for x in trains) else "step"
    fit = timing == "window" or len({x.T for x in trains}) == 1
    if not trains or not fit or not all(isinstance(x, SpikeTrain) for x in trains):
        return linear_map(f, *args, **kwargs)
    function: Any = getattr(torch.ops.aten, f)

    def apply(tensors: list[Tensor]) -> list[Tensor]:
        result = call(function, tensors)
        return [result] if isinstance(result, Tensor) else list(result)

    first, T, network_T = trains[0], max(x.T for x in trains), max(x.network_T for x in trains)
    P = 1 if timing == "window" else (first.T + 7) // 8
    stored = apply([x.stored_as(timing).flatten(0, 1) for x in trains])
    stored = [part.unflatten(0, (P, -1)) for part in stored]
    edges = any(x.edge is not None for x in trains)
    counts = apply([x.counts for x in trains]) if edges else [None] * len(stored)
    bad = reduce(add_flags, [x.bad for x in trains])
    gains: list[Any] = [first.gain] * len(stored)
    if len({x.gain for x in trains}) > 1 or (isinstance(first.gain, Tensor) and first.gain.dim()):
        dtype = next((x.gain.dtype for x in trains if isinstance(x.gain, Tensor)), torch.get_default_dtype())
        each = [over_space(torch.as_tensor(x.gain, dtype=dtype, device=x.device), x.shape) for x in trains]
        gains = apply([gain.expand(1, *x.shape[1:]) for gain, x in zip(each, trains, strict=True)])
        # the largest, because padding has gain 0
        gains = [g[0].flatten(1).amax(1) if by_channel and g.dim() > 2 else g[0] for g in gains]
    offsets: list[Any] = offsets_of([x.offset for x in trains], [x.shape[1:] for x in trains])
    offsets = apply(offsets) if offsets else [None] * len(stored)
    results = tuple(
        SpikeTrain.unchecked(s, T, c, g, first._dtype, timing, bad, network_T, o)
        for s, c, g, o in zip(stored, counts, gains, offsets, strict=True)
    )
    return results[0] if len(results) == 1 and f not in SEVERAL else results


def dropped(x: Any, dropout: nn.Module) -> Any:
    """Apply dropout to currents, with one mask for the whole window; in evaluation a train stays a train.

    >>> dropped(te.SpikeTrain.from_dense(torch.ones(8, 2, 3)), torch.nn.Dropout(0.5)).total.shape
    torch.Size([2, 3])
    """
    if isinstance(x, Tensor):
        return dropout(x)
    if not dropout.training:
        return x
    u = currents_of(x)
    if isinstance(dropout, nn.AlphaDropout | nn.FeatureAlphaDropout) and dropout.p > 0:
        shift = dropout(torch.zeros_like(u.total))  # a·α·p where it keeps a·x + a·α·p, else negative
        return u.masked(lambda _: shift.clamp_min(0) / (_ALPHA * dropout.p)).plus(shift)
    return u.masked(dropout)


def silenced(x: Any, dropout: nn.Module) -> Any:
    """Apply dropout to what the spikes behind the last neurons are worth; in evaluation they stay a train.

    >>> silenced(te.SpikeTrain.from_dense(torch.ones(8, 2, 3)), torch.nn.AlphaDropout(0.5)).shape
    torch.Size([2, 3])
    """
    return dropout(effective_counts(x)) if dropout.training else x


def of_size(x: Any, name: str, shape: Sequence[int]) -> Any:
    """Return the input x of a network that answers samples of one shape; raise ValueError for another.

    >>> of_size(torch.rand(2, 3, 16, 16), "x", (3, 16, 16)).shape
    torch.Size([2, 3, 16, 16])
    """
    if tuple(x.shape[1:]) != tuple(shape):
        why = f"expected samples of shape {list(shape)}, for which the network was made and on which it depends"
        raise ValueError(f"{name}: {why}, got {list(x.shape[1:])}: convert or freeze it again with an example of those")
    return x


def _is_signal(x: Any) -> bool:
    return isinstance(x, Signal)
