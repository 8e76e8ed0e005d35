"""What layers do to their inputs, whatever the kind: a train, a direct input, or a tensor of counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain
from tandem_ext.functional.neuron import over_space

Signal = SpikeTrain | ConstantInput | ImpulseInput
X = TypeVar("X", bound=Signal | Tensor)
S = TypeVar("S", bound=Signal)


def check_signal(x: object, layer: str) -> None:
    """A layer of spiking neurons needs to know when its input comes: a bare tensor will not do."""
    if not isinstance(x, SpikeTrain | ConstantInput | ImpulseInput):
        raise TypeError(
            f"x: {layer} takes a SpikeTrain, ConstantInput or ImpulseInput, got {describe(x)}: put tnn.Encoder(T) "
            "before the first layer; only a Readout takes mean counts"
        )


def check_input(x: object, layer: str) -> None:
    """A layer without neurons takes counts as well."""
    if not isinstance(x, SpikeTrain | ConstantInput | ImpulseInput | Tensor):
        raise TypeError(f"x: {layer} takes a SpikeTrain, ConstantInput, ImpulseInput or counts, got {describe(x)}")


def check_network(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {describe(value)}")


def describe(x: object) -> str:
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def effective_counts(x: Signal | Tensor) -> Tensor:
    """What the ANN branch sees, [B, *features]: the counts times what a spike is worth. A tensor is that already."""
    if isinstance(x, Tensor):
        return x
    return x.counts if isinstance(x.gain, float) and x.gain == 1.0 else x.counts * over_features(x.gain, x.shape)


def over_features(gain: float | Tensor, shape: tuple[int, ...]) -> float | Tensor:
    """A gain so that it broadcasts against [B, *features]: one per channel [C], or of another shape as it is."""
    return over_space(gain, shape) if isinstance(gain, Tensor) and gain.dim() == 1 else gain


def map_features(x: X, f: Callable[[Tensor], Tensor]) -> X:
    """x with ``f`` applied to its planes, counts or values, of whose dimensions only the last ones, the features, are
    the same in all; not to its gain.
    """
    if isinstance(x, Tensor):
        return f(x)  # type: ignore[return-value]
    return with_gain(with_gain(x, 1.0).map(f), x.gain)  # type: ignore[return-value]


def with_gain(x: S, gain: float | Tensor) -> S:
    """The same signal, worth something else."""
    if isinstance(x, SpikeTrain):
        return SpikeTrain.unchecked(x.stored, x.T, x._counts, gain, x._dtype, x.timing)  # type: ignore[return-value]
    return x.unchecked(x.x, x.T, gain)  # type: ignore[return-value]
