"""One layer of neurons: check and fold its arguments, then call the op, within its autograd Function if needed."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import checks
from .._torch import autocast_active
from ..inputs import ConstantInput, ImpulseInput
from ..ops import compute_dtype
from ..signal import needs_grad
from ..train import SpikeTrain, add_flags, with_flags
from .autograd import Fire, apply, run
from .currents import StraightThrough, WindowProduct
from .neuron import NEUTRAL, cast, channels_of, fold, in_units, over_space, per_channel, started, tensors_of, with_gain
from .products import Product, autocast_dtype
from .settings import Settings, default_v_init

Input = SpikeTrain | ConstantInput | ImpulseInput
Result = SpikeTrain | tuple[SpikeTrain, Tensor]
Outcome = tuple[Any, Tensor | None, Tensor | None]  # a Result, mean and var


def product_if(x: Input, weight: Tensor, product: Product, settings: Settings) -> Outcome:
    """Run neurons whose input currents are the product of a weight with x, a train or a direct input.

    Only tensors are checked here and in :func:`current_if`.

    Returns:
        (train, mean, var), or ((train, v), mean, var) with ``return_v``. mean and var are None without batch norm.
    """
    x, weight, shape = fitted(x, weight, product)
    if not isinstance(x, SpikeTrain):
        return current_if(product.direct(x.x, weight), x.source, x.gain, settings)
    timing, residual = settings.timing, settings.residual
    if isinstance(residual, SpikeTrain) and residual.stored is x.stored:
        settings = settings._replace(  # Dynamo requires distinct arguments of a Function
            residual=residual.map(lambda t: t.view_as(t))
        )
    stored = x.stored if x.timing == timing else x.stored_as(timing)
    if x.offset is None:
        edge = x.edge if torch.is_grad_enabled() else None
        return _fire(product, edge, stored, weight, shape, x.gain, x.bad, settings)
    if settings.eps is not None:
        return current_if(window_product(x, weight, product), "impulse", x.gain, settings)
    with torch.no_grad():
        constant = product.of_offset(x.offset, weight)
        outcome = _fire(product, None, stored, weight, shape, x.gain, x.bad, settings, constant)
    if torch.is_grad_enabled():  # spikes as without a gradient, and gates that see the constant
        learned = current_if(window_product(x, weight, product), "impulse", x.gain, settings)
        trains: Any = [fired[0] if settings.return_v else fired for fired, *_ in (outcome, learned)]
        counts, of_gates = (train.clean_counts() for train in trains)
        trains[0].counts = apply(StraightThrough, of_gates, counts, None)
    return outcome


def current_if(current: Tensor, source: str, gain: float | Tensor, settings: Settings) -> Outcome:
    """Run neurons with given currents: "train", [T, B, *features], or "constant" or "impulse", [B, *features]."""
    if settings.timing == "window":
        checks.T("T", settings.T, "window")
    shape = current.shape[1:] if source == "train" else current.shape
    tokens = len(shape) == 3 and current.stride(-1) == 1 != current.stride(-2) and _all_alike(gain, settings)
    if not tokens:
        return _fire(source, current, None, None, shape, gain, None, settings)
    # Ops take the channels, dimension 1, as the last in memory; where they do not matter, that saves copies.
    train, *norm = _fire(source, current.mT, None, None, (shape[0], shape[2], shape[1]), gain, None, settings)
    return train.map(lambda t: t.mT), *norm


def _all_alike(gain: float | Tensor, settings: Settings) -> bool:
    """Return whether all neurons have the same settings, and give a train alone."""
    given = gain, settings.bias, settings.scale, settings.shift, settings.step, settings.threshold, settings.v_init
    alike = all(not isinstance(value, Tensor) or value.dim() == 0 for value in given)
    return alike and settings.eps is None and settings.residual is None and not settings.return_v


def _fire(
    source: Product | str,
    edge: Tensor | None,
    stored: Tensor | None,
    weight: Tensor | None,
    shape: tuple[int, ...],
    gain: float | Tensor,
    bad: Tensor | None,
    settings: Settings,
    constant: Tensor | None = None,
) -> Outcome:
    """Fold the tensors of neurons [B, C, *space] into the arguments of an op, and call it.

    ``constant`` [1, C, *space] is added to the products, before any residual, by way of the potentials at the start.
    """
    like: Any = edge if weight is None else weight
    T, bias, scale, shift, step, eps, unit, threshold, leak, v_init, gate, timing, residual, steps, return_v = settings
    channels = channels_of(shape)
    if eps is not None:
        if (values := shape[0] * math.prod(shape[2:])) < 2:
            least = "more than one value per channel"
            raise checks.TooFewSamples(f"x: batch norm in training needs {least}, got {values}")
        bad = None if bad is None else bad.sum(0, True)  # through the batch statistics, one NaN affects all samples
    neurons, theta = NEUTRAL, None
    of_threshold = isinstance(threshold, Tensor)
    if constant is not None:
        v_init = default_v_init(threshold, timing) if v_init is None else v_init
    elif v_init is not None and not (of_threshold or isinstance(v_init, Tensor)):
        v_init = None if v_init == default_v_init(threshold, timing) else v_init
    if residual is not None or v_init is not None or of_threshold:
        neurons = tensors_of(like, T, shape, residual, threshold, v_init, timing, unit)
        theta = neurons.theta
        if isinstance(residual, SpikeTrain) and residual.bad is not bad:
            bad = add_flags(bad, residual.bad)
    gamma = beta = None
    numbers = 1.0, 1.0  # gain and unit as arguments of the op
    if eps is None:
        if theta is None and constant is None and not isinstance(gain, Tensor):
            numbers = float(gain), unit
            if bias is not None or scale is not None or shift is not None or step is not None:
                scale, shift = fold(None, bias, scale, shift, step, 1.0, channels, like)
        else:
            scale, shift = fold(theta, bias, scale, shift, step, gain, channels, like, unit)
    else:
        bias, gamma = per_channel("bias", bias, channels, like), per_channel("gamma", scale, channels, like)
        gamma, beta = in_units(theta, gamma, per_channel("beta", shift, channels, like))
        by_number = step is None and not isinstance(gain, Tensor)
        numbers = float(gain) if by_number else 1.0, unit
        scale, shift = with_gain(None, step, 1.0 if by_number else gain, (), channels, like), None

    residual, residual_edge, residual_scale, _, v_init = neurons
    if constant is not None:
        v_init = started(v_init, scale, constant, compute_dtype(like.dtype))
    train = torch.is_grad_enabled() and needs_grad(
        edge, weight, scale, shift, gamma, beta, residual, residual_edge, residual_scale, theta
    )
    steps = T if steps is None else steps
    neuron = steps, threshold if theta is None else 1.0, leak, gate, timing
    call = (  # the fields of Call, which is slow to make
        stored, T, weight, neuron, return_v, scale, shift, bad, residual, residual_scale, v_init, *numbers,
        source, edge, gamma, beta, eps, residual_edge, theta, step is not None,
    )  # fmt: skip
    fired, counts, _, v, *norm, bad = apply(Fire, *call) if train else run(call, train)
    dtype = like.dtype
    if dtype == torch.int8:
        dtype = torch.float32
    fires = steps if timing == "window" else T  # steps in which neurons fire
    result: Any = SpikeTrain.unchecked(fired, fires, counts if train else None, 1.0, dtype, timing, bad)
    if v is not None:
        result = result, v if theta is None else v * over_space(theta.detach(), v.shape)
    if eps is None:
        return result, None, None
    *_, mean, var = norm
    if scale is not None or numbers[0] != 1.0:
        factor = mean.new_full((), numbers[0]) if scale is None else scale.detach()
        mean, var = factor * mean, factor * factor * var
    return result, mean if bias is None else mean + bias.detach(), var


def window_product(x: SpikeTrain, weight: Tensor, product: Product) -> Tensor:
    """Compute u = W c with the layers' kernel, [B, N, *space] in the compute dtype, with the ANN's gradients.

    It is for batch norm with statistics that the fused layer cannot compute, such as statistics of several processes.
    """
    x, weight, _ = fitted(x, weight, product)
    edge = x.edge if torch.is_grad_enabled() else None
    return with_flags(apply(WindowProduct, edge, weight, x.stored, x.offset, x.T, x.timing, product), x.bad)


def fitted(x: Input, weight: Tensor, product: Any) -> tuple[Any, Tensor, tuple[int, ...]]:
    """Return x, the weight in the dtype that torch.autocast gives to products, and the output shape."""
    if isinstance(x.gain, Tensor):
        x, weight = by_channel(x, weight, product)
    shape = product.output_shape(x.shape, weight)
    if x.device != weight.device:
        checks.same_device("x", x, "weight", weight.device)
    if not isinstance(x, SpikeTrain):
        checks.direct_dtype(x.x, weight)
    if autocast_active():
        weight = cast(weight, autocast_dtype(weight))
    return x, weight, shape


def by_channel(x: Any, weight: Tensor, product: Product) -> tuple[Any, Tensor]:
    """Multiply a gain per channel into the weight; return x with gain 1 and the new weight."""
    if not isinstance(x.gain, Tensor) or not x.gain.dim():
        return x, weight
    return x.replace(gain=1.0), product.weighted(weight, x.gain)
