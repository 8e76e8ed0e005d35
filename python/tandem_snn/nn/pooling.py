"""Pooling of spike trains: average (by neurons), adaptive average (of counts) and maximum (a bitwise OR)."""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tandem_ext as te
from tandem_ext import ImpulseInput, SpikeTrain, checks
from tandem_ext.functional.autograd import apply
from tandem_ext.functional.layer import Input
from tandem_ext.functional.settings import default_v_init

from .currents import fire_steps, part_of, scan_trace, spikes_of, window_trace
from .options import HasNeurons
from .quantise import StraightThrough
from .signals import check_images, map_counts, map_features

Size = int | tuple[int, int]


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

    threshold: float
    v_init: float | None
    dilation = (1, 1)

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
        self.kernel_size = checks.ints("kernel_size", kernel_size, 2, 1)
        self.stride = self.kernel_size if stride is None else checks.ints("stride", stride, 2, 1)
        self.padding = checks.ints("padding", padding, 2, 0)
        self.spiking = spiking
        self.threshold = float(self.kernel_size[0] * self.kernel_size[1])
        self.v_init = v_init
        self.timing = timing

    @property
    def initial_potential(self) -> float:
        v_init = default_v_init(1.0, self.timing) if self.v_init is None else self.v_init
        return float(v_init) * self.threshold

    def forward(self, x: Input | Tensor) -> Input | Tensor:
        check_images(x, "AvgPool2d")
        if not self.spiking:
            return map_counts(x, self._average)
        return self._fire(x) if isinstance(x, SpikeTrain) else map_features(x, self._average)

    def _average(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding)

    @torch.no_grad()
    def potentials(self, x: SpikeTrain) -> Tensor:
        """Return membrane potentials, like ``potentials`` of :class:`SpikingLayer`; the threshold is k²."""
        start, threshold = self.initial_potential, self.threshold
        if self.timing == "window":
            return window_trace(x.T, lambda t: start + self._sums(part_of(x, 0, t).count_bytes)[0], threshold)  # type: ignore[union-attr]
        return scan_trace(self._sums(x.to_dense(torch.uint8)), start, threshold=threshold)

    def _sums(self, spikes: Tensor) -> Tensor:
        """Return the sums of spikes or counts [T, B, C, H, W], uint8, in each pooling patch: float32, exact."""
        if self.timing == "window" or self.threshold > 255:
            spikes = spikes.int()
        size = self._average(spikes.new_empty(spikes.shape[1:], dtype=torch.float32, device="meta")).shape[-2:]
        return reduce(torch.add, _patches(self, spikes, size)).float()

    def _fire(self, x: SpikeTrain) -> SpikeTrain:
        train: SpikeTrain
        start, neuron = self.initial_potential, {"threshold": self.threshold}
        if self.timing == "window":
            impulse = ImpulseInput(self._sums(x.count_bytes)[0], x.T)
            train = te.functional.if_scan(impulse, v_init=start, timing="window", **neuron).to(x._dtype)  # type: ignore[union-attr, arg-type]
        else:
            planes = x.planes
            train = fire_steps(lambda *steps: self._sums(spikes_of(planes, *steps)), x.T, start, x._dtype, **neuron)
        if x.edge is not None:
            counts = apply(StraightThrough, self._average(x.edge), train.clean_counts(), None)
            train = train.replace(counts=counts)
        return train.replace(gain=x.gain, bad=x.bad)

    def extra_repr(self) -> str:
        shown = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, spiking={self.spiking}"
        return ", ".join([shown, *self.changed({"v_init": None, "timing": "step"})])


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
        return map_counts(x, super().forward)


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
        self.kernel_size = checks.ints("kernel_size", kernel_size, 2, 1)
        self.stride = self.kernel_size if stride is None else checks.ints("stride", stride, 2, 1)
        self.padding = checks.ints("padding", padding, 2, 0)
        self.dilation = checks.ints("dilation", dilation, 2, 1)
        self.ceil_mode = ceil_mode

    def forward(self, x: Input | Tensor) -> Input | Tensor:
        check_images(x, "MaxPool2d")
        if not isinstance(x, SpikeTrain):
            return map_features(x, self._maximum)
        edge = x.edge
        if edge is None:
            size = self._maximum(x.stored.new_empty(x.shape, dtype=torch.float32, device="meta")).shape[-2:]
            return x.replace(stored=self._any(x, size), counts=None)
        _, winners = self._maximum(edge.detach(), indices=True)
        stored = self._any(x, winners.shape[-2:])
        spikes = SpikeTrain.unchecked(stored, x.T, None, 1.0, edge.dtype, x.timing).counts
        counts = apply(_ToWinner, edge, spikes, winners)
        return x.replace(stored=stored, counts=counts)

    def _maximum(self, x: Tensor, indices: bool = False) -> Any:
        options: Any = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, indices)
        return F.max_pool2d(x, *options)

    def _any(self, x: SpikeTrain, size: Sequence[int]) -> Tensor:
        either = torch.maximum if x.timing == "window" else torch.bitwise_or
        return reduce(either, _patches(self, x.stored, size))

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


def _patches(pool: AvgPool2d | MaxPool2d, x: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
    """Return the k² values of each pooling patch, as strided views [..., *size] of x padded with zeros."""
    kernel_size, stride, padding, dilation = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    spans = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel_size, strict=True)]
    after = [max(0, span - p - n) for span, p, n in zip(spans, padding, x.shape[-2:], strict=True)]
    x = F.pad(x, (padding[1], after[1], padding[0], after[0]))
    (rows, columns), (down, right) = size, stride
    for i in range(0, kernel_size[0] * dilation[0], dilation[0]):
        for j in range(0, kernel_size[1] * dilation[1], dilation[1]):
            yield x[..., i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]


class _ToWinner(torch.autograd.Function):
    """The pooled counts; their gradient goes to the winner of each pooling patch, whose index is all that is saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(counts: Tensor, pooled: Tensor, winners: Tensor) -> Tensor:
        return pooled.view_as(pooled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        counts, _, winners = inputs
        ctx.save_for_backward(winners)
        ctx.space = counts.shape[-2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (winners,) = ctx.saved_tensors
        flat = grad.new_zeros((*grad.shape[:-2], ctx.space[0] * ctx.space[1]))
        flat = flat.scatter_add(-1, winners.flatten(-2), grad.flatten(-2))
        return flat.unflatten(-1, ctx.space), None, None
