"""Batches of spike trains and direct inputs: :func:`cat`, which torch's DataLoader also uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from .signal import Signal

S = TypeVar("S", bound=Signal)


def cat(signals: Sequence[S], dim: int = 0) -> S:
    """Concatenate spike trains, or direct inputs, along the batch or another dimension.

    Args:
        signals: at least one :class:`SpikeTrain`, :class:`ConstantInput` or :class:`ImpulseInput`. All have the same
            class, T and gain. Trains joined along the channels may each have their own gain [C].
        dim: the dimension of [B, *features], by default the batch.

    Returns:
        A signal of the same class. Gradients flow to all signals.

    Raises:
        TypeError: not a list or tuple of signals, or signals of different classes.
        ValueError: an empty sequence, different T or gain, shapes that do not fit, dim out of range.

    >>> train = te.SpikeTrain.from_dense(torch.ones(8, 2, 3))
    >>> te.cat([train, train[0]])
    SpikeTrain(T=8, shape=[3, 3], gain=1.0, device=cpu)
    """
    if not isinstance(signals, (list, tuple)) or not all(isinstance(s, Signal) for s in signals):
        found = [type(s).__name__ for s in signals] if isinstance(signals, (list, tuple)) else type(signals).__name__
        raise TypeError(f"signals: expected a sequence of SpikeTrain, ConstantInput or ImpulseInput, got {found}")
    if not signals:
        raise ValueError("signals: expected at least one, got an empty sequence")
    first = signals[0]
    dims = len(first.shape)
    if not -dims <= dim < dims:
        raise ValueError(f"dim: expected a dimension of {list(first.shape)}, got {dim}")
    dim %= dims
    for other in signals[1:]:
        if type(other) is not type(first):
            raise TypeError(f"signals: expected one kind, got {type(first).__name__} and {type(other).__name__}")
        if other.T != first.T:
            raise ValueError(f"signals: expected the same T, got {first.T} and {other.T}")
        outside, others = ([*s.shape[:dim], *s.shape[dim + 1 :]] for s in (first, other))
        if len(other.shape) != dims or outside != others:
            raise ValueError(f"signals: {list(first.shape)} and {list(other.shape)} differ outside dimension {dim}")
        gains: list[Any] = [first.gain, other.gain]
        tensors = [isinstance(gain, Tensor) for gain in gains]
        # Comparing the values of tensors would synchronise, and one of two gradients would be lost.
        same = gains[0] is gains[1] if any(tensors) else gains[0] == gains[1]
        if not same and not (dim == 1 and all(tensors) and all(gain.dim() for gain in gains)):
            raise ValueError(f"signals: expected the same gain in all signals, got gain {first.gain} and {other.gain}")
    return first.concatenate(signals, dim)


default_collate_fn_map[Signal] = lambda batch, **_: cat(batch)  # torch's registry of types for DataLoaders
