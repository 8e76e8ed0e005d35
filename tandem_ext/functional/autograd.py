"""The tandem rule's backward pass, as autograd Functions around the ops.

A layer keeps the planes of its input, its weight and one bit per neuron, the gate; nothing else over time. From the
gradient of the counts, grad_z = gate·grad/ϑ takes the place of the gradient of the ANN's pre-activation, and the rest
is the ordinary backward pass of that ANN at the real counts of the input.

All Functions end with the fields of :class:`Neurons` as arguments, and begin their outputs with (planes, counts, mask,
v), of which only counts has a gradient. Each field is a parameter of its own: Dynamo counts them where no gradient is
needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..ops import compute_dtype
from .neuron import Neurons, Settings, cast, over_inputs, over_space
from .products import Product

Gradients = tuple[Tensor | None, ...]


def apply(function: type[Function], *arguments: Any) -> Any:
    """``function.apply``. In plain eager mode without its binding of the arguments to a signature: 20 µs a call."""
    transformed = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling() and transformed:
        # Dynamo takes an argument of torch.func.grad for a constant, and leaves out the backward pass, but not a view.
        arguments = tuple(t.view_as(t) if isinstance(t, Tensor) else t for t in arguments)
    if torch.compiler.is_compiling() or transformed:
        return function.apply(*arguments)
    return super(Function, function).apply(*arguments)  # type: ignore[misc]


def keep(ctx: Any, neurons: Neurons, outputs: tuple[Tensor, ...], *tensors: Tensor | None) -> None:
    """Save for the backward pass what the neurons need, and ``tensors``; nothing that no gradient asks for."""
    planes, _, mask, *others = outputs
    needs_residual, needs_edge, needs_residual_scale, needs_theta = ctx.needs_input_grad[-6:-2]
    ctx.save_for_backward(
        mask,
        neurons.residual_scale if needs_residual or needs_edge else None,
        neurons.residual if needs_residual_scale else None,
        neurons.theta if needs_theta else None,
        planes if needs_theta else None,
        *tensors,
    )
    ctx.settings = neurons.settings
    ctx.mark_non_differentiable(planes, mask, *others)
    ctx.set_materialize_grads(False)


class Saved(NamedTuple):
    """What :func:`keep` saved for the neurons."""

    mask: Tensor
    residual_scale: Tensor | None
    residual: Tensor | None
    theta: Tensor | None
    planes: Tensor | None


def kept(ctx: Any) -> tuple[Saved, tuple[Any, ...]]:
    """What :func:`keep` saved: the neurons' tensors, and the ``tensors`` given to it.

    To be called once in a backward pass: activation checkpointing gives saved tensors a single time.
    """
    saved = ctx.saved_tensors
    return Saved(*saved[:5]), saved[5:]


def gate_grad(ctx: Any, saved: Saved, grad: Tensor, times: int = 1) -> Tensor:
    """grad_z = gate·grad/ϑ, ``times`` a power of two, which changes no rounding."""
    grad_z: Tensor = torch.ops.tandem.gate_grad.default(grad, saved.mask, ctx.settings.threshold / times)
    return grad_z


def neuron_gradients(ctx: Any, saved: Saved, grad_z: Tensor) -> Gradients:
    """The gradients of the fields of :class:`Neurons`."""
    _, residual_scale, residual, theta, planes = saved
    needs_residual, needs_edge, needs_residual_scale, _ = ctx.needs_input_grad[-6:-2]
    grad_residual = grad_edge = grad_residual_scale = grad_theta = None
    if needs_residual:
        grad_residual = scaled(grad_z, residual_scale).expand(ctx.settings.T, *grad_z.shape)
    if needs_edge:
        grad_edge = scaled(grad_z, residual_scale)
    if needs_residual_scale:
        grad_residual_scale = channel_sum(grad_z * torch.ops.tandem.counts.default(residual, grad_z.dtype))
    if theta is not None:
        grad_theta = -channel_sum(grad_z * torch.ops.tandem.counts.default(planes, grad_z.dtype)) / theta
    return grad_residual, grad_edge, grad_residual_scale, grad_theta, None, None


def channel_sum(grad: Tensor) -> Tensor:
    """[B, C, *space] -> [C] in the compute dtype; [B] -> [1]."""
    dtype = compute_dtype(grad.dtype)
    if grad.dim() < 2:
        return grad.sum(0, keepdim=True, dtype=dtype)
    return grad.sum([d for d in range(grad.dim()) if d != 1], dtype=dtype)


def scaled(grad: Tensor, scale: Tensor | None) -> Tensor:
    """scale·grad, in the type of grad."""
    return grad if scale is None else (grad * over_space(scale, grad.shape)).to(grad.dtype)


class ProductIF(Function):
    """Neurons driven by a product with spikes. ``edge`` is the counts of the input, a path for the gradient only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        edge: Tensor | None,
        weight: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        planes: Tensor,
        product: Product,
        residual: Tensor | None,
        residual_edge: Tensor | None,
        residual_scale: Tensor | None,
        theta: Tensor | None,
        v_init: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, ...]:
        neurons = Neurons(residual, residual_edge, residual_scale, theta, v_init, settings)
        return product.fire(planes, weight, scale, shift, neurons, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, weight, scale, _, planes, product, *neurons = inputs
        ctx.product = product
        keep(ctx, Neurons(*neurons), output, planes, weight, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _planes: None, grad: Tensor | None, *_: None) -> Gradients:
        if grad is None:
            return (None,) * 12
        saved, (planes, weight, scale) = kept(ctx)
        weight = cast(weight, grad.dtype)  # int8
        needs_edge, needs_weight, needs_scale, needs_shift = ctx.needs_input_grad[:4]
        grad_z = gate_grad(ctx, saved, grad)
        grad_scale = None
        if needs_scale:
            _, raw = ctx.product.gradients(grad_z, planes, weight, False, True)
            grad_scale = (weight * raw).flatten(1).sum(1, dtype=scale.dtype)
            grad_weight = (raw * over_inputs(scale, raw)).to(raw.dtype) if needs_weight else None
            grad_edge, _ = ctx.product.gradients(scaled(grad_z, scale), planes, weight, needs_edge, False)
        else:
            grad_product = scaled(grad_z, scale)
            grad_edge, grad_weight = ctx.product.gradients(grad_product, planes, weight, needs_edge, needs_weight)
        grad_shift = channel_sum(grad_z) if needs_shift else None
        return grad_edge, grad_weight, grad_scale, grad_shift, None, None, *neuron_gradients(ctx, saved, grad_z)


def fire_direct(
    y: Tensor, source: str, scale: Tensor | None, shift: Tensor | None, neurons: Neurons, train: bool
) -> tuple[Tensor, ...]:
    """The op for currents y: a "train" of them, or one that is "constant" or an "impulse"."""
    residual, _, residual_scale, _, v_init, (T, steps, threshold, leak, gate, return_v) = neurons
    arguments = (scale, shift, residual, residual_scale, v_init, steps, threshold, leak, gate, train, return_v)
    if source == "train":
        return torch.ops.tandem.if_scan.default(y, *arguments)  # type: ignore[no-any-return]
    op = torch.ops.tandem.constant_if if source == "constant" else torch.ops.tandem.impulse_if
    return op.default(y, T, *arguments)  # type: ignore[no-any-return]


class ScanIF(Function):
    """Neurons driven by given currents y, of which there are T, or one (see :func:`fire_direct`)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        source: str,
        residual: Tensor | None,
        residual_edge: Tensor | None,
        residual_scale: Tensor | None,
        theta: Tensor | None,
        v_init: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, ...]:
        neurons = Neurons(residual, residual_edge, residual_scale, theta, v_init, settings)
        return fire_direct(y, source, scale, shift, neurons, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        y, scale, _, source, *neurons = inputs
        ctx.source = source
        keep(ctx, Neurons(*neurons), output, y if ctx.needs_input_grad[1] else None, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _planes: None, grad: Tensor | None, *_: None) -> Gradients:
        if grad is None:
            return (None,) * 10
        saved, (y, scale) = kept(ctx)
        needs_y, needs_scale, needs_shift = ctx.needs_input_grad[:3]
        T = ctx.settings.T
        steps = T if ctx.source == "constant" else 1  # in which the one current y arrives
        times = steps if steps & (steps - 1) == 0 else 1
        grad_y = grad_scale = grad_shift = None
        grad_steps = gate_grad(ctx, saved, grad, times)  # times grad_z
        if needs_y:
            grad_y = scaled(grad_steps, scale)
            if ctx.source == "train":
                grad_y = grad_y.expand(T, *grad_y.shape)
            elif times != steps:
                grad_y = steps * grad_y
        if needs_scale:
            total = y.sum(0) if ctx.source == "train" else y if times == steps else steps * y
            grad_scale = channel_sum(grad_steps * total)
        if needs_shift:
            grad_shift = channel_sum(grad_steps) / times
        grad_z = grad_steps / times if times > 1 and any(ctx.needs_input_grad[-6:-2]) else grad_steps
        return grad_y, grad_scale, grad_shift, None, *neuron_gradients(ctx, saved, grad_z)
