"""Layers without neurons: Encoder, Flatten, Dropout; and Residual, whose two paths feed the same neurons."""

import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, checks, signal
from tandem_ext.functional.neuron import over_space

from .currents import Currents, currents_of
from .signals import X, check_input, describe, known_as, map_features, means_of

Mode = Literal["direct", "zero_expand", "events", "pixels"]
LEVELS = 255  # of a pixel above 0
MOST = sys.float_info.max


class Pixels(SpikeTrain):
    """Pixels as counts of 255 steps, numbers to multiply where others are spikes to add."""

    _tensors = "flip, slice and change the images, uint8 tensors, before the encoder"


signal.register_pytree(Pixels, ("T", "_dtype", "timing", "_network_T"))


def pixel_counts(x: Tensor, T: int) -> SpikeTrain:
    """Return pixels as counts of 255 steps, for a network of T steps."""
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.dim() < 2:
        found = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else describe(x)
        raise TypeError(f"x: pixels are uint8 [B, *features], got {found}")
    return SpikeTrain.unchecked(x.unsqueeze(0), LEVELS, None, 1.0, None, "window", None, T)


SIGNALS: dict[str, Any] = {
    "direct": ConstantInput,
    "zero_expand": ImpulseInput,
    "events": SpikeTrain,
    "pixels": pixel_counts,
}
Numbers = float | Sequence[float]


def check_units(mode: str, gain: float, mean: Numbers | None, std: Numbers) -> None:
    """Check what the input of an encoder is multiplied by, and what is subtracted."""
    checks.gain("gain", gain)
    if mode == "events" and gain != 1:
        raise ValueError(f'gain: trains have their own, expected 1 with mode "events", got {gain}')
    for name, value, neutral in (("mean", mean, None), ("std", std, 1.0)):
        if value == neutral:
            continue
        if mode != "pixels":
            raise ValueError(f'{name}: only mode "pixels" has one, got {value} with mode={mode!r}')
        least, allowed = (sys.float_info.min, "a positive number") if name == "std" else (-MOST, "a finite number")
        for each in value if isinstance(value, Sequence) else (value,):
            checks.number(name, each, "a number, or one for each channel", allowed, least)


