"""Encoder: the input layer of a spiking network, which adds the time dimension to data."""

from __future__ import annotations

from torch import Tensor, nn

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, checks

from .signals import describe

MODES = ("direct", "zero_expand", "events")


class Encoder(nn.Module):
    """Present a real-valued input to a spiking network for T time steps.

    Args:
        T: the number of time steps of the whole network, 1..65535.
        mode: "direct": x is the input current of the first layer at every step (its counts are T·x; the product W x is
            computed once). "zero_expand": x is the current of step 0 only (its counts are x). "events": x is a
            SpikeTrain with T steps and is returned unchanged; the spiking network works without this encoder, but its
            ANN twin needs it.
        gain: a factor of a real-valued input: the first layer receives ``gain * x``.

    Shape: [B, *features], floating point -> ConstantInput or ImpulseInput of the same shape.

    Raises:
        TypeError, ValueError: an argument is not allowed; or, when called, x does not fit the mode or T.

    >>> tnn.Encoder(T=8)(torch.rand(2, 1, 28, 28))
    ConstantInput(T=8, shape=[2, 1, 28, 28], gain=1.0, device=cpu)
    """

    def __init__(self, T: int, mode: str = "direct", *, gain: float = 1.0) -> None:
        super().__init__()
        checks.T("T", T)
        checks.gain("gain", gain)
        checks.one_of("mode", mode, MODES)
        self.T = T
        self.mode = mode
        self.gain = gain

    def forward(self, x: Tensor | SpikeTrain) -> ConstantInput | ImpulseInput | SpikeTrain:
        if self.mode == "events":
            return self._events(x)
        if isinstance(x, SpikeTrain):
            raise TypeError(f'x: a SpikeTrain needs an Encoder with mode "events", this one has {self.mode!r}')
        return (ConstantInput if self.mode == "direct" else ImpulseInput)(x, self.T, self.gain)

    def _events(self, x: Tensor | SpikeTrain) -> SpikeTrain:
        if not isinstance(x, SpikeTrain):
            raise TypeError(
                f"x: an Encoder of events takes a SpikeTrain, got {describe(x)}: frames of event counts become one by "
                "SpikeTrain.from_frames, spikes by from_dense"
            )
        if x.T != self.T:
            raise ValueError(f"x: an Encoder of T={self.T} takes a SpikeTrain of as many steps, got T={x.T}")
        return x

    def extra_repr(self) -> str:
        return f"T={self.T}, mode={self.mode!r}" + (f", gain={self.gain}" if self.gain != 1.0 else "")
