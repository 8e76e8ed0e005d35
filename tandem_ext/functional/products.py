"""The product of a layer's weight with its input: its output shape, the ops that compute it, and its gradients."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from .._torch import autocast_active, constant_result, torch_convolution
from ..ops import output_sizes
from ..planes import counts_of
from ..rule import fixed_point

_CONV = {3: F.conv1d, 4: F.conv2d}
_ops = torch.ops.tandem


class Product(NamedTuple):
    """W [N, K] times [B, K]; or, with a stride, W [N, K/groups, *kernel] convolved with [B, K, *space]."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    sides: tuple[int, ...] = ()  # for F.pad: padding="same" may need one more on one side, which the ops do not support
    spacing: tuple[int, ...] = ()  # of a transposed convolution: its stride, that is, zeros go between the inputs

    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        """Return the arguments of the ops and of torch's convolutions, in their order."""
        return self.stride, self.padding, self.dilation, self.groups

    def padded(self, x: Tensor) -> Tensor:
        """Return x, [..., K, *space], with the zeros between its places, and at its sides, that the ops do not add.

        >>> Product((1,), (0,), (1,), sides=(1, -1), spacing=(2,)).padded(torch.tensor([[5.0, 7.0]]))
        tensor([[0., 5., 0., 7.]])
        """
        if not self.spacing:
            return F.pad(x, self.sides) if self.sides else x
        axes, between = len(self.spacing), [0, 0]
        x = x.movedim(-1 - axes, -1)  # channels are last in memory
        *lead, channels = x.shape
        apart = self._spaced(lead[-axes:])
        for axis in reversed(range(axes)):
            x = x.unsqueeze(2 * axis - 2 * axes)
            between += [0, self.spacing[axis] - 1, 0, 0]
        x = F.pad(x, between).reshape(*lead[:-axes], *apart, channels)
        return F.pad(x, (0, 0, *self.sides)).movedim(-1, -1 - axes)

    def _padded_sizes(self, sizes: Sequence[int]) -> Sequence[int]:
        if not self.sides:
            return sizes
        axes = zip(self._spaced(sizes), self.sides[-2::-2], self.sides[::-2], strict=True)
        return [n + before + after for n, before, after in axes]

    def _spaced(self, sizes: Sequence[int]) -> Sequence[int]:
        return [n * s for n, s in zip(sizes, self.spacing, strict=True)] if self.spacing else sizes

    def output_shape(self, x_shape: Sequence[int], weight: Tensor) -> tuple[int, ...]:
        """Return [B, N, *space], after checking that x, before it is padded, fits the weight."""
        w_shape = weight.shape
        checks.features(x_shape, w_shape, self.groups)
        if not self.stride:
            return x_shape[0], w_shape[0]
        sizes, kernel = self._padded_sizes(x_shape[2:]), w_shape[2:]
        checks.kernel(sizes, kernel, self.padding, self.dilation)
        return x_shape[0], w_shape[0], *output_sizes(sizes, kernel, self.stride, self.padding, self.dilation)

    def is_of_tokens(self, weight: Tensor) -> bool:
        """Return whether it multiplies each place of a line by itself, as torch's matrix products do without copies."""
        alone = (*self.stride, self.groups, *weight.shape[2:]) == (1, 1, 1)
        return alone and not (any(self.padding) or self.sides or self.spacing)

    def weighted(self, weight: Tensor, gain: Tensor) -> Tensor:
        """Multiply the gain of each input channel, [K], into the weight, so that it applies to spikes of value 1."""
        checks.per_channel("gain", gain, weight.shape[1] * self.groups, weight.device)
        if weight.dtype == torch.int8:
            raise ValueError("gain: weights of few bits are integers, which take one gain for all channels")
        gain = gain.to(torch.promote_types(gain.dtype, torch.float32))  # for its gradient, a sum that may cancel
        gain = gain.view(self.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (weight.unflatten(0, (self.groups, -1)) * gain).flatten(0, 1).to(weight.dtype)

    def of_offset(self, offset: Tensor, weight: Tensor) -> Tensor:
        """Return the weights times the offset of a train, without a gradient: [1, N, *space] in float64.

        It is exact, for a float32 weight, because the offset is rounded to 22 bits of its largest number.
        """
        offset = offset.double()
        largest = offset.abs().amax().clamp(min=2.0**-100).view(torch.int64)
        unit = ((largest >> 52) - 21 << 52).view(torch.float64)
        return torch_product((offset / unit).round(), fixed_point(weight.detach()), self) * unit

    def runs_channels_last(self, weight: Tensor) -> bool:
        """Return whether torch gets the tensors of this convolution channels-last, as the neurons are.

        That is up to six times faster, but oneDNN (torch 2.13) reads foreign memory for one input channel, one column
        of outputs and only a horizontal stride, and writes to it in the weight gradient of strided 1x1 kernels with 2
        to 15 input channels. ``csrc/ops/torch_numbers.cpp`` decides alike, and by itself, as it must not trust a file;
        tests/ops/test_first_layer.py searches for others.
        """
        if weight.dim() != 4:
            return False
        channels, *kernel = weight.shape[1:]
        reads_wrong = channels == 1 and self.stride[0] == 1 < self.stride[1]
        writes_wrong = channels < 16 and kernel == [1, 1] and max(self.stride) > 1
        return not (reads_wrong or writes_wrong)

    def _is_written(self, sizes: Sequence[int], lines: Sequence[int], weight: Tensor) -> bool:
        """Return whether torch writes all of the weight's gradient in the dtype of the weight, and nothing else.

        On a CPU, oneDNN's bfloat16 (torch 2.13) leaves some of it uninitialised or writes beyond it: with groups, with
        channels that do not fill vectors, and where a weight meets padding only. The last cannot be if a line of the
        image is as long as the stride, the kernel's last weight begins within it, and its first one reaches it.
        ``sizes`` and ``lines`` are those of input and output.
        """
        kernel, (outputs, channels) = weight.shape[2:], weight.shape[:2]
        axes = zip(sizes, kernel, lines, self.stride, self.padding, self.dilation, strict=True)
        meets = all(n >= s and d * (k - 1) - p < n and p <= s * (out - 1) for n, k, out, s, p, d in axes)
        fills = self.groups == 1 and channels % 16 == outputs % 16 == 0
        return weight.dtype == torch.bfloat16 and fills and meets

    def direct(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the product with a real-valued input."""
        if not self.stride:
            return F.linear(x, weight, bias)
        dtype, last = autocast_dtype(weight), self.runs_channels_last(weight)
        x, weight = laid_out(self.padded(x), last), laid_out(weight, last)
        convolution: Any = _CONV[weight.dim()]
        if not is_widened(dtype, weight):
            return convolution(x, weight, bias, *self.geometry())
        with torch.autocast("cpu", enabled=False):
            wide = [None if t is None else t.to(dtype).float() for t in (x, weight, bias)]
            return convolution(*wide, *self.geometry()).to(dtype)

    def gradients(
        self,
        grad: Tensor,
        stored: Tensor,
        timing: str,
        weight: Tensor,
        needs_input: bool,
        needs_weight: bool,
        offset: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the ANN's gradients of input and weight, at the real counts of the input, plus an offset."""

        def inputs() -> Tensor:
            counts = counts_of(stored, timing, weight.dtype)
            return counts if offset is None else counts + offset.to(counts.dtype)

        if not self.stride:
            return grad.mm(weight) if needs_input else None, grad.t().mm(inputs()) if needs_weight else None
        if weight.numel() == 0:  # torch's convolution_backward does not support it
            zeros = stored.new_zeros(stored.shape[1:], dtype=weight.dtype)
            return zeros if needs_input else None, torch.zeros_like(weight) if needs_weight else None
        if not (needs_input or needs_weight):
            return None, None
        if self.is_of_tokens(weight) and offset is None:
            rows = grad.movedim(1, -1).flatten(0, 1), stored.movedim(2, -1).flatten(1, 2)
            found = LINEAR.gradients(*rows, timing, weight.flatten(1), needs_input, needs_weight)
            grad_input, grad_weight = found
            if grad_input is not None:
                grad_input = grad_input.unflatten(0, (len(grad), -1)).movedim(-1, 1)
            return grad_input, None if grad_weight is None else grad_weight.view_as(weight)
        product, more, transposes = self, [0] * len(self.stride), bool(self.spacing)
        sizes: Any = stored.shape[3:]
        if transposes:
            product, more, weight = *self._transposed(weight.shape[2:]), transposed(weight, self.groups)
            axes = grad.shape[2:], sizes  # of the convolution that it transposes
        else:
            sizes = self._padded_sizes(sizes)
            axes = sizes, grad.shape[2:]
        dtype, last = weight.dtype, product.runs_channels_last(weight)
        if is_widened(dtype, weight) and not product._is_written(*axes, weight):
            grad, weight = grad.float(), weight.float()
        if needs_weight:
            counts = laid_out(inputs() if transposes else self.padded(inputs()), last)
        else:
            counts = weight.new_empty(()).expand(*stored.shape[1:3], *sizes)  # only its shape is used
        grad_input, grad_weight, _ = torch.ops.aten.convolution_backward.default(
            laid_out(grad, last), counts, laid_out(weight, last), None, product.stride, product.padding,
            product.dilation, transposes, more, self.groups, [needs_input, needs_weight, False],
        )  # fmt: skip
        if needs_input and self.sides and not transposes:
            grad_input = F.pad(grad_input, [-side for side in self.sides])
        if needs_weight and transposes:
            grad_weight = transposed(grad_weight, self.groups)
        return grad_input.to(dtype) if needs_input else None, grad_weight.to(dtype) if needs_weight else None

    def _transposed(self, kernel: Sequence[int]) -> tuple["Product", list[int]]:
        """Return torch's arguments of this transposed convolution: of the one it transposes, and output_padding."""
        before, after = self.sides[-2::-2], self.sides[::-2]
        sizes = zip(self.dilation, kernel, before, strict=True)
        padding = tuple(d * (k - 1) - side for d, k, side in sizes)
        more = [b + s - 1 - a for a, b, s in zip(before, after, self.spacing, strict=True)]
        return Product(self.spacing, padding, self.dilation, self.groups), more


LINEAR = Product()


def autocast_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype that torch.autocast gives to a product with this weight."""
    if autocast_active() and weight.dtype not in (torch.float64, torch.int8):
        device = weight.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    return weight.dtype


def is_widened(dtype: torch.dtype, weight: Tensor) -> bool:
    """Return whether convolutions in this dtype multiply float32 and round once: in half types on a CPU.

    Gradients do so only where they must (:meth:`Product.gradients`).
    """
    return dtype in (torch.bfloat16, torch.float16) and weight.device.type == "cpu"


def laid_out(x: Tensor, last: bool) -> Tensor:
    """Lay out a tensor [B, C, *space] with its channels last, or contiguous; a copy only if it is neither.

    Sizes of one get the strides of the layout too, which ``contiguous(memory_format=...)`` leaves as they are: torch
    takes the layout of its result, and its algorithm, from them.
    """
    dense = x.movedim(1, -1) if last else x
    dense = dense.reshape(-1).view(dense.shape)
    return dense.movedim(-1, 1) if last else dense


def transposed(weight: Tensor, groups: int) -> Tensor:
    """Return the kernel of the convolution that a transposed one [in, out / groups, *kernel] is, or the way back."""
    swapped = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped.flip([*range(2, weight.dim())])


def products_of_steps(spikes: Iterable[Tensor], product: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yield the products [B, N, *space] of steps, whose spikes [t, B, *features] come several steps at once."""
    for part in spikes:
        yield from product(part.flatten(0, 1)).unflatten(0, part.shape[:2])


def torch_product(x: Tensor, weight: Tensor, product: Product) -> Tensor:
    """Return torch's product of spikes or counts in full precision, with no autocast, channels-last in memory."""
    if not product.stride:
        with full_precision(x.device):
            return F.linear(x, weight)
    if weight.numel() == 0:  # torch's convolution gets the shape of this case wrong
        return x.new_zeros(product.output_shape(x.shape, weight))
    last, cudnn = product.runs_channels_last(weight), torch.backends.cudnn
    with full_precision(x.device):
        return torch_convolution(
            laid_out(product.padded(x), last), laid_out(weight, last), None, product.stride, product.padding,
            product.dilation, False, [0] * len(product.stride), product.groups, cudnn.benchmark, cudnn.deterministic,
            cudnn.enabled, False,
        )  # fmt: skip


def _settings(device: str) -> tuple[Any, ...]:
    """torch's settings of the precision of products of float32; convolutions on a GPU are told at each call."""
    mkldnn: Any = torch.backends.mkldnn
    return (torch.backends.cuda.matmul,) if device == "cuda" else (mkldnn.matmul, mkldnn.conv)


@constant_result  # Dynamo does not read, but guards settings
def multiplies_float32(device: str) -> bool:
    """Return whether torch multiplies float32 as such, not with fewer bits (TF32, bfloat16)."""
    return all(setting.fp32_precision in ("ieee", "none") for setting in _settings(device))


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and neither TF32 nor bfloat16 in torch's products of float32, where the user asked for them."""
    with torch.autocast(device.type, enabled=False) if autocast_active() else contextlib.nullcontext():
        if multiplies_float32(device.type):
            yield
            return
        try:
            known = torch.get_float32_matmul_precision()
        except RuntimeError:  # it was set by the new names alone
            known = ""
        before = [(setting, setting.fp32_precision) for setting in _settings(device.type)]
        if device.type == "cuda":
            torch.set_float32_matmul_precision("highest")
        try:
            for setting, _ in before:
                setting.fp32_precision = "ieee"
            yield
        finally:
            for setting, precision in before:
                setting.fp32_precision = precision
            if device.type == "cuda" and known:
                torch.set_float32_matmul_precision(known)


def convolution(kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: Any) -> Product:
    """Return the Product of a convolution; arguments as in torch.nn.functional, ``kernel`` is the kernel size."""
    dims = len(kernel)
    stride = checks.ints("stride", stride, dims, least=1)
    dilation = checks.ints("dilation", dilation, dims, least=1)
    checks.positive("groups", groups)
    sides: tuple[int, ...] = ()
    if padding == "valid":
        padding = (0,) * dims
    elif padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(t // 2 for t in total)
        if any(t % 2 for t in total):  # an even kernel needs one more element of padding on the right
            sides = tuple(side for t in reversed(total) for side in (0, t % 2))
    elif isinstance(padding, str):
        raise ValueError(f"padding: expected an int, {dims} ints, 'same' or 'valid', got {padding!r}")
    else:
        padding = checks.ints("padding", padding, dims, least=0)
    return Product(stride, padding, dilation, groups, sides)