class Encoder(nn.Module):
    """Present a real-valued input to a spiking network for T time steps.

    Args:
        T: the number of time steps of the whole network, 1..65535, of pixels 1..255.
        mode: "direct": 1/T of x is the input current of the first layer at every step; the product W x is computed
            once. "zero_expand": x is the current of step 0 only. "events": x is a SpikeTrain with T steps and is
            returned unchanged; the spiking network works without this encoder, but its ANN twin needs it. "pixels": x
            is uint8, whose values are counts of 255 steps, and stands for x/255; the first layer, with timing
            "window", is then exact, with the same spikes on every device.
        gain: a factor of real-valued inputs and pixels: over the window the first layer receives ``gain * x``.
        mean, std: of pixels, numbers or one for each channel: the first layer receives ``gain * (x/255 - mean)/std``.

    Shape: [B, *features], floating point -> ConstantInput or ImpulseInput of the same shape. "pixels": uint8
    [B, *features] -> SpikeTrain, whose ``offset`` subtracts the mean, up to the border, as in a normalised image.

    Raises:
        TypeError, ValueError: an argument is not allowed; or, when called, x does not fit the mode or T.

    >>> tnn.Encoder(T=8)(torch.rand(2, 1, 28, 28))
    ConstantInput(T=8, shape=[2, 1, 28, 28], gain=0.125, device=cpu)
    """

    def __init__(
        self, T: int, mode: Mode = "direct", *, gain: float = 1.0, mean: Numbers | None = None, std: Numbers = 1.0
    ) -> None:
        super().__init__()
        checks.one_of("mode", mode, get_args(Mode))
        check_units(mode, gain, mean, std)
        self.mode = mode
        self.T = T
        self.gain = gain
        self.mean, self.std = mean, std

    @property
    def T(self) -> int:
        """The number of time steps; may be set."""
        return self._T

    @T.setter
    def T(self, T: int) -> None:
        checks.T("T", T, "window" if self.mode == "pixels" else "step")
        self._T = T

    @property
    def needs_shape(self) -> bool:
        """Whether the gain or the offset of its trains depends on their shape."""
        return self.mean is not None or isinstance(self.std, Sequence)

    def signal_gain(self, shape: Sequence[int] = ()) -> float | Tensor:
        """The gain of the signal of an input [*features] that is no train."""
        if self.mode != "pixels":
            return self.gain / self.T if self.mode == "direct" else self.gain
        if not isinstance(self.std, Sequence):
            return self.gain / (LEVELS * self.std)
        return self.gain / (LEVELS * _of_channels(self.std, shape))

    def offset(self, shape: Sequence[int]) -> Tensor | None:
        """What is added to counts [*features] of pixels: -255 times the mean, [1, *features]; None without a mean."""
        if self.mean is None:
            return None
        return over_space(-LEVELS * _of_channels(self.mean, shape), (1, *shape)).expand(1, *shape)

    def forward(self, x: Tensor | SpikeTrain) -> ConstantInput | ImpulseInput | SpikeTrain:
        if self.mode != "events":
            if isinstance(x, SpikeTrain):
                raise TypeError(f'x: a SpikeTrain needs an Encoder with mode "events", this one has {self.mode!r}')
            if self.mode == "pixels":
                stored, features = pixel_counts(x, self.T).stored, x.shape[1:]
                given = self.signal_gain(features), self.offset(features)
                gain, offset = (value.to(x.device) if isinstance(value, Tensor) else value for value in given)
                return Pixels.unchecked(stored, LEVELS, None, gain, None, "window", None, self.T, offset)  # type: ignore
            return SIGNALS[self.mode](x, self.T, self.signal_gain())
        if not isinstance(x, SpikeTrain):
            raise TypeError(
                f"x: an Encoder of events takes a SpikeTrain, got {describe(x)}: frames of event counts become one by "
                "SpikeTrain.from_frames, spikes by from_dense"
            )
        if x.T != self.T:
            raise ValueError(f"x: an Encoder of T={self.T} takes a SpikeTrain of as many steps, got T={x.T}")
        return x

    def extra_repr(self) -> str:
        numbers = {"gain": (self.gain, 1.0), "mean": (self.mean, None), "std": (self.std, 1.0)}
        changed = [f", {name}={value}" for name, (value, default) in numbers.items() if value != default]
        return f"T={self.T}, mode={self.mode!r}" + "".join(changed)


def _of_channels(values: Numbers, shape: Sequence[int]) -> Tensor:
    if isinstance(values, Sequence) and 1 != len(values) != shape[0]:
        raise ValueError(f"x: expected {len(values)} channels, each with a mean or std, got shape {list(shape)}")
    return torch.tensor(values, dtype=torch.float64).expand(shape[0])


class Flatten(nn.Flatten):
    """``torch.nn.Flatten`` for trains, direct inputs and counts.

    Features are in C, H, W order for any memory format.

    Args:
        start_dim, end_dim: dimensions of [B, *features]; the batch, dimension 0, cannot be included.

    Raises:
        ValueError: start_dim is 0; or, when called, the dimensions are not features of x.

    >>> tnn.Flatten()(te.ConstantInput(torch.rand(2, 4, 3, 3), T=8))
    ConstantInput(T=8, shape=[2, 36], gain=1.0, device=cpu)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        if start_dim == 0:
            raise ValueError("start_dim: the batch (dimension 0) cannot be flattened into the features")
        super().__init__(start_dim, end_dim)

    def forward(self, x: X) -> X:
        check_input(x, "Flatten")
        dims = len(x.shape)
        if dims == 1:
            return x
        start, end = (d - dims if d >= 0 else d for d in (self.start_dim, self.end_dim))  # stored has one dim more
        if not -dims < start <= end < 0:
            takes = f"Flatten({self.start_dim}, {self.end_dim}) takes features with these dimensions"
            raise ValueError(f"x: {takes}, got shape {list(x.shape)}")
        flat: Any = map_features(x, lambda t: t.flatten(start, end))
        means = means_of(x)
        if isinstance(x, Tensor) and means is None:
            return flat
        gain = x.gain if means is None else means.gain  # type: ignore[union-attr]
        if isinstance(gain, Tensor) and gain.dim() and start == 1 - dims:  # one channel becomes several features
            gain = gain.flatten() if gain.dim() > 1 else gain.repeat_interleave(flat.shape[1] // len(gain))
        if means is None:
            return flat.replace(gain=gain)
        known_as(flat, means.replace(counts=means.counts.flatten(start, end), gain=gain))
        return flat


class Dropout(nn.Dropout):
    """Silence each neuron of each sample for the whole window with probability p, in training mode only.

    The remaining spikes are still 0 or 1; the ``gain`` of the train is multiplied by 1/(1-p). Counts given as a tensor
    are scaled.

    Args:
        p: the probability that a neuron is silenced, 0 to 1.

    Raises:
        ValueError: p is out of range.

    >>> tnn.Dropout(0.2)(te.SpikeTrain.from_dense(torch.ones(8, 2, 3))).gain
    1.25
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, x: X) -> X:
        check_input(x, "Dropout")
        if not self.training or self.p == 0:
            return x
        if isinstance(x, Tensor):
            return super().forward(x)  # type: ignore[return-value]
        if isinstance(x, Currents) or x.offset is not None:
            return currents_of(x).masked(super().forward)
        values = x.stored[0] if isinstance(x, SpikeTrain) else x.x
        keep = torch.empty_like(values, dtype=torch.float32).bernoulli_(1 - self.p).bool()
        kept: Any = map_features(x, lambda t: t * keep)
        if self.p < 1:
            kept = kept.replace(gain=x.gain / (1 - self.p))
        return kept


