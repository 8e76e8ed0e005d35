"""Pooling of spike trains: average (by neurons), adaptive average (of counts) and maximum (a bitwise OR)."""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.functional.autograd import apply
from tandem_ext.functional.currents import StraightThrough
from tandem_ext.functional.layer import Input
from tandem_ext.functional.products import laid_out
from tandem_ext.functional.settings import Settings, default_v_init

from .currents import Currents, spikes_of
from .firing import fire, part_of, scan_trace, window_trace
from .maximum import largest
from .options import HasNeurons
from .places import placed
from .signals import check_images, map_features, mean_counts

Size = int | tuple[int, ...]


class AvgPool2d(HasNeurons):
    """Average pooling by IF neurons with fixed weights of 1 and the threshold k², which is exact for any kernel.

    The gain is that of the input. The gradient is that of ``torch.nn.AvgPool2d`` on the counts, also where the average
    is 0: it has no ReLU, whose gate could be closed.

    Args:
        kernel_size, stride, padding: as in ``torch.nn.AvgPool2d`` (padding counts as silent neurons in the average).
        spiking: False returns the mean counts as a tensor, without neurons, for use directly before the readout.
        v_init: the membrane potential before the first step, in units of the threshold. 0.5 rounds mean counts to
            nearest, 0 rounds them down. None: 0, or 0.5 with timing "window".
        timing: as in :class:`NeuronOptions`; the attribute may be changed.

    Shape: SpikeTrain [B, C, H, W] -> SpikeTrain [B, C, H', W']. Direct inputs and tensors of counts are averaged
    without neurons, and keep their type.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    >>> tnn.AvgPool2d(2)(te.SpikeTrain.from_dense(torch.ones(8, 1, 3, 4, 4))).counts.unique()
    tensor([8.])
    """

    axes: ClassVar[int] = 2
    threshold: float
    v_init: float | None

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        *,
        spiking: bool = True,
        v_init: float | None = None,
        timing: checks.Timing = "step",
    ) -> None:
        super().__init__()
        self.kernel_size = checks.ints("kernel_size", kernel_size, self.axes, 1)
        self.stride = self.kernel_size if stride is None else checks.ints("stride", stride, self.axes, 1)
        self.padding = checks.ints("padding", padding, self.axes, 0)
        self.spiking = spiking
        self.dilation = (1,) * self.axes
        self.threshold = float(math.prod(self.kernel_size))
        self.v_init = v_init
        self.timing = timing

    @property
    def initial_potential(self) -> float:
        v_init = default_v_init(1.0, self.timing) if self.v_init is None else self.v_init
        return float(v_init) * self.threshold

    def forward(self, x: Input | Tensor) -> Input | Tensor:
        check_images(x, type(self).__name__, self.axes)
        if isinstance(x, Currents):
            return x.map(lambda u: self._average(laid_out(u, True)))
        if not self.spiking:
            return mean_counts(x, self._average, math.prod(self.kernel_size))
        return self._fire(x) if isinstance(x, SpikeTrain) else map_features(x, self._average)

    def _average(self, x: Tensor) -> Tensor:
        average: Any = F.avg_pool1d if self.axes == 1 else F.avg_pool2d
        y: Tensor = average(x, self.kernel_size, self.stride, self.padding)
        return y

    @torch.no_grad()
    def potentials(self, x: SpikeTrain) -> Tensor:
        """Return membrane potentials, like ``potentials`` of :class:`SpikingLayer`; the threshold is k²."""
        start, threshold = self.initial_potential, self.threshold
        if self.timing == "window":
            return window_trace(x.T, x.T, lambda t: start + self._sums(part_of(x, 0, t).count_bytes)[0], threshold)
        return scan_trace(self._sums(x.to_dense(torch.uint8)), start, threshold=threshold)

    def _sums(self, spikes: Tensor) -> Tensor:
        """Return the sums of spikes or counts [T, B, C, H, W], uint8, in each pooling patch: float32, exact."""
        if self.timing == "window" or self.threshold > 255:
            spikes = spikes.int()
        size = self._average(spikes.new_empty(spikes.shape[1:], dtype=torch.float32, device="meta")).shape[-self.axes :]
        return reduce(torch.add, _patches(self, spikes, size)).float()

    def _fire(self, x: SpikeTrain) -> SpikeTrain:
        planes: Any = x.stored_as("step") if self.timing == "step" else None
        u = Currents(
            lambda: self._sums(x.count_bytes)[0],
            lambda start, stop: self._sums(spikes_of(planes, start, stop)),
            x.T,
            dtype=x._dtype,
        )
        neuron = {"threshold": self.threshold, "v_init": self.initial_potential, "timing": self.timing}
        train: SpikeTrain = fire(u, Settings(x.T, **neuron))[0]  # type: ignore[arg-type]
        if x.edge is not None:
            counts = apply(StraightThrough, self._average(x.edge), train.clean_counts(), None)
            train = train.replace(counts=counts)
        offset = None if x.offset is None else self._average(x.offset)
        return train.replace(gain=x.gain, bad=x.bad, _network_T=x._network_T, offset=offset)

    def extra_repr(self) -> str:
        shown = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, spiking={self.spiking}"
        return ", ".join([shown, *self.changed({"v_init": None, "timing": "step"})])


