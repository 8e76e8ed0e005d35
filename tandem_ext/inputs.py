"""Direct encodings: a real-valued input that enters the first layer as a current."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from . import checks
from .signal import Signal, batch_index, dataclass_of, register_pytree

D = TypeVar("D", bound="DirectInput")


@dataclass_of("x", "T", "gain")
class DirectInput(Signal):
    """Base of :class:`ConstantInput` and :class:`ImpulseInput`."""

    _tensors: ClassVar[str] = "x is its tensor [B, *features]"
    x: Tensor
    T: int

    def __init__(self, x: Tensor, T: int, gain: float | Tensor = 1.0) -> None:
        self.x = x
        self.T = T
        self.gain = gain
        checks.direct("x", self.x)
        checks.T("T", self.T)
        checks.gain("gain", self.gain)

    @classmethod
    def unchecked(cls: type[D], x: Tensor, T: int, gain: float | Tensor = 1.0) -> D:
        """An input from parts known to be right, without checks."""
        signal = object.__new__(cls)
        signal.x = x
        signal.T = T
        signal.gain = gain
        return signal

    def but(self: D, **parts: Any) -> D:
        own: dict[str, Any] = {"x": self.x, "T": self.T, "gain": self.gain}
        return self.unchecked(**own | parts)

    @property
    def shape(self) -> torch.Size:
        """[B, *features]."""
        return self.x.shape

    @property
    def device(self) -> torch.device:
        return self.x.device

    @classmethod
    def concatenate(cls: type[D], signals: Sequence[D], dim: int) -> D:
        return cls.unchecked(torch.cat([s.x for s in signals], dim), signals[0].T, signals[0].gain)

    def map(self: D, f: Callable[[Tensor], Tensor]) -> D:
        return self.but(x=f(self.x), gain=f(self.gain) if isinstance(self.gain, Tensor) else self.gain)

    def __getitem__(self: D, index: Any) -> D:
        """Samples of the batch, by an int, a slice or a 1-d list, array or tensor. The batch dimension stays."""
        return self.but(x=self.x[batch_index(index, len(self))])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(T={self.T}, shape={list(self.shape)}, gain={self.gain}, device={self.device})"


class ConstantInput(DirectInput):
    """The real-valued x as the current at every one of T steps ("direct" encoding): its count is T·x.

    The product W x is computed once, whatever T.

    Args:
        x: floating point [B, *features].
        T: the number of time steps, 1..65535.
        gain: the worth of x, as in :class:`SpikeTrain`.

    Raises:
        TypeError: x not a floating-point tensor, T not an int, gain neither number nor tensor.
        ValueError: x without a batch dimension, T out of range.

    >>> te.ConstantInput(torch.tensor([[0.25]]), T=8).counts
    tensor([[2.]])
    """

    @property
    def counts(self) -> Tensor:
        """T·x."""
        return self.x * self.T


class ImpulseInput(DirectInput):
    """The real-valued x as the current at step 0, and nothing afterwards ("zero expand" encoding): its count is x.

    Args and errors are those of :class:`ConstantInput`.

    >>> te.ImpulseInput(torch.tensor([[0.25]]), T=8).counts
    tensor([[0.2500]])
    """

    @property
    def counts(self) -> Tensor:
        """x."""
        return self.x


for _cls in (ConstantInput, ImpulseInput):
    register_pytree(_cls, ("x", "T", "gain"))
