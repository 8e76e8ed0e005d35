"""One layer of neurons: check and fold its arguments, then call the op, within its autograd Function if needed."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..inputs import ConstantInput, ImpulseInput
from ..signal import needs_grad
from ..train import SpikeTrain, add_flags, with_flags
from .autograd import Fire, WindowProduct, apply, run
from .neuron import NEUTRAL, cast, channels_of, fold, in_units, over_space, per_channel, tensors_of, with_gain
from .products import Product, autocast_dtype
from .settings import Settings

Input = SpikeTrain | ConstantInput | ImpulseInput
Result = SpikeTrain | tuple[SpikeTrain, Tensor]


def layer(
    x: Any,
    weight: Tensor | None,
    settings: Settings,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    step: Tensor | None = None,
) -> tuple[Result, Tensor | None, Tensor | None]:
    """Run a layer of neurons.

    With a weight, the input currents are the product ``static.source`` of the weight and x, a train or direct input.
    Without one, x itself is the current: [T, B, *features] or a direct input. With ``static.eps``, batch norm uses the
    statistics of the batch; scale and shift are then its gamma and beta. Only tensors are checked here.

    Returns:
        (train, mean, var), or ((train, v), mean, var) with ``return_v``. mean and var are None without batch norm.
    """
    static, threshold, v_init, residual = settings
    source, T, timing, eps, learns = static.source, static.T, static.timing, static.eps, torch.is_grad_enabled()
    planes = bad = edge = beta = None
    if weight is not None:
        x, weight, shape = fitted(x, weight, source)
    if isinstance(x, SpikeTrain):
        like, gain, bad = weight, x.gain, x.bad
        edge = x.edge if learns else None
        planes = x.stored if x.timing == timing else x.in_form(timing)
        if isinstance(residual, SpikeTrain) and residual.stored is x.stored:
            residual = residual.map(lambda t: t.view_as(t))  # Dynamo requires distinct arguments of a Function
    else:
        edge, gain = (x, 1.0) if isinstance(x, Tensor) else (x.x, x.gain)
        if weight is not None:
            edge = source.direct(edge, weight)  # type: ignore[union-attr]
            static, weight = static._replace(source=x.source), None
        else:
            shape = edge.shape[1:] if source == "train" else edge.shape
        like = edge
    assert like is not None
    channels = channels_of(shape)
    if eps is not None:
        if shape[0] * math.prod(shape[2:]) < 2:
            least = "more than one value per channel"
            raise checks.TooFewSamples(f"x: batch norm in training needs {least}, got outputs {list(shape)}")
        bad = None if bad is None else bad.sum(0, True)  # through the batch statistics, one NaN affects all samples
    neurons, theta = NEUTRAL, None
    if residual is not None or v_init is not None or timing == "window" or isinstance(threshold, Tensor):
        neurons = tensors_of(like, T, shape, residual, threshold, v_init, timing)
        theta = neurons.theta
        if isinstance(residual, SpikeTrain) and residual.bad is not bad:
            bad = add_flags(bad, residual.bad)
    if eps is None:
        scale, shift = fold(theta, bias, scale, shift, step, gain, channels, like)
    else:
        bias, gamma = per_channel("bias", bias, channels, like), per_channel("gamma", scale, channels, like)
        shift, beta = in_units(theta, gamma, per_channel("beta", shift, channels, like))
        scale = with_gain(None, step, gain, (), channels, like)

    train = learns and needs_grad(edge, weight, scale, shift, beta, *neurons[:4])  # all but v_init
    inputs = edge, weight, scale, shift, beta, planes, *neurons, bad, static, train
    fired, counts, _, v, *norm, bad = apply(Fire, *inputs) if train else run(*inputs)
    dtype = like.dtype
    if dtype == torch.int8:
        dtype = torch.float32
    result: Any = SpikeTrain.unchecked(fired, T, counts if train else None, 1.0, dtype, timing, bad)
    if v is not None:
        result = result, v if theta is None else v * over_space(theta.detach(), v.shape)
    if eps is None:
        return result, None, None
    *_, mean, var = norm
    if scale is not None:
        gain = scale.detach()
        mean, var = gain * mean, gain * gain * var
    return result, mean if bias is None else mean + bias.detach(), var


def window_product(x: SpikeTrain, weight: Tensor, product: Product) -> Tensor:
    """Compute u = W c with the layers' kernel, [B, N, *space] in the compute dtype, with the ANN's gradients.

    It is for batch norm with statistics that the fused layer cannot compute, such as statistics of several processes.
    """
    x, weight, _ = fitted(x, weight, product)
    return with_flags(apply(WindowProduct, x.edge, weight, x.stored, x.T, x.timing, product), x.bad)


def fitted(x: Input, weight: Tensor, product: Any) -> tuple[Any, Tensor, tuple[int, ...]]:
    """Return x padded, the weight in the dtype that torch.autocast gives to products, and the output shape."""
    if isinstance(x.gain, Tensor):
        x, weight = by_channel(x, weight, product)
    if product.sides:
        x = x.map(lambda t: F.pad(t, product.sides) if t.dim() else t)  # a 0-dim tensor is the gain
    shape = product.output_shape(x.shape, weight)
    if x.device != weight.device:
        checks.same_device("x", x, "weight", weight.device)
    if not isinstance(x, SpikeTrain):
        checks.direct_dtype(x.x, weight)
    if torch._C._is_any_autocast_enabled():
        weight = cast(weight, autocast_dtype(weight))
    return x, weight, shape


def by_channel(x: Any, weight: Tensor, product: Product) -> tuple[Any, Tensor]:
    """Multiply a gain per channel into the weight; return x with gain 1 and the new weight."""
    if not isinstance(x.gain, Tensor) or not x.gain.dim():
        return x, weight
    return x.replace(gain=1.0), product.weighted(weight, x.gain)