class AvgPool1d(AvgPool2d):
    """Average pooling of lines, as :class:`AvgPool2d` does that of images; the threshold is k.

    Args:
        kernel_size, stride, padding: as in ``torch.nn.AvgPool1d``.
        spiking, v_init, timing: as in :class:`AvgPool2d`.

    Shape: SpikeTrain [B, C, L] -> SpikeTrain [B, C, L'], and others as in :class:`AvgPool2d`.

    >>> tnn.AvgPool1d(2)(te.SpikeTrain.from_dense(torch.ones(8, 1, 3, 4))).counts.unique()
    tensor([8.])
    """

    axes: ClassVar[int] = 1


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling of counts, without neurons, for use before the readout.

    Args:
        output_size: as in ``torch.nn.AdaptiveAvgPool2d``.

    Shape: signal or counts [B, C, H, W] -> Tensor [B, C, *output_size], the mean counts times the gain.

    >>> tnn.AdaptiveAvgPool2d(1)(te.SpikeTrain.from_dense(torch.ones(8, 1, 3, 4, 4))).shape
    torch.Size([1, 3, 1, 1])
    """

    def forward(self, x: Input | Tensor) -> Tensor:
        check_images(x, "AdaptiveAvgPool2d")
        average = super().forward
        if isinstance(x, Currents):
            return x.map(lambda u: average(laid_out(u, True)))
        return mean_counts(x, average, self._multiple(x.shape[2:]))

    def _multiple(self, space: Sequence[int]) -> int:
        """Return the least common multiple of the numbers of values that are averaged."""
        size = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,) * 2
        # torch.compile has no multiples of unknown sizes, which ranges make known, and passes no generators on
        pairs = [(len(range(n)), len(range(m or n))) for n, m in zip(space, size, strict=True)]
        return math.prod([math.lcm(*[-(-(j + 1) * n // m) - j * n // m for j in range(m)]) for n, m in pairs])


class MaxPool2d(nn.Module):
    """Maximum pooling: a pooling patch spikes whenever any of its neurons does, the bitwise OR of their spikes.

    It is causal, so it can stream. The gradient is that of ``torch.nn.MaxPool2d`` on the counts: it goes to the neuron
    with the most spikes. The count of the OR is at least the largest count, and at most T. For bursts, the output of
    layers with timing "window", it equals the largest count.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as in ``torch.nn.MaxPool2d``.

    Shape: SpikeTrain [B, C, H, W] -> SpikeTrain [B, C, H', W']. For direct inputs and tensors of counts it is the
    ordinary maximum.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    >>> spikes = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 1, 1, 1, 2)  # two neurons that take turns
    >>> tnn.MaxPool2d((1, 2))(te.SpikeTrain.from_dense(spikes)).counts.item()
    2.0
    """

    axes: ClassVar[int] = 2

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = checks.ints("kernel_size", kernel_size, self.axes, 1)
        self.stride = self.kernel_size if stride is None else checks.ints("stride", stride, self.axes, 1)
        self.padding = checks.ints("padding", padding, self.axes, 0)
        self.dilation = checks.ints("dilation", dilation, self.axes, 1)
        self.ceil_mode = ceil_mode

    def forward(self, x: Input | Tensor) -> Input | Tensor:
        check_images(x, type(self).__name__, self.axes)
        if isinstance(x, Currents):
            size, stride, padding, dilation = self.kernel_size, self.stride, self.padding, self.dilation
            return largest(f"max_pool{self.axes}d", x, size, stride, padding, dilation, self.ceil_mode)
        if not isinstance(x, SpikeTrain):
            return map_features(x, self._maximum)
        edge = x.edge
        if edge is None:
            size = self._maximum(x.stored.new_empty(x.shape, dtype=torch.float32, device="meta")).shape[-self.axes :]
            return x.replace(stored=self._any(x, size), counts=None, offset=self._pooled(x.offset))
        _, winners = self._maximum(edge.detach(), indices=True)
        stored = self._any(x, winners.shape[-self.axes :])
        spikes = SpikeTrain.unchecked(stored, x.T, None, 1.0, edge.dtype, x.timing).counts
        counts = apply(_ToWinner, edge, spikes, winners, self.axes)
        return x.replace(stored=stored, counts=counts, offset=self._pooled(x.offset))

    def _pooled(self, offset: Tensor | None) -> Tensor | None:
        return None if offset is None else self._maximum(offset)

    def _maximum(self, x: Tensor, indices: bool = False) -> Any:
        options: Any = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, indices)
        return (F.max_pool1d if self.axes == 1 else F.max_pool2d)(x, *options)

    def _any(self, x: SpikeTrain, size: Sequence[int]) -> Tensor:
        either = torch.maximum if x.timing == "window" else torch.bitwise_or
        return reduce(either, _patches(self, x.stored, size))

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


class MaxPool1d(MaxPool2d):
    """Maximum pooling of lines, as :class:`MaxPool2d` does that of images.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as in ``torch.nn.MaxPool1d``.

    Shape: SpikeTrain [B, C, L] -> SpikeTrain [B, C, L'], and others as in :class:`MaxPool2d`.

    >>> tnn.MaxPool1d(2)(te.SpikeTrain.from_dense(torch.eye(2).view(2, 1, 1, 2))).counts.item()  # they take turns
    2.0
    """

    axes: ClassVar[int] = 1


class AdaptiveMaxPool2d(nn.Module):
    """Maximum pooling to images of a given size, as :class:`MaxPool2d` with a kernel for each place.

    Args:
        output_size: as in ``torch.nn.AdaptiveMaxPool2d``, without None.

    Shape: SpikeTrain [B, C, H, W] -> SpikeTrain [B, C, *output_size], and others as in :class:`MaxPool2d`.

    Raises:
        TypeError, ValueError: output_size has the wrong type or is out of range.

    >>> tnn.AdaptiveMaxPool2d((2, 3))(te.SpikeTrain.from_dense(torch.ones(8, 1, 3, 7, 7))).shape
    torch.Size([1, 3, 2, 3])
    """

    axes: ClassVar[int] = 2

    def __init__(self, output_size: Size) -> None:
        super().__init__()
        self.output_size = checks.ints("output_size", output_size, self.axes, 1)

    def forward(self, x: Input | Tensor) -> Input | Tensor:
        check_images(x, type(self).__name__, self.axes)
        return self.pool(x.shape[2:])(self.arranged(x))

    def _edges(self, size: int, axis: int) -> list[tuple[int, int]]:
        n = self.output_size[axis]
        return [(j * size // n, -(-(j + 1) * size // n)) for j in range(n)]

    def pool(self, space: Sequence[int]) -> MaxPool2d:
        """Return the pooling of images of this size, for whose kernels :meth:`arranged` repeats places."""
        kernel = [max(end - start for start, end in self._edges(n, axis)) for axis, n in enumerate(space)]
        return (MaxPool1d if self.axes == 1 else MaxPool2d)(tuple(kernel))

    def arranged(self, x: Any) -> Any:
        def ruler(places: Tensor, axis: int) -> Tensor:
            edges = self._edges(places.shape[-1], axis)
            longest = max(end - start for start, end in edges)
            return places[..., [min(start + k, end - 1) for start, end in edges for k in range(longest)]]

        return placed(x, ruler)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(AdaptiveMaxPool2d):
    """Maximum pooling to lines of a given length, as :class:`AdaptiveMaxPool2d` does that of images.

    Args:
        output_size: as in ``torch.nn.AdaptiveMaxPool1d``.

    Shape: SpikeTrain [B, C, L] -> SpikeTrain [B, C, output_size], and others as in :class:`MaxPool2d`.

    >>> tnn.AdaptiveMaxPool1d(3)(te.SpikeTrain.from_dense(torch.ones(8, 1, 3, 7))).shape
    torch.Size([1, 3, 3])
    """

    axes: ClassVar[int] = 1


def _patches(pool: AvgPool2d | MaxPool2d, x: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
    """Return the values of each pooling patch, as strided views [..., *size] of x padded with zeros."""
    kernel_size, stride, padding, dilation = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    spans = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel_size, strict=True)]
    after = [max(0, span - p - n) for span, p, n in zip(spans, padding, x.shape[-len(size) :], strict=True)]
    x = F.pad(x, [side for sides in list(zip(padding, after, strict=True))[::-1] for side in sides])
    for first in product(*(range(0, k * d, d) for k, d in zip(kernel_size, dilation, strict=True))):
        axes = zip(first, size, stride, strict=True)
        places: Any = (..., *(slice(i, i + (n - 1) * s + 1, s) for i, n, s in axes))
        yield x[places]


class _ToWinner(torch.autograd.Function):
    """The pooled counts; their gradient goes to the winner of each pooling patch, whose index is all that is saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(counts: Tensor, pooled: Tensor, winners: Tensor, axes: int) -> Tensor:
        return pooled.view_as(pooled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        counts, _, winners, axes = inputs
        ctx.save_for_backward(winners)
        ctx.space = counts.shape[-axes:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (winners,) = ctx.saved_tensors
        axes = len(ctx.space)
        flat = grad.new_zeros((*grad.shape[:-axes], math.prod(ctx.space)))
        flat = flat.scatter_add(-1, winners.flatten(-axes), grad.flatten(-axes))
        return flat.unflatten(-1, ctx.space), None, None, None
