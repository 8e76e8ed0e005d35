"""The backward pass of the tandem rule: one autograd Function for all layers with neurons.

For the backward pass a layer keeps what its input's train stores, its weight, and the gate, one bit per neuron. The
gradient of the output's counts gives the gradient of the ANN's pre-activation, grad_z = gate·grad/ϑ. The rest is the
ordinary backward pass of the ANN at the real counts of the input.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import eager_apply, forward_mode_active, transforms_active
from ..ops import compute_dtype
from ..planes import counts_of
from .neuron import cast, over, over_inputs, over_space
from .products import Product

_ops = torch.ops.tandem
_linear_if, _conv_if, _bn_if = _ops.linear_if.default, _ops.conv_if.default, _ops.bn_if.default
_GIVEN = {"train": _ops.if_scan.default, "constant": _ops.constant_if.default, "impulse": _ops.impulse_if.default}


def apply(function: type[Function], *arguments: Any) -> Any:
    """Call ``function.apply`` as fast as the mode allows, its forward pass alone if no gradient can be asked for.

    Forward-mode derivatives raise an error that names them.
    """
    transformed = transforms_active()
    if torch.compiler.is_compiling():
        if transformed:
            # Dynamo takes an argument of torch.func.grad for a constant without a backward pass, unless it is a view.
            arguments = tuple(t.view_as(t) if isinstance(t, Tensor) else t for t in arguments)
        return function.apply(*arguments)
    if not (transformed or torch.is_grad_enabled() or forward_mode_active()):
        return function.forward(*arguments)
    try:
        return function.apply(*arguments) if transformed else eager_apply(function)(*arguments)
    except NotImplementedError as error:
        if not forward_mode_active():
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
        present = [gradient for gradient in gradients if gradient is not None]
        sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.is_floating_point()]
        refusing = iter(apply(_First, len(present), *present, *sources))
        return tuple(None if gradient is None else next(refusing) for gradient in gradients)

    return first


Gradients = dict[str, Any]  # by the names of the fields of Call


class Call(NamedTuple):
    """The arguments of :class:`Fire`, or which of them need gradients."""

    # the arguments of an op in their order, first those of the product, last those that most calls leave out
    stored: Any
    T: Any
    weight: Any
    neuron: Any  # (steps, threshold, leak, gate, timing), as TANDEM_NEURON_FIELDS in csrc/ops/fields.h
    return_v: Any
    scale: Any
    shift: Any
    bad: Any
    residual: Any
    residual_scale: Any
    v_init: Any
    gain: Any  # numbers: scale, or the input of batch norm, is multiplied by gain; scale, shift, gamma and beta are
    unit: Any  # divided by unit
    # the product, or "train", "constant" or "impulse" for given currents, which are then ``edge``
    source: Any
    edge: Any  # else the counts of the input, for the gradient only
    gamma: Any
    beta: Any
    eps: Any  # of batch norm with batch statistics; None: no such batch norm
    # for the gradient only
    residual_edge: Any
    theta: Any
    few_bits: Any  # the weights are integers that fit into int8


_NO_GRADIENTS: Gradients = dict.fromkeys(Call._fields)


class Saved(NamedTuple):
    """What the backward pass needs: tensors, None where no gradient needs them, and numbers."""

    mask: Tensor
    stored: Any
    weight: Any
    scale: Any
    gamma: Any
    u: Any  # the input of batch norm, W c; or the given currents
    mean: Any
    var: Any
    residual: Any
    residual_scale: Any
    theta: Any
    spikes: Any
    source: Any
    T: int
    gain: float
    unit: float
    threshold: float
    timing: str
    eps: float | None

    @property
    def factor(self) -> Any:
        """What the op multiplies the currents by: scale·gain/unit, a tensor, a number, or None for 1."""
        factor = self.gain / self.unit
        if factor == 1:
            return self.scale
        return factor if self.scale is None else self.scale * factor


def run(call: tuple[Any, ...], train: bool) -> Any:
    """Call the op of a layer; return (stored, counts, mask, v, [[product,] mean, var,] bad).

    ``train``: whether the op makes what the backward pass needs.
    """
    (
        stored, T, weight, neuron, return_v, scale, shift, bad, residual, residual_scale, v_init, gain, unit,
        source, edge, gamma, beta, eps, _, _, few_bits,
    ) = call  # fmt: skip
    more: tuple[Any, ...] = () if residual is None and v_init is None else (residual, residual_scale, v_init)
    if isinstance(source, Product):
        if few_bits and weight.dtype == torch.float32:
            weight = weight.to(torch.int8)
        stored = source.padded(stored)
        if eps is not None:
            norm = scale, gamma, beta, eps
            if gain != 1.0 or unit != 1.0:
                more = residual, residual_scale, v_init, unit, gain
            return _bn_if(stored, T, weight, *source.geometry(), *norm, *neuron, return_v, bad, *more)
        if gain != 1.0 or unit != 1.0:
            more = residual, residual_scale, v_init, gain, unit
        product = (stored, T, weight, *source.geometry()) if source.stride else (stored, T, weight)
        op = _conv_if if source.stride else _linear_if
        return op(*product, *neuron, train, return_v, scale, shift, bad, *more)
    statistics: tuple[Tensor, ...] = ()
    if eps is not None:
        *statistics, scale, shift = _ops.bn_statistics.default(
            edge, _times(source, T), scale, gamma, beta, eps, unit, gain
        )
        gain = unit = 1.0
    currents, more = (edge,) if source == "train" else (edge, T), (residual, residual_scale, v_init, gain, unit)
    *outputs, bad = _GIVEN[source](*currents, *neuron, train, return_v, scale, shift, bad, *more)
    return *outputs, *statistics, bad


def _times(source: Product | str, T: int) -> int:
    """The number of steps in which a given current flows."""
    return T if source == "constant" else 1


def _forward(*call: Any) -> Any:
    return run(call, train=True)


_forward.__signature__ = inspect.signature(Call)  # type: ignore[attr-defined]  # Dynamo counts its parameters


class Fire(Function):
    """A layer of neurons, with the arguments :class:`Call`; see :func:`run`. Only its counts have a gradient."""

    generate_vmap_rule = True
    forward = staticmethod(_forward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        needs, call = Call(*ctx.needs_input_grad), Call(*inputs)
        spikes, _, mask, *others = output
        _, *norm, _ = others  # between the potentials and bad
        *product, mean, var = norm or (None, None)
        if product:
            u = product[0]
        else:  # of given currents
            u = call.edge if call.weight is None and (call.eps is not None or needs.scale) else None
        ctx.save_for_backward(  # the first fields of Saved
            mask,
            call.stored,
            call.weight,
            call.scale,
            call.gamma,
            u,
            mean,
            var,
            call.residual if needs.residual_scale else None,
            call.residual_scale if needs.residual or needs.residual_edge else None,
            call.theta if needs.theta else None,
            spikes if needs.theta else None,
        )
        ctx.needs = needs
        _, threshold, _, _, timing = call.neuron
        ctx.numbers = call.source, call.T, call.gain, call.unit, threshold, timing, call.eps
        ctx.mark_non_differentiable(spikes, mask, *[other for other in others if other is not None])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _stored: None, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        if grad is None:
            return tuple(_NO_GRADIENTS.values())
        needs, saved = ctx.needs, Saved(*ctx.saved_tensors, *ctx.numbers)
        neurons = needs.residual or needs.residual_edge or needs.residual_scale or needs.theta
        grad_z: Any = None  # gate·grad/ϑ; batch norm's op computes its own
        if saved.eps is None or neurons:
            grad_z = _ops.gate_grad.default(grad, saved.mask, saved.threshold)
        if saved.eps is not None:
            gradients = _through_norm(needs, saved, grad)
        elif isinstance(saved.source, Product):
            gradients = _through_product(needs, saved, grad_z)
        else:
            gradients = _through_currents(needs, saved, grad_z)
        if neurons:
            gradients |= _of_neurons(needs, saved, grad_z)
        return tuple((_NO_GRADIENTS | gradients).values())


def _through_product(needs: Call, saved: Saved, grad_z: Tensor) -> Gradients:
    """The gradients of scale·(W c) + shift."""
    product, stored, timing, scale = saved.source, saved.stored, saved.timing, saved.factor
    weight = cast(saved.weight, grad_z.dtype)  # differs for int8, and for half types that cannot hold the counts
    shift = _grad_shift(saved, grad_z) if needs.shift else None
    direct = needs.weight and not needs.scale
    edge, grad_weight = product.gradients(scaled(grad_z, scale), stored, timing, weight, needs.edge, direct)
    if not needs.scale:
        return {"weight": grad_weight, "shift": shift, "edge": edge}
    weight, wide = cast(weight, scale.dtype), cast(grad_z, scale.dtype)  # large terms of grad_scale may cancel
    _, raw = product.gradients(wide, stored, timing, weight, False, True)
    grad_scale = (weight * raw).flatten(1).sum(1) * (saved.gain / saved.unit)
    grad_weight = cast(raw * over_inputs(scale, raw), grad_z.dtype) if needs.weight else None
    return {"weight": grad_weight, "scale": grad_scale, "shift": shift, "edge": edge}


def _through_currents(needs: Call, saved: Saved, grad_z: Tensor) -> Gradients:
    """The gradients of scale·Σ y + shift. All steps share one gradient, as an expanded view."""
    y, times, over_time = saved.u, _times(saved.source, saved.T), saved.source == "train"
    grad_y = grad_scale = None
    if needs.edge:
        grad_y = scaled(grad_z, saved.factor, times)
        grad_y = grad_y.expand(saved.T, *grad_y.shape) if over_time else grad_y
    if needs.scale:
        dtype = saved.scale.dtype
        grad_scale = channel_sum(grad_z * (y.sum(0, dtype=dtype) if over_time else times * cast(y, dtype)))
        grad_scale = grad_scale * (saved.gain / saved.unit)
    return {"scale": grad_scale, "shift": _grad_shift(saved, grad_z) if needs.shift else None, "edge": grad_y}


def _grad_shift(saved: Saved, grad_z: Tensor) -> Tensor:
    grad = channel_sum(grad_z)
    return grad if saved.unit == 1 else over(grad, saved.unit)


def _through_norm(needs: Call, saved: Saved, grad: Tensor) -> Gradients:
    """The gradients of batch norm of gain·u by batch statistics; u is W c or the sum of the given currents."""
    source, mean, var, gain, number = saved.source, saved.mean, saved.var, saved.scale, saved.gain
    times = _times(source, saved.T)
    if times > 1:  # gain·u = (times·gain)·y
        gain, number = times * (mean.new_full((), number) if gain is None else gain), 1.0
        mean, var = mean / times, var / times**2
    u = saved.u
    dtype = grad.dtype if isinstance(source, Product) else u.dtype  # of the gradient of the input
    exact = needs.scale or dtype != grad.dtype
    grad_counts = cast(grad, mean.dtype) if exact else grad
    grad_u, gamma, beta = _ops.bn_grad.default(
        grad_counts, saved.mask, u, mean, var, gain, saved.gamma, saved.eps, saved.threshold, saved.unit, number
    )
    grad_gain = None
    if needs.scale:  # both factors of gain·u receive its gradient, grad_u / gain
        grad_gain = grad_u * u
        grad_gain = (channel_sum(grad_gain) if gain.dim() else grad_gain.sum()) / gain * times
    if isinstance(source, Product):
        weight, grad_u = cast(saved.weight, grad.dtype), cast(grad_u, grad.dtype)
        edge, grad_weight = source.gradients(grad_u, saved.stored, saved.timing, weight, needs.edge, needs.weight)
    else:
        edge, grad_weight = cast(grad_u, u.dtype), None
    gamma, beta = gamma if needs.gamma else None, beta if needs.beta else None
    return {"weight": grad_weight, "scale": grad_gain, "edge": edge, "gamma": gamma, "beta": beta}


def _of_neurons(needs: Call, saved: Saved, grad_z: Tensor) -> Gradients:
    """The gradients of the neurons' tensors."""
    residual = edge = residual_scale = theta = None
    dtype = compute_dtype(grad_z.dtype)
    if needs.residual or needs.residual_edge:
        edge = scaled(grad_z, saved.residual_scale)
        steps = 1 if saved.timing == "window" else saved.T
        residual = edge.expand(steps, *grad_z.shape) if needs.residual else None
    if needs.residual_scale:
        residual_scale = channel_sum(grad_z * counts_of(saved.residual, saved.timing, dtype))
    if needs.theta:
        theta = -channel_sum(grad_z * counts_of(saved.spikes, saved.timing, dtype)) / saved.theta
    edge = edge if needs.residual_edge else None
    return {"residual": residual, "residual_edge": edge, "residual_scale": residual_scale, "theta": theta}


def channel_sum(grad: Tensor) -> Tensor:
    """[B, C, *space] -> [C] in the compute dtype; [B] -> [1]."""
    dtype = compute_dtype(grad.dtype)
    if grad.dim() <= 2:
        return grad.sum(0, keepdim=grad.dim() < 2, dtype=dtype)
    return grad.sum([d for d in range(grad.dim()) if d != 1], dtype=dtype)


def scaled(grad: Tensor, scale: Tensor | float | None, times: int = 1) -> Tensor:
    """Return times·scale·grad in the dtype of grad."""
    if scale is None:
        return grad if times == 1 else times * grad
    if times != 1:
        if not isinstance(scale, Tensor):  # rounded before it is multiplied
            scale = torch.full((), scale, dtype=compute_dtype(grad.dtype), device=grad.device)
        scale = times * scale
    if isinstance(scale, Tensor) and scale.numel() and not torch.compiler.is_compiling() and scale.stride() == (0,):
        scale = scale[0]  # one number for all channels: half types are multiplied without a copy in float32
    return cast(grad * over_space(scale, grad.shape), grad.dtype)
