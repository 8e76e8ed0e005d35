"""Couple any spiking forward pass with any ANN branch: the tandem rule in its most general form."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import checks
from ..ops import compute_dtype, counts_dtype
from ..planes import counts_of
from ..train import SpikeTrain
from .autograd import apply, once_differentiable
from .neuron import cast, channels_of, over_space


def couple(train: SpikeTrain, z: Tensor, *, threshold: float | Tensor = 1.0, gate: checks.Gate = "relu") -> SpikeTrain:
    """Give a spike train the gradient of an ANN's activation ρ(z)/ϑ.

    The layers of this package compute z from the currents that made the spikes. With any other ANN branch, for example
    batch norm with different statistics, compute the spikes without a gradient and z with one, then couple them.

    Args:
        train: [B, *features]. No gradient flows into it.
        z: floating point [B, *features], the ANN's pre-activation.
        threshold: the threshold ϑ of the neurons that fired: a float, or a 0-dim or per-channel tensor, whose gradient
            is -Σ grad·gate·c/ϑ.
        gate: where gradients pass: "relu": z > 0; "clip": 0 < z < ϑT.

    Returns:
        A SpikeTrain with the spikes and gain of ``train``, and counts whose gradient goes to z.

    Raises:
        TypeError: train is not a SpikeTrain, or z or threshold have another type.
        ValueError: a shape, device or gate that is not allowed.

    >>> train = te.SpikeTrain.from_dense(torch.ones(2, 1, 2))
    >>> z = torch.tensor([[1.5, -0.5]], requires_grad=True)
    >>> te.functional.couple(train, z).counts.sum().backward()
    >>> z.grad
    tensor([[1., 0.]])
    """
    checks.train("train", train)
    shape = train.shape
    checks.shaped("z", z, shape, "train", train.device, " as the train has")
    checks.threshold(threshold, channels_of(shape), z.device)
    checks.one_of("gate", gate, checks.GATES)
    theta = over_space(threshold, shape)
    open_ = z > 0
    if gate == "clip":
        open_ = open_ & (z < theta * train.T)
    counts = counts_of(train.stored, train.timing, counts_dtype(z.dtype, train.T))
    coupled = apply(Couple, z, theta, counts, open_)
    return train.replace(counts=coupled)


class Couple(Function):
    """Return the counts; z receives the gradient gate·grad/ϑ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, theta: float | Tensor, counts: Tensor, open_: Tensor) -> Tensor:
        return counts.view_as(counts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, theta, counts, open_ = inputs
        needs_theta = ctx.needs_input_grad[1]
        ctx.theta = None if isinstance(theta, Tensor) else theta
        saved_theta = theta if isinstance(theta, Tensor) else None
        ctx.save_for_backward(open_, saved_theta, counts if needs_theta else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        open_, theta, counts = ctx.saved_tensors
        grad_z = torch.where(open_, grad / (ctx.theta if theta is None else theta), 0)
        grad_theta = None
        if ctx.needs_input_grad[1]:
            wide = cast(counts, compute_dtype(counts.dtype))
            grad_theta = cast((-grad_z * wide).sum_to_size(theta.shape), theta.dtype)
        return grad_z, grad_theta, None, None
