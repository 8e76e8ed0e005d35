"""One layer of neurons: checks, folding, and the choice between the bare op and its autograd Function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..inputs import ConstantInput, ImpulseInput
from ..ops import compute_dtype
from ..train import SpikeTrain, spoiled
from .autograd import Fire, WindowProduct, apply, run
from .neuron import Static, Tensors, cast, channels_of, fold, over_space, per_channel, spread, tensors_of
from .products import Product

Input = SpikeTrain | ConstantInput | ImpulseInput
Result = SpikeTrain | tuple[SpikeTrain, Tensor]


def product_layer(
    x: Input,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    step: Tensor | None,
    residual: SpikeTrain | Tensor | None,
    threshold: float | Tensor,
    v_init: float | Tensor,
    static: Static,
) -> Result:
    """Neurons driven by the product ``static.source`` of weight with x. What is no tensor is checked already."""
    x, weight, shape = fitted(x, weight, static.source)
    if not isinstance(x, SpikeTrain):
        y, static = currents_of(x, weight, static)
        return scan_layer(y, x.gain, bias, scale, shift, step, residual, threshold, v_init, static)
    tensors = tensors_of(weight, x.T, shape, distinct(residual, x), threshold, v_init, static.timing, x.bad)
    scale, shift = fold(tensors.theta, bias, scale, shift, step, x.gain, shape[1], weight)
    dtype = torch.float32 if weight.dtype == torch.int8 else weight.dtype
    return fire(x.edge, weight, scale, shift, None, read_by(static, x), tensors, static, dtype)[0]


def scan_layer(
    y: Tensor,
    gain: float | Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    step: Tensor | None,
    residual: SpikeTrain | Tensor | None,
    threshold: float | Tensor,
    v_init: float | Tensor,
    static: Static,
) -> Result:
    """Neurons driven by currents y: [T, B, *features] for the source "train", else [B, *features]."""
    shape = tuple(y.shape[1:] if static.source == "train" else y.shape)
    tensors = tensors_of(y, static.T, shape, residual, threshold, v_init, static.timing)
    scale, shift = fold(tensors.theta, bias, scale, shift, step, gain, channels_of(shape), y)
    return fire(y, None, scale, shift, None, None, tensors, static, y.dtype)[0]


def norm_layer(
    x: Input,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    step: Tensor | None,
    residual: SpikeTrain | Tensor | None,
    threshold: float | Tensor,
    v_init: float | Tensor,
    static: Static,
) -> tuple[Result, Tensor, Tensor]:
    """:func:`product_layer` with batch norm by the statistics of the batch; also their mean and variance."""
    x, weight, shape = fitted(x, weight, static.source)
    checks.batch_norm(shape)
    channels, dtype = shape[1], weight.dtype
    bias, gamma, beta, step = (
        None if value is None else per_channel(name, value, channels, weight)
        for name, value in (("bias", bias), ("gamma", gamma), ("beta", beta), ("step", step))
    )
    residual = distinct(residual, x)
    bad = x.bad if isinstance(x, SpikeTrain) else None
    bad = None if bad is None else bad.sum(0, True)  # statistics of the batch: one makes all bad
    tensors = tensors_of(weight, x.T, shape, residual, threshold, v_init, static.timing, bad)
    if tensors.theta is not None:
        unit = tensors.theta.detach()
        gamma = 1 / unit if gamma is None else gamma / unit
        beta = None if beta is None else beta / unit
    gain = step
    if isinstance(x.gain, Tensor) or x.gain != 1.0:
        gain = spread(x.gain, (), compute_dtype(dtype), weight.device)
        gain = gain if step is None else step * gain
    if isinstance(x, SpikeTrain):
        result, outputs = fire(x.edge, weight, gain, gamma, beta, read_by(static, x), tensors, static, dtype)
    else:
        y, static = currents_of(x, weight, static)
        result, outputs = fire(y, None, gain, gamma, beta, None, tensors, static, dtype)
    *_, mean, var, _ = outputs
    with torch.no_grad():
        if gain is not None:
            mean, var = gain * mean, gain * gain * var
        return result, mean if bias is None else mean + bias, var


def fire(
    edge: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    beta: Tensor | None,
    planes: Tensor | None,
    tensors: Tensors,
    static: Static,
    dtype: torch.dtype,
) -> tuple[Result, tuple[Tensor, ...]]:
    """The layer's result, from its op or where a gradient is needed from its Function; and all outputs."""
    grad = torch.is_grad_enabled() and needs_grad(edge, weight, scale, shift, beta, *tensors[:4])
    if grad:
        outputs = apply(Fire, edge, weight, scale, shift, beta, planes, *tensors, static)
    else:
        outputs = run(edge, weight, scale, shift, beta, planes, tensors, static, False)
    counts = outputs[1] if grad else None
    train = SpikeTrain.unchecked(outputs[0], static.T, counts, 1.0, dtype, static.timing, outputs[-1])
    if not static.return_v:
        return train, outputs
    v, theta = outputs[3], tensors.theta
    return (train, v if theta is None else v * over_space(theta.detach(), v.shape)), outputs


