"""Layers with batch norm in training.

The product is normalised by the statistics of the batch, for the currents and for the gradients alike. In evaluation
batch norm is a scale and a shift, which the plain layers take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .. import checks
from ..ops import compute_dtype
from ..train import SpikeTrain
from .autograd import Gradients, Saved, apply, fire_direct, gate_grad, keep, kept, neuron_gradients
from .conv import Size1, Size2
from .layer import Input, Result, autocast, pad, source_of
from .neuron import Neurons, Settings, cast, make_neurons, needs_grad, train_of
from .products import LINEAR, Product, conv_product


def linear_bn_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    threshold: float | Tensor = 1.0,
    leak: float = 1.0,
    v_init: float | Tensor = 0.0,
    residual: SpikeTrain | Tensor | None = None,
    gate: str = "relu",
    steps: int | None = None,
    return_v: bool = False,
) -> tuple[Result, Tensor, Tensor]:
    """:func:`linear_if` with batch norm in training.

    With u = gain·W c, z = γ·(u - mean(u))/√(var(u) + eps) + β + Σ residual. The statistics are those of the batch, over
    samples and space, and gradients flow through them as in ``torch.nn.BatchNorm``.

    Args:
        x, weight: as in :func:`linear_if`.
        bias: [N]. It cancels in z and only moves the mean that is returned.
        gamma, beta: [N], default 1 and 0. beta is for the whole window.
        eps: added to the variance.
        threshold, leak, v_init, residual, gate, steps, return_v: as in :func:`linear_if`.

    Returns:
        (train, mean, var), with ``return_v`` ((train, v), mean, var). mean and var [N] are the statistics of
        gain·W c + bias, for the running statistics; var is the biased one. They have no gradient.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`linear_if`; also for a batch that has one value per channel, or
            none.

    >>> x = te.SpikeTrain.from_dense(torch.tensor([[[0.0], [1.0]]]))
    >>> train, mean, var = te.functional.linear_bn_if(x, torch.tensor([[4.0]]))
    >>> train.counts.tolist(), mean, var
    ([[0.0], [0.0]], tensor([2.]), tensor([4.]))
    """
    checks.signal("x", x)
    checks.weight("weight", weight, 2, "[N, K]")
    return _bn_layer(
        x, LINEAR, weight, bias, gamma, beta, eps, residual, threshold, leak, v_init, gate, steps, return_v
    )


def conv1d_bn_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    stride: Size1 = 1,
    padding: Size1 | str = 0,
    dilation: Size1 = 1,
    groups: int = 1,
    *,
    eps: float = 1e-5,
    threshold: float | Tensor = 1.0,
    leak: float = 1.0,
    v_init: float | Tensor = 0.0,
    residual: SpikeTrain | Tensor | None = None,
    gate: str = "relu",
    steps: int | None = None,
    return_v: bool = False,
) -> tuple[Result, Tensor, Tensor]:
    """:func:`conv1d_if` with batch norm in training; arguments, results and errors as in :func:`linear_bn_if`.

    >>> x = te.SpikeTrain.from_dense(torch.tensor([[[[0.0, 1.0]]]]))
    >>> train, mean, var = te.functional.conv1d_bn_if(x, torch.tensor([[[4.0]]]))
    >>> train.shape, mean, var
    (torch.Size([1, 1, 2]), tensor([2.]), tensor([4.]))
    """
    checks.signal("x", x)
    checks.weight("weight", weight, 3, "[N, K/groups, k]")
    product, sides = conv_product(weight, stride, padding, dilation, groups)
    return _bn_layer(
        pad(x, sides) if sides else x, product, weight, bias, gamma, beta, eps,
        residual, threshold, leak, v_init, gate, steps, return_v,
    )  # fmt: skip


def conv2d_bn_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    *,
    eps: float = 1e-5,
    threshold: float | Tensor = 1.0,
    leak: float = 1.0,
    v_init: float | Tensor = 0.0,
    residual: SpikeTrain | Tensor | None = None,
    gate: str = "relu",
    steps: int | None = None,
    return_v: bool = False,
) -> tuple[Result, Tensor, Tensor]:
    """:func:`conv2d_if` with batch norm in training; arguments, results and errors as in :func:`linear_bn_if`.

    >>> x = te.SpikeTrain.from_dense(torch.tensor([[[[[0.0, 1.0]]]]]))
    >>> train, mean, var = te.functional.conv2d_bn_if(x, torch.tensor([[[[4.0]]]]))
    >>> train.shape, mean, var
    (torch.Size([1, 1, 1, 2]), tensor([2.]), tensor([4.]))
    """
    checks.signal("x", x)
    checks.weight("weight", weight, 4, "[N, K/groups, kh, kw]")
    product, sides = conv_product(weight, stride, padding, dilation, groups)
    return _bn_layer(
        pad(x, sides) if sides else x, product, weight, bias, gamma, beta, eps,
        residual, threshold, leak, v_init, gate, steps, return_v,
    )  # fmt: skip


def _bn_layer(
    x: Input,
    product: Product,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    residual: SpikeTrain | Tensor | None,
    *neuron: Any,
) -> tuple[Result, Tensor, Tensor]:
    shape = product.output_shape(x.shape, weight)
    checks.same_device("x", x, "weight", weight.device)
    checks.eps(eps)
    checks.batch_norm(shape)
    device, dtype, channels = weight.device, compute_dtype(weight.dtype), shape[1]
    for name, value in (("bias", bias), ("gamma", gamma), ("beta", beta)):
        if value is not None:
            checks.per_channel(name, value, channels, device)
    weight = autocast(weight)
    if residual is x:  # Dynamo wants the arguments of a Function to be different tensors
        residual = x.map(lambda t: t.view_as(t))
    neurons = make_neurons(weight, x.T, shape, residual, *neuron)
    gamma = None if gamma is None else cast(gamma, dtype)
    beta = None if beta is None else cast(beta, dtype)
    if neurons.theta is not None:
        unit = neurons.theta.detach()
        gamma = 1 / unit if gamma is None else gamma / unit
        beta = None if beta is None else beta / unit
    gain = None
    if isinstance(x.gain, Tensor):
        gain = cast(x.gain, dtype)
    elif x.gain != 1.0:
        gain = torch.full((), x.gain, dtype=dtype, device=device)

    if isinstance(x, SpikeTrain):
        grad = torch.is_grad_enabled() and needs_grad(x.edge, weight, gain, gamma, beta, *neurons[:4])
        if grad:
            outputs = apply(ProductBNIF, x.edge, weight, gain, gamma, beta, eps, x.planes, product, *neurons)
        else:
            outputs = product.fire_bn(x.planes, weight, gain, gamma, beta, eps, neurons)
    else:
        checks.direct_dtype(x.x, weight)
        y = product.direct(x.x, weight)
        grad = torch.is_grad_enabled() and needs_grad(y, gain, gamma, beta, *neurons[:4])
        outputs = apply(DirectBNIF, y, gain, gamma, beta, eps, source_of(x), *neurons)
    *_, mean, var = outputs
    with torch.no_grad():
        if gain is not None:
            mean, var = gain * mean, gain * gain * var
        if bias is not None:
            mean = mean + cast(bias, dtype)
    return train_of(outputs, neurons, weight.dtype, grad), mean, var


def _bn_gradients(
    ctx: Any,
    saved: Saved,
    grad: Tensor,
    u: Tensor,
    mean: Tensor,
    var: Tensor,
    gain: Tensor | None,
    gamma: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of u, gain, gamma and beta; ``needs`` says which of the last three are asked for."""
    grad_u, grad_gamma, grad_beta = torch.ops.tandem.bn_grad.default(
        grad, saved.mask, u, mean, var, gain, gamma, ctx.eps, ctx.settings.threshold
    )
    needs_gain, needs_gamma, needs_beta = needs
    # z depends on the product gain·u, so both factors see its gradient, grad_u / gain.
    grad_gain = (grad_u * u).sum() / gain if needs_gain else None
    return grad_u, grad_gain, grad_gamma if needs_gamma else None, grad_beta if needs_beta else None


