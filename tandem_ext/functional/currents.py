"""Products without neurons, and values that stand for others, with the ANN's gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..ops import counts_dtype
from .autograd import channel_sum, once_differentiable
from .neuron import cast, over_inputs
from .products import Product


class WindowProduct(Function):
    """u = W c by the kernel, with the ANN's gradients. ``edge``, the input's counts, only receives a gradient.

    The product W o of an offset is rounded, then added.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        edge: Tensor | None,
        weight: Tensor,
        stored: Tensor,
        offset: Tensor | None,
        T: int,
        timing: str,
        product: Product,
    ) -> Tensor:
        x, geometry = product.padded(stored), product.geometry()
        u: Tensor = torch.ops.tandem.window_product.default(x, T, weight, *geometry, timing)
        return u if offset is None else u.add_(cast(product.of_offset(offset, weight), u.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, weight, stored, offset, ctx.T, ctx.timing, ctx.product = inputs
        ctx.save_for_backward(weight, stored, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (weight, stored, offset), needs = ctx.saved_tensors, ctx.needs_input_grad
        dtype = counts_dtype(weight.dtype, ctx.T)
        gradients = ctx.product.gradients(
            cast(grad, dtype), stored, ctx.timing, cast(weight, dtype), needs[0], needs[1], offset
        )
        return *gradients, None, None, None, None, None


class RealProduct(Function):
    """Return ``value``, with the gradients of the product of real numbers x [B, *features] plus a bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, value: Tensor, product: Product) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, _, ctx.product = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x, weight), needs = ctx.saved_tensors, ctx.needs_input_grad
        stored, weight = x.unsqueeze(0), cast(weight, grad.dtype)  # as the counts of a window are stored
        gradients = ctx.product.gradients(grad, stored, "window", weight, needs[0], needs[1])
        return *gradients, channel_sum(grad) if needs[2] else None, None, None


class StraightThrough(Function):
    """Return ``value``; its gradient goes to ``weight``, divided by the quantisation step, if there is one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, value: Tensor, step: Tensor | None) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (step,) = ctx.saved_tensors
        return grad if step is None else grad / over_inputs(step, grad), None, None
