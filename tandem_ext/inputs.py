"""Direct inputs: real values that the first layer receives as input currents."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from . import checks
from .signal import Signal, batch_index, dataclass_of, register_pytree

D = TypeVar("D", bound="DirectInput")


@dataclass_of("x", "T", "gain")
class DirectInput(Signal):
    """Base class of :class:`ConstantInput` and :class:`ImpulseInput`."""

    _fields: ClassVar[tuple[str, ...]] = ("x", "T", "gain")
    _tensors: ClassVar[str] = "x is its tensor [B, *features]"
    source: ClassVar[str]  # which op receives it
    x: Tensor
    T: int

    def __init__(self, x: Tensor, T: int, gain: float | Tensor = 1.0) -> None:
        self.x = x
        self.T = T
        self.gain = gain
        hint = ": a dense x.float() is an image, SpikeTrain.from_frames takes counts of events"
        checks.tensor("x", x, "a floating-point tensor", checks.is_float, "[B, *features]", 1, hint)
        checks.T("T", self.T)
        checks.gain("gain", self.gain)

    @property
    def shape(self) -> torch.Size:
        """[B, *features]."""
        return self.x.shape

    @classmethod
    def concatenate(cls: type[D], signals: Sequence[D], dim: int) -> D:
        return signals[0].replace(x=torch.cat([s.x for s in signals], dim))

    def __getitem__(self: D, index: Any) -> D:
        """Select samples of the batch by an int, a slice or a 1-d list, array or tensor; the batch dimension stays."""
        return self.replace(x=self.x[batch_index(index, len(self))])


class ConstantInput(DirectInput):
    """A real-valued input x that is the input current at each of T steps ("direct" encoding). Its counts are T·x.

    A layer computes the product W x once, for any T.

    Args:
        x: floating point [B, *features].
        T: the number of time steps, 1..65535.
        gain: a factor of x, like the value of a spike in :class:`SpikeTrain`: a float or a 0-dim tensor.

    Raises:
        TypeError: x is not a floating-point tensor, T is not an int, gain is neither a number nor a tensor.
        ValueError: x has no batch dimension, T is out of range, gain is not finite or not 0-dim.

    >>> te.ConstantInput(torch.tensor([[0.25]]), T=8).counts
    tensor([[2.]])
    """

    source = "constant"

    @property
    def counts(self) -> Tensor:
        """T·x."""
        return self.x * self.T


class ImpulseInput(DirectInput):
    """A real-valued input x that is the input current of step 0 only ("zero expand" encoding). Its counts are x.

    Arguments and errors are the same as those of :class:`ConstantInput`.

    >>> te.ImpulseInput(torch.tensor([[0.25]]), T=8).counts
    tensor([[0.2500]])
    """

    source = "impulse"

    @property
    def counts(self) -> Tensor:
        """x."""
        return self.x


for _cls in (ConstantInput, ImpulseInput):
    register_pytree(_cls)