def _neuron_gradients(ctx: Any, saved: Saved, grad: Tensor) -> Gradients:
    if not any(ctx.needs_input_grad[-6:-2]):
        return (None,) * 6
    return neuron_gradients(ctx, saved, gate_grad(ctx, saved, grad))


class ProductBNIF(Function):
    """Neurons driven by a batch-normalised product u with spikes. Kept for the backward pass: u, besides the input."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        edge: Tensor | None,
        weight: Tensor,
        gain: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
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
        return product.fire_bn(planes, weight, gain, gamma, beta, eps, neurons)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, weight, gain, gamma, _, eps, planes, product, *neurons = inputs
        *_, u, mean, var = output
        ctx.product, ctx.eps = product, eps
        keep(ctx, Neurons(*neurons), output, planes, weight, u, mean, var, gain, gamma)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _planes: None, grad: Tensor | None, *_: None) -> Gradients:
        if grad is None:
            return (None,) * 14
        saved, (planes, weight, u, mean, var, gain, gamma) = kept(ctx)
        needs_edge, needs_weight, *needs = ctx.needs_input_grad[:5]
        grad_u, grad_gain, grad_gamma, grad_beta = _bn_gradients(ctx, saved, grad, u, mean, var, gain, gamma, needs)
        grad_edge, grad_weight = ctx.product.gradients(
            cast(grad_u, grad.dtype), planes, weight, needs_edge, needs_weight
        )
        head = grad_edge, grad_weight, grad_gain, grad_gamma, grad_beta, None, None, None
        return *head, *_neuron_gradients(ctx, saved, grad)


class DirectBNIF(Function):
    """Neurons driven by a batch-normalised current y that is constant or an impulse: u = T·y or y."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor,
        gain: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        eps: float,
        source: str,
        residual: Tensor | None,
        residual_edge: Tensor | None,
        residual_scale: Tensor | None,
        theta: Tensor | None,
        v_init: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, ...]:
        neurons = Neurons(residual, residual_edge, residual_scale, theta, v_init, settings)
        mean, var, scale, shift = torch.ops.tandem.bn_statistics.default(
            cast(y, compute_dtype(y.dtype)), _steps(source, neurons.settings.T), gain, gamma, beta, eps
        )
        return *fire_direct(y, source, scale, shift, neurons, True), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        y, gain, gamma, _, eps, source, *neurons = inputs
        *_, mean, var = output
        ctx.source, ctx.eps = source, eps
        keep(ctx, Neurons(*neurons), output, y, mean, var, gain, gamma)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _planes: None, grad: Tensor | None, *_: None) -> Gradients:
        if grad is None:
            return (None,) * 12
        saved, (y, mean, var, gain, gamma) = kept(ctx)
        # u = k·y, so gain·u is a product of y with the gain k·gain.
        k = _steps(ctx.source, ctx.settings.T)
        wide, total_gain = cast(y, compute_dtype(y.dtype)), torch.full_like(mean, k) if gain is None else k * gain
        needs = ctx.needs_input_grad[1:4]
        grad_y, grad_gain, grad_gamma, grad_beta = _bn_gradients(
            ctx, saved, grad, wide, mean / k, var / k**2, total_gain, gamma, needs
        )
        grad_y, grad_gain = cast(grad_y, y.dtype), None if grad_gain is None else k * grad_gain
        return grad_y, grad_gain, grad_gamma, grad_beta, None, None, *_neuron_gradients(ctx, saved, grad)


def _steps(source: str, T: int) -> int:
    """How often a current flows."""
    return T if source == "constant" else 1