def window_product(x: SpikeTrain, weight: Tensor, product: Product) -> Tensor:
    """u = W c by the layers' own kernel, without gain and bias, with the ANN's gradients.

    It is for a batch norm by statistics that the fused layer does not have.

    Returns:
        [B, N, *space] in the compute dtype.
    """
    x, weight, _ = fitted(x, weight, product)
    edge: Tensor | None = x.edge
    if torch.is_grad_enabled() and needs_grad(edge, weight):
        return spoiled(apply(WindowProduct, edge, weight, x.stored, x.T, x.timing, product), x.bad)
    return spoiled(product.window(x.stored, x.T, x.timing, weight), x.bad)


def fitted(x: Input, weight: Tensor, product: Any) -> tuple[Any, Tensor, tuple[int, ...]]:
    """x padded, the weight in the type that torch.autocast gives to products, and the shape of the output.

    What the spikes of each channel are worth goes into the weight, one number for all of them stays with x.
    """
    x, weight = by_channel(x, weight, product)
    if product.sides:
        x = x.map(lambda t: F.pad(t, product.sides) if t.dim() else t)  # a gain has no space
    shape = product.output_shape(x.shape, weight)
    checks.same_device("x", x, "weight", weight.device)
    if not isinstance(x, SpikeTrain):
        checks.direct_dtype(x.x, weight)
    return x, cast(weight, autocast_dtype(weight)), shape


def autocast_dtype(weight: Tensor) -> torch.dtype:
    """The type that torch.autocast gives to a product with this weight."""
    if torch._C._is_any_autocast_enabled() and weight.dtype not in (torch.float64, torch.int8):
        device = weight.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    return weight.dtype


def by_channel(x: Any, weight: Tensor, product: Product) -> tuple[Any, Tensor]:
    """x, each of whose spikes is worth as much as any other, and the weight with what was different in it."""
    if not isinstance(x.gain, Tensor) or not x.gain.dim():
        return x, weight
    weight = product.weighted(weight, x.gain)
    return SpikeTrain.unchecked(x.stored, x.T, x._counts, 1.0, x._dtype, x.timing, x.bad), weight


def currents_of(x: ConstantInput | ImpulseInput, weight: Tensor, static: Static) -> tuple[Tensor, Static]:
    """The currents of a direct input, and the layer that is given them."""
    return static.source.direct(x.x, weight), static._replace(source=source_of(x))  # type: ignore[union-attr]


def source_of(x: ConstantInput | ImpulseInput) -> str:
    return "constant" if isinstance(x, ConstantInput) else "impulse"


def read_by(static: Static, x: SpikeTrain) -> Tensor:
    """What a layer's op reads of a train: counts as bytes where it integrates a whole window, else planes."""
    return x.count_bytes if static.timing == "window" else x.planes


def distinct(residual: SpikeTrain | Tensor | None, x: Input) -> SpikeTrain | Tensor | None:
    """Dynamo wants the arguments of a Function to be different tensors."""
    return residual.map(lambda t: t.view_as(t)) if residual is x else residual


def needs_grad(*tensors: Tensor | None) -> bool:
    """Where gradients are enabled: must the op run inside its Function? Under torch.func transforms requires_grad does
    not tell: then yes.
    """
    transformed = torch._C._are_functorch_transforms_active()
    for tensor in tensors:
        if tensor is not None and (tensor.requires_grad or (transformed and tensor.is_floating_point())):
            return True
    return False