class Residual(nn.Module):
    """A residual block: the last neurons of the body also receive the currents of the shortcut.

    Their input current is I[t] = I_body[t] + I_shortcut[t], so z is the ANN's pre-activation body(x) + shortcut(x).

    Args:
        body: a layer of this package with neurons (Linear, Conv1d, Conv2d), or a Sequential that ends in one.
        shortcut: None: the spikes of the input, times its gain, are the currents; the input must then be a SpikeTrain
            with the body's output shape. Otherwise a module like ``body``, whose last layer only contributes its
            currents: its setting ``neurons`` becomes False.

    Shape: the input of ``body`` -> SpikeTrain with the body's output shape.

    Raises:
        TypeError: a path does not end in a layer with neurons.
        ValueError: when called, if the last layers of both paths have different timings.

    >>> block = tnn.Residual(tnn.Conv2d(4, 4, 3, padding="same"))
    >>> block(te.SpikeTrain.from_dense(torch.ones(8, 2, 4, 5, 5))).shape
    torch.Size([2, 4, 5, 5])
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        for name, path in ("body", body), ("shortcut", shortcut):
            last: Any = _layers(path)[-1]
            silent = name == "body" and not getattr(last, "neurons", True)
            synapses = hasattr(last, "preactivation") and last.weight is not None  # Neurons has none
            if silent or not (synapses or (path is None and name == "shortcut")):
                expected = "Linear, Conv1d, Conv2d or a Sequential that ends in one"
                nothing = isinstance(last, (nn.Identity, nn.Sequential)) and name == "shortcut"
                hint = " with neurons=False" * silent
                hint += ": leave it out, without a shortcut the input itself is added" * nothing
                raise TypeError(f"{name}: expected {expected}, got {describe(last)}{hint}")
        self.body = body
        self.shortcut = shortcut
        if shortcut is not None:
            end: Any = _layers(shortcut)[-1]
            end.neurons = False

    def forward(self, x: Any) -> Any:
        paths = [path for path in (self.body, self.shortcut) if path is not None]
        timings = [getattr(_layers(path)[-1], "timing", None) for path in paths]
        if len(set(timings)) > 1:
            raise ValueError(f"timing: both paths need the same, got body {timings[0]!r}, shortcut {timings[1]!r}")
        residual = x if self.shortcut is None else _run(self.shortcut, x)
        return _run(self.body, x, residual=residual)


def _layers(path: object) -> list[object]:
    return list(path) if isinstance(path, nn.Sequential) and len(path) else [path]


def _run(path: nn.Module, x: Any, **last: Any) -> Any:
    """Apply the layers of ``path`` to x, with the further arguments ``last`` for the last layer."""
    *layers, end = _layers(path)
    for layer in layers:
        x = layer(x)  # type: ignore[operator]
    return end(x, **last)  # type: ignore[operator]
