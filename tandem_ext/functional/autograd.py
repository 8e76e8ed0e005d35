"""The backward pass of the tandem rule: one autograd Function for all layers with neurons.

For the backward pass a layer keeps the planes of its input, its weight, and the gate, one bit per neuron. (With timing
"window", "planes" are counts as bytes, here and in all names.) The gradient of the output's counts gives the gradient
of the ANN's pre-activation, grad_z = gate·grad/ϑ. The rest is the ordinary backward pass of the ANN at the real counts
of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ..ops import compute_dtype, counts_dtype
from ..planes import counts_of
from .neuron import cast, over_inputs, over_space
from .products import Product
from .settings import Static

_ops = torch.ops.tandem
_linear_if, _conv_if, _bn_if = _ops.linear_if.default, _ops.conv_if.default, _ops.bn_if.default
_GIVEN = {"train": _ops.if_scan.default, "constant": _ops.constant_if.default, "impulse": _ops.impulse_if.default}


def apply(function: type[Function], *arguments: Any) -> Any:
    """Call ``function.apply``, in plain eager mode without binding arguments to its signature, which takes 20 µs."""
    transformed = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling():
        if transformed:
            # Dynamo takes an argument of torch.func.grad for a constant without a backward pass, unless it is a view.
            arguments = tuple(t.view_as(t) if isinstance(t, Tensor) else t for t in arguments)
        return function.apply(*arguments)
    plain: Any = super(Function, function)
    try:
        return function.apply(*arguments) if transformed else plain.apply(*arguments)
    except NotImplementedError as error:
        if "jvp" not in str(error):
            raise
        raise NotImplementedError(
            "forward-mode derivatives (jvp, jacfwd, dual numbers) of spiking layers are not supported: use reverse mode"
        ) from error


class _First(Function):
    """Return the first ``number`` tensors unchanged; differentiating them raises an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:number])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("second derivatives of spiking layers are not supported: use those of the ANN, to_ann(net)")


