"""SpikeTrain: the spikes of a batch of neurons over T time steps, stored as bits or, for bursts, as counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import checks, events
from .ops import counts_dtype
from .planes import counts_of, pack, unpack
from .signal import _INSTEAD, Signal, batch_index, dataclass_of, needs_grad, offsets_of, register_pytree


def with_flags(values: Tensor, bad: Tensor | None) -> Tensor:
    """Add the NaN flags ``bad`` [B] to values [B, ...]: a sum, so that a NaN loss also has NaN gradients."""
    if bad is None:
        return values
    if bad.dtype != values.dtype:
        bad = bad.to(values.dtype)
    return values + (bad.unsqueeze(1) if values.dim() == 2 else bad.view(-1, *[1] * (values.dim() - 1)))


def add_flags(bad: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Combine two NaN flags: the result is NaN where one of them is."""
    return other if bad is None else bad if other is None else bad + other


def is_clean(bad: Tensor) -> bool:
    """Return whether no flag is set, as far as Python sees values without waiting."""
    return bad.is_cpu and checks.readable(bad) and not any(bad.tolist())


@dataclass_of("counts", "planes", "T", "gain", "timing", "bad", "network_T", "offset")
class SpikeTrain(Signal):
    """The spikes s[t] ∈ {0, 1} of a batch of neurons at steps t = 0 .. T-1.

    With timing "step" a neuron may spike at any step; eight steps of a neuron take one byte. With
    timing "window" a neuron fires a burst: it spikes in the first steps and then stops. Its spike count takes one byte
    for any T; planes are made on demand.

    Args:
        planes: uint8 [ceil(T/8), B, *features]. Bit t % 8 of plane t // 8 is the spike at step t; unused high bits
            are 0. Any strides are allowed; the planes that layers return are channels-last in memory.
        T: the number of time steps, 1..65535, or 1..255 with timing "window". (It is not a transpose.)
        counts: floating point [B, *features], the spike count of each neuron, along which gradients flow. It must agree
            with the planes, which is not checked. Default: counted from the planes.
        gain: the value of a spike: the layer that receives the train has the input current ``W (gain * s)``. A float or
            a tensor, 0-dim or one number per channel [C] of features [C, ...], which may require a gradient.
        timing: "step" or "window". :meth:`from_counts` makes a train with timing "window".
        network_T: the number of steps of the network, which layers that read the train have by default, if T is that of
            one layer alone. Default: T.
        bad: floating point [B], NaN flags: NaN for a sample in which some potential was infinite or NaN, else 0.
            Because spikes cannot be NaN, layers pass the flags on, and ``counts``, mean pooling and the readout add
            them. Default: all samples are finite.
        offset: floating point [1, *features], added to the counts before they are multiplied by the gain, as pixels
            have one from which a mean is subtracted. Layers with timing "window" read it: times their weights it is a
            constant of each neuron. Default: 0.

    Attributes:
        stored: the planes, or with timing "window" the counts as bytes, uint8 [1, B, *features].

    Raises:
        TypeError: planes is not uint8, counts or bad is not floating point, T is not an int, or gain is neither a
            number nor a tensor.
        ValueError: T is out of range, shapes or devices do not fit, an unused high bit is set, or planes are not
            bursts with timing "window".

    The values of ``planes`` are checked, except while torch compiles, exports or captures a CUDA graph. SpikeTrain is a
    dataclass and a pytree node: it works with ``torch.compile``, ``torch.export``, ``vmap``, DDP and FSDP like a
    tensor. A DataLoader's default ``collate_fn`` joins trains over the batch (:func:`tandem_ext.cat`), pins and moves
    them. ``numpy.asarray(train)`` returns the spikes as uint8 [T, B, *features], without the gain.

    >>> train = te.SpikeTrain.from_dense(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))  # T = 2, one sample, two neurons
    >>> train
    SpikeTrain(T=2, shape=[1, 2], gain=1.0, device=cpu)
    >>> train.counts
    tensor([[2., 1.]])
    """

    _instead: ClassVar[Mapping[str, str]] = _INSTEAD | {
        "dtype": "spikes are bits; counts.dtype is the type of the counts, and to(dtype) changes it",
        "numpy": "numpy.asarray(train) gives the spikes, uint8 [T, B, *features]",
        "sum": "counts is the sum over time, [B, *features]",
    }
    _fields: ClassVar[tuple[str, ...]] = (
        *("stored", "T", "_counts", "gain", "_dtype", "timing", "bad", "_network_T", "offset"),
    )
    joins_gains: ClassVar[bool] = True
    _tensors: ClassVar[str] = "to_dense() is the spikes [T, B, *features], counts their number [B, *features]"
    stored: Tensor
    timing: checks.Timing = "step"
    bad: Tensor | None = None
    _network_T: int | None = None  # None: T
    _counts: Tensor | None
    # A cache of ``counts``. It is not a field, so that reading counts does not change the train as a pytree.
    _flagged_counts: Tensor | None = None
    _dtype: torch.dtype  # of counts that have not been made yet

    def __init__(
        self,
        planes: Tensor,
        T: int,
        counts: Tensor | None = None,
        gain: float | Tensor = 1.0,
        timing: checks.Timing = "step",
        bad: Tensor | None = None,
        network_T: int | None = None,
        offset: Tensor | None = None,
    ) -> None:
        self.stored, self.T, self.gain, self.bad, self._counts = planes, T, gain, bad, counts
        self.offset = offset
        self._network_T = None if network_T == T else network_T
        self._dtype = getattr(counts, "dtype", torch.get_default_dtype())
        checks.planes("planes", planes, self.T)
        checks.gain("gain", self.gain, planes.shape[2] if planes.dim() > 2 else None)
        if T % 8 and checks.any_wrong(planes, lambda bits: bits[-1] >> T % 8):
            longer = "the planes belong to a longer train, or are not packed"
            raise ValueError(f"planes: a bit is set beyond T={T}: {longer}")
        parts = ("counts", counts, planes.shape[1:]), ("bad", bad, planes.shape[1:2])
        for name, value, shape in (*parts, ("offset", offset, torch.Size([1, *planes.shape[2:]]))):
            if value is not None:
                checks.shaped(name, value, shape, "planes", planes.device)
        checks.one_of("timing", timing, checks.TIMINGS)
        if offset is not None and timing != "window":
            raise ValueError(f"offset: only trains with timing='window' have one, got timing={timing!r}")
        checks.T("network_T", self.network_T)
        if timing == "window":
            checks.T("T", T, timing)
            self.stored, self.timing = self.count_bytes, timing
            if checks.any_wrong(planes, lambda bits: bits != self.planes):
                spikes = "a neuron spikes in the first steps without gaps, got other spikes"
                raise ValueError(f"planes: with timing='window' {spikes}")

    @classmethod
    def unchecked(
        cls,
        stored: Tensor,
        T: int,
        counts: Tensor | None = None,
        gain: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        timing: str = "step",
        bad: Tensor | None = None,
        network_T: int | None = None,
        offset: Tensor | None = None,
    ) -> SpikeTrain:
        """Make a train from valid parts, without checks.

        ``dtype`` is the dtype of counts that are made from ``stored`` later (default: torch's default dtype).
        """
        train = object.__new__(cls)
        train.stored = stored
        train.T = T
        train.timing = timing  # type: ignore[assignment]  # not checked
        train._counts = counts
        train.gain = gain
        train._dtype = dtype or (torch.get_default_dtype() if counts is None else counts.dtype)
        train.bad = bad
        train._network_T = None if network_T == T else network_T
        train.offset = offset
        return train

    @classmethod
    def from_dense(cls, spikes: Tensor, gain: float | Tensor = 1.0) -> SpikeTrain:
        """Make a train from dense spikes.

        Args:
            spikes: 0 and 1, [T, B, *features], of any bool, integer or floating-point dtype, T in 1..65535. If spikes
                requires a gradient, every step receives the gradient of the counts.
            gain: the value of a spike.

        Raises:
            TypeError: spikes is not a real-valued tensor, or gain is neither a number nor a tensor.
            ValueError: T or a shape is not allowed, or a value is neither 0 nor 1.

        >>> te.SpikeTrain.from_dense(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])).planes
        tensor([[[3, 2]]], dtype=torch.uint8)
        """
        checks.over_time("spikes", spikes, "a real tensor", checks.is_real)
        checks.gain("gain", gain, spikes.shape[2] if spikes.dim() > 2 else None)
        checks.binary("spikes", spikes)
        dtype = spikes.dtype if spikes.is_floating_point() else None
        counts = spikes.sum(0, dtype=dtype and counts_dtype(dtype, len(spikes))) if needs_grad(spikes) else None
        return cls.unchecked(pack(spikes), spikes.shape[0], counts, gain, dtype)

    @classmethod
    def from_counts(cls, counts: Tensor, T: int, gain: float | Tensor = 1.0) -> SpikeTrain:
        """Make a train of bursts, with timing "window", from spike counts.

        Args:
            counts: whole numbers from 0 to T, [B, *features], of any integer or floating-point dtype. If counts
                requires a gradient, it receives that of the train's counts.
            T: the number of time steps, 1..255.
            gain: the value of a spike, a float or a 0-dim tensor.

        Raises:
            TypeError: counts is not a real-valued tensor, T is not an int, or gain is neither a number nor a tensor.
            ValueError: T or a shape is not allowed, or a value is not a whole number from 0 to T.

        >>> te.SpikeTrain.from_counts(torch.tensor([[2, 0, 3]]), T=3).to_dense(torch.int)[:, 0]
        tensor([[1, 0, 1],
                [1, 0, 1],
                [0, 0, 1]], dtype=torch.int32)
        """
        checks.T("T", T, "window")
        is_number = lambda c: checks.is_real(c) and c.dtype != torch.bool  # noqa: E731
        checks.tensor("counts", counts, "a tensor of whole numbers", is_number, "[B, *features]", 1)
        checks.whole("counts", counts, f"whole numbers from 0 to T={T}", T)
        checks.gain("gain", gain, counts.shape[1] if counts.dim() > 1 else None)
        edge = counts if needs_grad(counts) else None
        dtype = counts.dtype if counts.is_floating_point() else None
        return cls.unchecked(counts.detach().to(torch.uint8).unsqueeze(0), T, edge, gain, dtype, "window")

    @classmethod
    def from_frames(
        cls,
        frames: Tensor | npt.NDArray[Any],
        *,
        substeps: int = 1,
        batch_first: bool = False,
        gain: float | Tensor = 1.0,
    ) -> SpikeTrain:
        """Make a train from frames of event counts, for example the output of tonic's ``ToFrame``.

        Each frame becomes ``substeps`` time steps. A neuron with n events in a frame spikes at min(n, substeps) of
        these steps, evenly spread.

        Args:
            frames: whole numbers ≥ 0, [F, B, *features], or [B, F, *features] with ``batch_first``, as a DataLoader or
                tonic's ``PadTensors`` stack them; a tensor or NumPy array of any real dtype.
            substeps: steps per frame; the train has T = F·substeps steps, 1..65535.
            gain: the value of a spike.

        Raises:
            TypeError: frames is not a real-valued tensor or array, or substeps is not an int.
            ValueError: T or a shape is not allowed, or a value is negative or not whole.

        >>> frames = torch.tensor([[[0, 1, 2, 3]]])  # one frame of one sample of four neurons
        >>> te.SpikeTrain.from_frames(frames).counts
        tensor([[0., 1., 1., 1.]])
        >>> te.SpikeTrain.from_frames(frames, substeps=2).to_dense(torch.int)[:, 0]
        tensor([[0, 0, 1, 1],
                [0, 1, 1, 1]], dtype=torch.int32)
        """
        checks.positive("substeps", substeps)
        frames = torch.as_tensor(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
        if isinstance(frames, Tensor) and frames.dtype in (torch.uint16, torch.uint32, torch.uint64):
            frames = frames.long()  # few torch operators support these dtypes
        checks.tensor("frames", frames, "a real tensor or array", checks.is_real, "[F, B, *features]", 2)
        checks.whole("frames", frames, "counts of events, whole numbers from 0")
        frames = frames.transpose(0, 1) if batch_first else frames
        wide = torch.int32 if substeps**2 < 2**31 else torch.int64  # the products below cannot overflow
        n = frames.clamp(max=substeps).to(wide).unsqueeze(1)
        step = torch.arange(substeps, dtype=wide, device=n.device).view(-1, *[1] * (n.dim() - 2))
        return cls.from_dense(((step + 1) * n // substeps - step * n // substeps).flatten(0, 1), gain)

    @classmethod
    def from_events(
        cls,
        recording: Any,
        shape: Sequence[int],
        T: int = 8,
        *,
        window: tuple[float, float] | None = None,
        gain: float | Tensor = 1.0,
    ) -> SpikeTrain:
        """Make a train with a batch of one from a recording of address events, binned into T frames of equal length.

        A neuron spikes in a frame if it has at least one event there; further events in the same frame are dropped.
        :func:`tandem_ext.cat` and a DataLoader join recordings to a batch.

        Args:
            recording: a structured array or a mapping with the fields ``t``, ``x`` and, depending on ``shape``, ``y``
                and ``p``, like the samples of tonic's datasets; or a pair (times, neurons) of 1-d arrays, with neurons
                as indices into the flattened ``shape``. Events may be in any order.
            shape: the features: [neurons], [polarities, x] or [polarities, y, x]; polarities are the channels. With
                one polarity channel ``p`` is ignored, and the polarities are merged. (tonic's sensor_size is the
                reverse, for :func:`tandem_snn.tonic.from_tonic`.)
            T: the number of frames, 1..65535.
            window: (start, stop), in the unit of ``t``: frame i covers [start + i·d, start + (i+1)·d) with
                d = (stop - start)/T, as ``numpy.linspace`` has them; events outside are dropped, although their
                addresses are checked. Default: from the first event to the last, which belongs to the last frame (if
                all are at one time, to the first). Give a window if several recordings must share one clock.
            gain: the value of a spike.

        Raises:
            TypeError: recording has an unknown form or dtype.
            ValueError: fields are missing, lengths differ, an address is outside ``shape``, a time is NaN, the
                window is empty, or it is so long that T times its length is no int64 or float64.

        >>> te.SpikeTrain.from_events(([0.0, 0.4, 0.9, 1.0], [0, 1, 1, 0]), shape=[2], T=2).to_dense()
        tensor([[[1., 1.]],
        <BLANKLINE>
                [[1., 1.]]])
        """
        checks.T("T", T)
        planes = torch.from_numpy(events.bin_events(recording, shape, T, window)).unsqueeze(1)
        checks.gain("gain", gain, planes.shape[2])
        return cls.unchecked(planes, T, None, gain)

    @property
    def edge(self) -> Tensor | None:
        """The counts if gradients flow through them, else None."""
        return self._counts if needs_grad(self._counts) else None

    @property
    def counts(self) -> Tensor:
        """The spike count of each neuron, floating point [B, *features]; counted on first access if not given.

        To be read: the spikes stay as they are when counts change in place. ``from_counts(train.counts * mask, T)``
        makes spikes of changed counts.
        """
        if self._flagged_counts is None:
            counts, bad = self.clean_counts(), self.bad
            if counts.requires_grad and torch.is_grad_enabled() and bad is not None and is_clean(bad):
                bad = None  # a sum with zeros takes longer, and its gradient again
            if self._counts is not None and bad is None:
                return counts
            flagged = with_flags(counts, bad)
            if counts.requires_grad and not torch.is_grad_enabled():
                return flagged  # not cached, because later uses may need a gradient
            self._flagged_counts = flagged
            if self._counts is not None:
                self._counts = flagged  # so that later gradients flow through the tensor that was returned here
        return self._flagged_counts

    @counts.setter
    def counts(self, value: Tensor | None) -> None:
        self._counts, self._flagged_counts = value, None
        self._dtype = getattr(value, "dtype", self._dtype)

    def clean_counts(self) -> Tensor:
        """Return the counts without adding the NaN flags."""
        if self._counts is not None:
            return self._counts
        return counts_of(self.stored, self.timing, counts_dtype(self._dtype, self.T))

    @property
    def planes(self) -> Tensor:
        """uint8 [ceil(T/8), B, *features]: bit t % 8 of plane t // 8 is the spike at step t."""
        if self.timing == "step":
            return self.stored
        return torch.ops.tandem.burst_planes.default(self.stored, self.T)

    def stored_as(self, timing: str) -> Tensor:
        """Return what a train with this timing stores for the same spikes: planes, or counts as bytes."""
        if timing == "step" and self.offset is not None:
            raise ValueError("timing: neurons with timing 'step' read spikes, got a train with an offset")
        if timing == "step" and self.network_T != self.T:
            network = f"neurons with timing 'step' read the steps of their network, T={self.network_T}"
            raise ValueError(f"timing: {network}, got the spikes of a layer with its own T={self.T}")
        return self.count_bytes if timing == "window" else self.planes

    @property
    def network_T(self) -> int:
        """The T that layers which read it have by default."""
        return self.T if self._network_T is None else self._network_T

    @property
    def count_bytes(self) -> Tensor:
        """The counts as bytes, uint8 [1, B, *features]. ValueError if T is larger than 255."""
        if self.timing == "window":
            return self.stored
        checks.T("T", self.T, "window")
        return torch.ops.tandem.count_bytes.default(self.stored)

    @property
    def shape(self) -> torch.Size:
        """[B, *features]."""
        return self.stored.shape[1:]

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the spikes, 0 and 1, as a tensor [T, B, *features] (default dtype: the dtype of the counts)."""
        dtype = self._dtype if dtype is None else dtype
        checks.dtype("dtype", dtype)
        return unpack(self.planes, self.T, dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("copy: spikes are unpacked for NumPy, which is a copy, got False")
        return self.to_dense(torch.uint8).cpu().numpy().astype(np.uint8 if dtype is None else dtype, copy=False)

    @classmethod
    def concatenate(cls, signals: Sequence[SpikeTrain], dim: int) -> SpikeTrain:
        counts = torch.cat([s.counts for s in signals], dim) if any(s.edge is not None for s in signals) else None
        first = signals[0]
        timing = "window" if all(s.timing == "window" for s in signals) else "step"
        stored = torch.cat([s.stored_as(timing) for s in signals], dim + 1)
        bad = None
        if dim > 0:
            bad = reduce(add_flags, [s.bad for s in signals])
        elif any(s.bad is not None for s in signals):
            clean = stored.new_zeros((), dtype=torch.float32)
            bad = torch.cat([clean.expand(len(s)) if s.bad is None else s.bad for s in signals])
        offset = first.offset
        if dim > 0 and (offsets := offsets_of([s.offset for s in signals], [s.shape[1:] for s in signals])):
            offset = torch.cat(offsets, dim)
        T, network_T = max(s.T for s in signals), max(s.network_T for s in signals)
        kind = cls if all(type(s) is cls for s in signals) else SpikeTrain
        gain = _joined_gain(signals, dim)
        return kind.unchecked(stored, T, counts, gain, first._dtype, timing, bad, network_T, offset)

    def _exact(self, dtype: torch.dtype) -> torch.dtype:
        return counts_dtype(dtype, self.T)

    def _moved(self, f: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> SpikeTrain:
        bad = None if self.bad is None else f(self.bad)
        return self.map(f).replace(bad=bad, _dtype=dtype or self._dtype)  # also for counts that have not been made yet

    def __getitem__(self, index: Any) -> SpikeTrain:
        """Select samples of the batch by an int, a slice or a 1-d list, array or tensor; the batch dimension stays."""
        index = batch_index(index, len(self))
        counts = None if self._counts is None else self._counts[index]
        bad = None if self.bad is None else self.bad[index]
        return self.replace(stored=self.stored[:, index], counts=counts, bad=bad)


def _joined_gain(signals: Sequence[SpikeTrain], dim: int) -> float | Tensor:
    """Return the gain of trains joined along ``dim``: that of the first, or gains of channels or places, joined."""
    gains = [s.gain for s in signals]
    axes = max(gain.dim() if isinstance(gain, Tensor) else 0 for gain in gains)
    tensors = any(isinstance(gain, Tensor) for gain in gains)
    one = axes == 0 and all(gain is gains[0] if tensors else gain == gains[0] for gain in gains)
    if one or not 0 < dim <= max(axes, 1):
        return gains[0]

    def spread(gain: float | Tensor, train: SpikeTrain) -> Tensor:
        sizes = train.shape[1:] if axes > 1 else train.shape[1:2]
        if not isinstance(gain, Tensor):
            return torch.full(sizes, gain, device=train.device)
        return gain.reshape(*gain.shape, *[1] * (len(sizes) - gain.dim())).expand(sizes)

    return torch.cat([spread(gain, s) for gain, s in zip(gains, signals, strict=True)], dim - 1)


register_pytree(SpikeTrain, static=("T", "_dtype", "timing", "_network_T"))
