"""The product of a layer's weight with its input: its output shape, the ops that compute it, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..planes import counts_of

_CONV = {3: F.conv1d, 4: F.conv2d}
_ops = torch.ops.tandem


class Product(NamedTuple):
    """W [N, K] times [B, K]; or, with a stride, W [N, K/groups, *kernel] convolved with [B, K, *space]."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    sides: tuple[int, ...] = ()  # for F.pad: padding="same" may need one more on one side, which the ops do not support

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        """The arguments of the ops and of torch's convolutions, in their order."""
        return self.stride, self.padding, self.dilation, self.groups

    def output_shape(self, x_shape: Sequence[int], weight: Tensor) -> tuple[int, ...]:
        """Return [B, N, *space], after checking that x fits the weight."""
        w_shape = weight.shape
        checks.features(x_shape, w_shape, self.groups)
        if not self.stride:
            return x_shape[0], w_shape[0]
        checks.groups(self.groups, w_shape[0])
        space = []
        for n, k, s, p, d in zip(x_shape[2:], w_shape[2:], self.stride, self.padding, self.dilation, strict=True):
            checks.kernel(n, k, p, d)
            space.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        return x_shape[0], w_shape[0], *space

    def weighted(self, weight: Tensor, gain: Tensor) -> Tensor:
        """Multiply the gain of each input channel, [K], into the weight, so that it applies to spikes of value 1."""
        checks.per_channel("gain", gain, weight.shape[1] * self.groups, weight.device)
        if weight.dtype == torch.int8:
            raise ValueError("gain: weights of few bits are integers, which take one gain for all channels")
        gain = gain.view(self.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (weight.unflatten(0, (self.groups, -1)) * gain).flatten(0, 1).to(weight.dtype)

    def direct(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the product with a real-valued input."""
        if not self.stride:
            return F.linear(x, weight)
        return _CONV[weight.dim()](x, channels_last(weight), None, *self.geometry)

    def window(self, stored: Tensor, T: int, timing: str, weight: Tensor) -> Tensor:
        """Return W c, the sum of the products over the window: [B, N, *space] in the compute dtype."""
        counted = timing == "window"
        return _window_product(stored, T, weight, *self.geometry, counted)

    def gradients(
        self, grad: Tensor, stored: Tensor, timing: str, weight: Tensor, needs_input: bool, needs_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the ANN's gradients of input and weight, at the real counts of the input."""
        if not self.stride:
            grad_input = grad @ weight if needs_input else None
            return grad_input, grad.t() @ counts_of(stored, timing, weight.dtype) if needs_weight else None
        if weight.numel() == 0:  # torch's convolution_backward does not support it
            zeros = stored.new_zeros(stored.shape[1:], dtype=weight.dtype)
            return zeros if needs_input else None, torch.zeros_like(weight) if needs_weight else None
        if needs_weight:
            counts = counts_of(stored, timing, weight.dtype)
        elif needs_input:
            counts = weight.new_empty(()).expand(stored.shape[1:])  # only its shape is used
        else:
            return None, None
        grad_input, grad_weight, _ = torch.ops.aten.convolution_backward.default(
            grad, counts, weight, None, self.stride, self.padding, self.dilation, False, [0] * len(self.stride),
            self.groups, [needs_input, needs_weight, False],
        )  # fmt: skip
        return grad_input, grad_weight


LINEAR = Product()
_window_product = _ops.window_product.default


def channels_last(x: Tensor) -> Tensor:
    """Lay out the input or weight [B, C, H, W] of a convolution so that torch's result is channels-last.

    ``contiguous(memory_format=torch.channels_last)`` does not change a tensor with one channel, and then the result has
    another layout than the neurons, which is several times slower on the CPU.
    """
    if x.dim() != 4:
        return x
    return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def convolution(kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: Any) -> Product:
    """Return the Product of a convolution; arguments as in torch.nn.functional, ``kernel`` is the kernel size."""
    dims = len(kernel)
    stride = checks.ints("stride", stride, dims, least=1)
    dilation = checks.ints("dilation", dilation, dims, least=1)
    checks.steps(groups, "groups", "")
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
