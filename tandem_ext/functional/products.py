"""The products of a layer, linear and convolution: output shape, op, the product of a direct input, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from .neuron import Neurons

_CONV = {1: F.conv1d, 2: F.conv2d}
_linear_if = torch.ops.tandem.linear_if.default
_conv_if = torch.ops.tandem.conv_if.default
_linear_bn_if = torch.ops.tandem.linear_bn_if.default
_conv_bn_if = torch.ops.tandem.conv_bn_if.default
_counts = torch.ops.tandem.counts.default


def float32_precision() -> str:
    """How float32 weights are multiplied on a GPU: what torch is told by ``set_float32_matmul_precision``."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was told by its newer setting, and knows no one word for it
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


# Dynamo traces no string; a change of the setting makes it compile anew. This is torch.compiler.assume_constant_result,
# without the import of Dynamo, which costs most of a second.
float32_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Linear(NamedTuple):
    """W [N, K] times [B, K]."""

    def output_shape(self, x_shape: Sequence[int], weight: Tensor) -> tuple[int, ...]:
        checks.features(x_shape, weight)
        return x_shape[0], weight.shape[0]

    def direct(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def fire(
        self, planes: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, neurons: Neurons, train: bool
    ) -> tuple[Tensor, ...]:
        residual, _, residual_scale, _, v_init, (T, steps, threshold, leak, gate, return_v) = neurons
        return _linear_if(  # type: ignore[no-any-return]
            planes, T, weight, float32_precision(), scale, shift, residual, residual_scale, v_init, steps, threshold,
            leak, gate, train, return_v,
        )  # fmt: skip

    def fire_bn(
        self,
        planes: Tensor,
        weight: Tensor,
        gain: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        neurons: Neurons,
    ) -> tuple[Tensor, ...]:
        residual, _, residual_scale, _, v_init, (T, steps, threshold, leak, gate, return_v) = neurons
        return _linear_bn_if(  # type: ignore[no-any-return]
            planes, T, weight, float32_precision(), gain, gamma, beta, eps, residual, residual_scale, v_init, steps,
            threshold, leak, gate, return_v,
        )  # fmt: skip

    def gradients(
        self, grad: Tensor, planes: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The ANN's gradients, at the real counts of the input."""
        grad_input = grad @ weight if needs_input else None
        grad_weight = grad.t() @ _counts(planes, weight.dtype) if needs_weight else None
        return grad_input, grad_weight


class Conv(NamedTuple):
    """W [N, K/groups, *kernel] convolved with [B, K, *space], over one or two dimensions of space."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_shape(self, x_shape: Sequence[int], weight: Tensor) -> tuple[int, ...]:
        checks.features(x_shape, weight, self.groups)
        checks.groups(self.groups, weight)
        space = []
        for n, k, s, p, d in zip(x_shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True):
            checks.kernel(n, k, p, d)
            space.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        return x_shape[0], weight.shape[0], *space

    def direct(self, x: Tensor, weight: Tensor) -> Tensor:
        conv = _CONV[weight.dim() - 2]
        return conv(x, channels_last(weight), None, self.stride, self.padding, self.dilation, self.groups)

    def fire(
        self, planes: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, neurons: Neurons, train: bool
    ) -> tuple[Tensor, ...]:
        residual, _, residual_scale, _, v_init, (T, steps, threshold, leak, gate, return_v) = neurons
        return _conv_if(  # type: ignore[no-any-return]
            planes, T, weight, float32_precision(), self.stride, self.padding, self.dilation, self.groups, scale, shift,
            residual, residual_scale, v_init, steps, threshold, leak, gate, train, return_v,
        )  # fmt: skip

    def fire_bn(
        self,
        planes: Tensor,
        weight: Tensor,
        gain: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        neurons: Neurons,
    ) -> tuple[Tensor, ...]:
        residual, _, residual_scale, _, v_init, (T, steps, threshold, leak, gate, return_v) = neurons
        return _conv_bn_if(  # type: ignore[no-any-return]
            planes, T, weight, float32_precision(), self.stride, self.padding, self.dilation, self.groups, gain, gamma,
            beta, eps, residual, residual_scale, v_init, steps, threshold, leak, gate, return_v,
        )  # fmt: skip

    def gradients(
        self, grad: Tensor, planes: Tensor, weight: Tensor, needs_input: bool, needs_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The ANN's gradients, at the real counts of the input."""
        if weight.numel() == 0:  # torch's convolution_backward refuses it
            zeros = planes.new_zeros(planes.shape[1:], dtype=weight.dtype)
            return zeros if needs_input else None, torch.zeros_like(weight) if needs_weight else None
        if needs_weight:
            counts = _counts(planes, weight.dtype)
        elif needs_input:
            counts = weight.new_empty(()).expand(planes.shape[1:])  # only its shape is looked at
        else:
            return None, None
        grad_input, grad_weight, _ = torch.ops.aten.convolution_backward.default(
            grad, counts, weight, None, self.stride, self.padding, self.dilation, False, [0] * len(self.stride),
            self.groups, [needs_input, needs_weight, False],
        )  # fmt: skip
        return grad_input, grad_weight


Product = Linear | Conv
LINEAR = Linear()


def channels_last(x: Tensor) -> Tensor:
    """A convolution's input or weight [B, C, H, W], laid out so that the channels of its result are innermost too.

    ``contiguous(memory_format=torch.channels_last)`` leaves a tensor with one channel as it is, and torch then gives
    the result another layout than neurons have, several times slower on the CPU.
    """
    if x.dim() != 4:
        return x
    return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def conv_product(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any) -> tuple[Conv, list[int]]:
    """The convolution with these arguments, as torch.nn.functional takes them, and the padding x needs beforehand.

    Ops pad both sides alike. "same" with an even kernel needs one more on the right: that is F.pad's list for x, empty
    as a rule.
    """
    dims = weight.dim() - 2
    stride = checks.ints("stride", stride, dims, least=1)
    dilation = checks.ints("dilation", dilation, dims, least=1)
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"groups: expected a positive int, got {groups!r}")
    extra: list[int] = []
    if padding == "valid":
        padding = (0,) * dims
    elif padding == "same":
        if any(s != 1 for s in stride):
            raise ValueError(f"padding: 'same' needs stride 1, got stride {stride}")
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = tuple(t // 2 for t in total)
        if any(t % 2 for t in total):
            extra = [side for t in reversed(total) for side in (0, t % 2)]
    elif isinstance(padding, str):
        raise ValueError(f"padding: expected an int, {dims} ints, 'same' or 'valid', got {padding!r}")
    else:
        padding = checks.ints("padding", padding, dims, least=0)
    return Conv(stride, padding, dilation, groups), extra