def once_differentiable(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """A decorator like torch's, but second derivatives always raise an error.

    With torch's decorator, ``torch.func`` and ``torch.autograd.grad`` return incomplete second derivatives without an
    error. Here the gradients stay connected to the tensors they depend on, through a Function that cannot be
    differentiated.
    """

    @wraps(backward)
    def first(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            gradients = backward(ctx, *grads)
        if torch.compiler.is_compiling():
            return gradients
        made = [gradient for gradient in gradients if gradient is not None]
        sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.is_floating_point()]
        refusing = iter(apply(_First, len(made), *made, *sources))
        return tuple(None if gradient is None else next(refusing) for gradient in gradients)

    return first


class Inputs(NamedTuple):
    """The arguments of :class:`Fire`. The same fields also hold which arguments need gradients, and these gradients."""

    edge: Any = None  # the counts of the input, for the gradient only; or the given currents
    weight: Any = None
    scale: Any = None  # with batch norm: the gain of the product, for all or per channel
    shift: Any = None  # with batch norm: gamma
    beta: Any = None
    planes: Any = None
    residual: Any = None  # this and the next four are the fields of Tensors
    residual_edge: Any = None
    residual_scale: Any = None
    theta: Any = None
    v_init: Any = None
    bad: Any = None
    static: Any = None
    train: Any = None  # whether the op makes what the backward pass needs


class Saved(NamedTuple):
    """The tensors saved for the backward pass; None where no gradient needs them."""

    mask: Tensor
    planes: Any
    weight: Any
    scale: Any  # with batch norm: the gain
    gamma: Any
    u: Any  # the input of batch norm, W c; or the given currents
    mean: Any
    var: Any
    residual: Any
    residual_scale: Any
    theta: Any
    spikes: Any


def run(
    edge: Any,
    weight: Any,
    scale: Any,
    shift: Any,
    beta: Any,
    planes: Any,
    residual: Any,
    residual_edge: Any,
    residual_scale: Any,
    theta: Any,
    v_init: Any,
    bad: Any,
    static: Static,
    train: bool,
) -> Any:
    """Call the op of a layer with :class:`Inputs`; return (planes, counts, mask, v, [[product,] mean, var,] bad)."""
    source, T, return_v, eps, few_bits, *numbers, timing = static
    neuron = *numbers, timing == "window"  # in torch 2.10 Dynamo takes `numbers` for a tuple
    more = () if residual is None and v_init is None else (residual, residual_scale, v_init)
    if isinstance(source, Product):
        if few_bits and weight.dtype == torch.float32:
            weight = weight.to(torch.int8)
        if eps is not None:
            norm = (scale, shift, beta, eps)
            return _bn_if(planes, T, weight, *source.geometry(), *norm, *neuron, return_v, bad, *more)
        product = (planes, T, weight, *source.geometry()) if source.stride else (planes, T, weight)
        op = _conv_if if source.stride else _linear_if
        return op(*product, *neuron, train, return_v, scale, shift, bad, *more)
    statistics: tuple[Tensor, ...] = ()
    if eps is not None:
        wide = cast(edge, compute_dtype(edge.dtype))
        *statistics, scale, shift = _ops.bn_statistics.default(wide, _times(static), scale, shift, beta, eps)
    given = (edge,) if source == "train" else (edge, T)
    *outputs, bad = _GIVEN[source](*given, *neuron, train, return_v, scale, shift, bad, *more)
    return *outputs, *statistics, bad


def _times(static: Static) -> int:
    """The number of steps in which a given current flows."""
    return static.T if static.source == "constant" else 1


class Fire(Function):
    """A layer of neurons; see :func:`run`. Only its counts have a gradient. Dynamo needs named parameters."""

    generate_vmap_rule = True
    forward = staticmethod(run)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        needs, given = Inputs(*ctx.needs_input_grad), Inputs(*inputs)
        spikes, _, mask, *others = output
        _, *norm, _ = others  # between the potentials and bad
        normed, product = given.static.eps is not None, isinstance(given.static.source, Product)
        *made, mean, var = norm or (None, None)
        u = made[0] if made else given.edge if not product and (normed or needs.scale) else None
        ctx.save_for_backward(  # the fields of Saved
            mask,
            given.planes,
            given.weight,
            given.scale,
            given.shift if normed else None,
            u,
            mean,
            var,
            given.residual if needs.residual_scale else None,
            given.residual_scale if needs.residual or needs.residual_edge else None,
            given.theta if needs.theta else None,
            spikes if needs.theta else None,
        )
        ctx.static = given.static
        ctx.mark_non_differentiable(spikes, mask, *[other for other in others if other is not None])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _planes: None, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        if grad is None:
            return tuple(Inputs())
        needs, saved, static = Inputs(*ctx.needs_input_grad), Saved(*ctx.saved_tensors), ctx.static
        neurons = needs.residual or needs.residual_edge or needs.residual_scale or needs.theta
        grad_z: Any = None  # gate·grad/ϑ; batch norm's op computes its own
        if static.eps is None or neurons:
            grad_z = _ops.gate_grad.default(grad, saved.mask, static.threshold)
        if static.eps is not None:
            gradients = _through_norm(needs, saved, static, grad)
        elif isinstance(static.source, Product):
            gradients = _through_product(needs, saved, static, grad_z)
        else:
            gradients = _through_currents(needs, saved, static, grad_z)
        if neurons:
            gradients = _with_neurons(gradients, needs, saved, static, grad_z)
        return tuple(gradients)  # Dynamo drops gradients returned as a NamedTuple


def _through_product(needs: Inputs, saved: Saved, static: Static, grad_z: Tensor) -> Inputs:
    """The gradients of scale·(W c) + shift."""
    product: Any = static.source
    planes, scale = saved.planes, saved.scale
    weight = cast(saved.weight, grad_z.dtype)  # differs for int8, and for half types that cannot hold the counts
    grad_shift = channel_sum(grad_z) if needs.shift else None
    direct = needs.weight and not needs.scale
    grad_edge, grad_weight = product.gradients(scaled(grad_z, scale), planes, static.timing, weight, needs.edge, direct)
    if not needs.scale:
        return Inputs(grad_edge, grad_weight, None, grad_shift)
    weight, wide = cast(weight, scale.dtype), cast(grad_z, scale.dtype)  # large terms of grad_scale may cancel
    _, raw = product.gradients(wide, planes, static.timing, weight, False, True)
    grad_scale = (weight * raw).flatten(1).sum(1)
    grad_weight = cast(raw * over_inputs(scale, raw), grad_z.dtype) if needs.weight else None
    return Inputs(grad_edge, grad_weight, grad_scale, grad_shift)


def _through_currents(needs: Inputs, saved: Saved, static: Static, grad_z: Tensor) -> Inputs:
    """The gradients of scale·Σ y + shift. All steps share one gradient, as an expanded view."""
    y, times = saved.u, _times(static)
    grad_y = grad_scale = None
    if needs.edge:
        grad_y = scaled(grad_z, saved.scale, times)
        grad_y = grad_y.expand(static.T, *grad_y.shape) if static.source == "train" else grad_y
    if needs.scale:
        dtype = saved.scale.dtype
        total = y.sum(0, dtype=dtype) if static.source == "train" else times * cast(y, dtype)
        grad_scale = channel_sum(grad_z * total)
    return Inputs(grad_y, None, grad_scale, channel_sum(grad_z) if needs.shift else None)


def _through_norm(needs: Inputs, saved: Saved, static: Static, grad: Tensor) -> Inputs:
    """The gradients of batch norm of gain·u by batch statistics; u is W c or the sum of the given currents."""
    mean, var, gain, times = saved.mean, saved.var, saved.scale, _times(static)
    if times > 1:  # gain·u = (times·gain)·y
        gain = torch.full_like(mean, times) if gain is None else times * gain
        mean, var = mean / times, var / times**2
    u = cast(saved.u, mean.dtype)
    exact = needs.scale or not isinstance(static.source, Product)  # else grad_u becomes the dtype of grad anyway
    grad_counts = cast(grad, mean.dtype) if exact else grad
    grad_u, grad_gamma, grad_beta = _ops.bn_grad.default(
        grad_counts, saved.mask, u, mean, var, gain, saved.gamma, static.eps, static.threshold
    )
    grad_gain = None
    if needs.scale:  # both factors of gain·u receive its gradient, grad_u / gain
        grad_gain = grad_u * u
        grad_gain = (channel_sum(grad_gain) if gain.dim() else grad_gain.sum()) / gain * times
    if isinstance(static.source, Product):
        weight, grad_u = cast(saved.weight, grad.dtype), cast(grad_u, grad.dtype)
        grad_edge, grad_weight = static.source.gradients(
            grad_u, saved.planes, static.timing, weight, needs.edge, needs.weight
        )
    else:
        grad_edge, grad_weight = cast(grad_u, saved.u.dtype), None
    return Inputs(
        grad_edge, grad_weight, grad_gain, grad_gamma if needs.shift else None, grad_beta if needs.beta else None
    )


def _with_neurons(gradients: Inputs, needs: Inputs, saved: Saved, static: Static, grad_z: Tensor) -> Inputs:
    """Add the gradients of the neurons' tensors."""
    residual = edge = residual_scale = theta = None
    dtype = compute_dtype(grad_z.dtype)
    if needs.residual or needs.residual_edge:
        edge = scaled(grad_z, saved.residual_scale)
        steps = 1 if static.timing == "window" else static.T
        residual = edge.expand(steps, *grad_z.shape) if needs.residual else None
    if needs.residual_scale:
        residual_scale = channel_sum(grad_z * counts_of(saved.residual, static.timing, dtype))
    if needs.theta:
        theta = -channel_sum(grad_z * counts_of(saved.spikes, static.timing, dtype)) / saved.theta
    edge = edge if needs.residual_edge else None
    return gradients._replace(residual=residual, residual_edge=edge, residual_scale=residual_scale, theta=theta)


class WindowProduct(Function):
    """u = W c by the kernel, with the ANN's gradients. ``edge``, the input's counts, only receives a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(edge: Tensor | None, weight: Tensor, stored: Tensor, T: int, timing: str, product: Product) -> Tensor:
        return _ops.window_product.default(stored, T, weight, *product.geometry(), timing == "window")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, weight, stored, ctx.T, ctx.timing, ctx.product = inputs
        ctx.save_for_backward(weight, stored)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (weight, stored), needs = ctx.saved_tensors, ctx.needs_input_grad
        dtype = counts_dtype(weight.dtype, ctx.T)
        gradients = ctx.product.gradients(
            cast(grad, dtype), stored, ctx.timing, cast(weight, dtype), needs[0], needs[1]
        )
        return *gradients, None, None, None, None


def channel_sum(grad: Tensor) -> Tensor:
    """[B, C, *space] -> [C] in the compute dtype; [B] -> [1]."""
    dtype = compute_dtype(grad.dtype)
    if grad.dim() < 2:
        return grad.sum(0, keepdim=True, dtype=dtype)
    return grad.sum([d for d in range(grad.dim()) if d != 1], dtype=dtype)


def scaled(grad: Tensor, scale: Tensor | None, times: int = 1) -> Tensor:
    """Return times·scale·grad in the dtype of grad."""
    if scale is None:
        return grad if times == 1 else times * grad
    return cast(grad * over_space(scale if times == 1 else times * scale, grad.shape), grad.dtype)
