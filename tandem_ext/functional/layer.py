"""One layer of neurons: checks, folding, and the choice between the bare op and its autograd Function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..inputs import ConstantInput, ImpulseInput
from ..train import SpikeTrain
from .autograd import ProductIF, ScanIF, apply, fire_direct
from .neuron import counts_dtype, fold, make_neurons, needs_grad, train_of
from .products import Product

Input = SpikeTrain | ConstantInput | ImpulseInput
Result = SpikeTrain | tuple[SpikeTrain, Tensor]


def autocast(weight: Tensor) -> Tensor:
    """The weight in the type that torch.autocast gives to products."""
    if torch._C._is_any_autocast_enabled() and weight.dtype not in (torch.float64, torch.int8):
        device = weight.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return weight.to(torch.get_autocast_dtype(device))
    return weight


def pad(x: Input, sides: list[int]) -> Input:
    """x with silence around its space."""
    return x.map(lambda t: F.pad(t, sides) if t.dim() else t)  # a gain has no space


def source_of(x: ConstantInput | ImpulseInput) -> str:
    return "constant" if isinstance(x, ConstantInput) else "impulse"


def product_layer(
    x: Input,
    product: Product,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: SpikeTrain | Tensor | None,
    *neuron: Any,
) -> Result:
    """Neurons driven by ``product`` of ``weight`` with x. The weight's kind and the class of x are checked already.

    ``neuron`` are the further arguments of :func:`make_neurons`.
    """
    shape = product.output_shape(x.shape, weight)
    checks.same_device("x", x, "weight", weight.device)
    weight = autocast(weight)
    if not isinstance(x, SpikeTrain):
        checks.direct_dtype(x.x, weight)
        y = product.direct(x.x, weight)
        return scan_layer(y, source_of(x), x.T, x.gain, bias, scale, shift, residual, *neuron)
    if residual is x:  # Dynamo wants the arguments of a Function to be different tensors
        residual = x.map(lambda t: t.view_as(t))
    neurons = make_neurons(weight, x.T, shape, residual, *neuron)
    scale, shift = fold(neurons, bias, scale, shift, x.gain, shape[1], weight)
    grad = torch.is_grad_enabled() and needs_grad(x.edge, weight, scale, shift, *neurons[:4])
    if grad:
        outputs = apply(ProductIF, x.edge, weight, scale, shift, x.planes, product, *neurons)
    else:
        outputs = product.fire(x.planes, weight, scale, shift, neurons, False)
    return train_of(outputs, neurons, counts_dtype(weight), grad)


def scan_layer(
    y: Tensor,
    source: str,
    T: int,
    gain: float | Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: SpikeTrain | Tensor | None,
    *neuron: Any,
) -> Result:
    """Neurons driven by currents y: [T, B, *features] for the source "train", else [B, *features]."""
    shape = tuple(y.shape[1:] if source == "train" else y.shape)
    neurons = make_neurons(y, T, shape, residual, *neuron)
    scale, shift = fold(neurons, bias, scale, shift, gain, shape[1] if len(shape) > 1 else 1, y)
    grad = torch.is_grad_enabled() and needs_grad(y, scale, shift, *neurons[:4])
    if grad:
        outputs = apply(ScanIF, y, scale, shift, source, *neurons)
    else:
        outputs = fire_direct(y, source, scale, shift, neurons, False)
    return train_of(outputs, neurons, y.dtype, grad)
