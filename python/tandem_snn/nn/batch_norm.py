"""Batch norm of spiking layers: folding into scale and shift, and statistics over processes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tandem_ext._torch import BatchNorm, backward_pass
from tandem_ext.functional.autograd import apply, once_differentiable
from tandem_ext.functional.neuron import cast, over_space
from tandem_ext.ops import compute_dtype


def uses_batch(norm: BatchNorm) -> bool:
    """Return whether batch norm currently uses batch statistics rather than running statistics."""
    return norm.training or norm.running_mean is None


def fold_norm(norm: BatchNorm | None) -> tuple[Any, Any]:
    """Fold batch norm with its running statistics: return (scale, shift) [C] of u -> scale·u + shift, or Nones."""
    if norm is None:
        return None, None
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm: without running statistics it has no fixed scale and shift")
    return _scale_shift(norm, norm.running_mean, norm.running_var)


def _scale_shift(norm: BatchNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = (1.0 if norm.weight is None else norm.weight), (0.0 if norm.bias is None else norm.bias)
    scale = torch.add(weight / (var + norm.eps).sqrt(), var, alpha=0)  # an infinite variance becomes NaN
    return scale, bias - mean * scale


@torch.no_grad()
def track(norm: BatchNorm, mean: Tensor, var: Tensor, unbiased: float | Tensor) -> None:
    """Update the running statistics as torch does; ``unbiased`` is n/(n - 1), the factor of the unbiased variance."""
    running_mean, running_var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert running_mean is not None
    assert running_var is not None
    assert batches is not None
    batches.add_(1)
    momentum = 1 / batches if norm.momentum is None else norm.momentum
    running_mean.lerp_(cast(mean, running_mean.dtype), momentum)
    running_var.lerp_(cast(var, running_var.dtype) * unbiased, momentum)


class AnyBatchNorm(BatchNorm):
    """Batch norm of [B, C, *space] with any number of dimensions.

    >>> AnyBatchNorm(3)(torch.ones(2, 3, 4, 5)).shape
    torch.Size([2, 3, 4, 5])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def as_rows(norm: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """Apply batch norm to [B, C, *space]; tokens [B, C, N] whose channels are last in memory become rows [B·N, C],
    for which torch's is ten times as fast as for their transpose.
    """
    if u.dim() != 3 or u.stride(1) != 1:
        return norm(u)
    return norm(u.mT.flatten(0, 1)).unflatten(0, u.mT.shape[:2]).mT


class SyncBatchNorm(BatchNorm):
    """Batch norm that trains with the statistics of the batches of all processes in a group, on any device.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` gives it to spiking layers as their ``norm``. It shares the
    parameters and buffers of the given batch norm.

    With n, S1 = Σu and S2 = Σu² per channel, summed in float64 over all processes, mean = S1/n and
    var = max(S2/n - mean², 0), the same as in the fused layers for one process.

    >>> layer = tandem_snn.nn.Linear(4, 3, norm=True)
    >>> layer.norm = SyncBatchNorm(layer.norm)  # in each process, after torch.distributed.init_process_group
    """

    def __init__(self, norm: BatchNorm, group: Any = None) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.running_mean is not None)
        for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
            setattr(self, name, tensor)
        self.group = group
        self.train(norm.training)

    def forward(self, u: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return F.batch_norm(u, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self.normalise(u)[0]

    def normalise(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z = scale·u + shift by the statistics of all processes, with the gradient of batch norm, and
        scale and shift [C] without one. The running statistics are updated.
        """
        if u.numel() == 0:
            raise ValueError(f"u: expected at least one value per channel, got shape {list(u.shape)}")
        z, scale, shift, mean, var, n = apply(_Normalise, u, self.weight, self.bias, self.eps, self.group)
        if self.running_mean is not None:
            track(self, mean, var, (n / (n - 1)).to(var.dtype))
        return z, scale, shift


def normalised(norm: BatchNorm, u: Tensor, batch: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Apply batch norm to [B, C, *space]; also return scale and shift [C] of the currents, without a gradient.

    ``batch=False`` takes scale and shift from the running statistics, even if z uses the statistics of the batch. The
    forward pass changes them, so that within the backward pass it cannot be repeated.
    """
    if not batch and norm.training and not torch.compiler.is_compiling() and backward_pass() >= 0:
        raise ValueError(
            'bn_stats: "running" does not go with activation checkpointing, which repeats the forward pass after it '
            'changed the running statistics: give "batch"'
        )
    batch = batch and uses_batch(norm)
    if batch and isinstance(norm, SyncBatchNorm):
        return norm.normalise(u)
    z = applied(norm, u)
    with torch.no_grad():
        return z, *(scale_shift(norm, u) if batch else fold_norm(norm))


@torch.no_grad()
def scale_shift(norm: BatchNorm, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift [C] by the statistics of the batch u [B, C, *space], without a gradient."""
    var, mean = torch.var_mean(u, [d for d in range(u.dim()) if d != 1], correction=0)
    return _scale_shift(norm, mean, var)


def applied(norm: BatchNorm, u: Tensor) -> Tensor:
    """Apply batch norm in the type of its tensors, which torch asks for where that of u is wider; return that of u."""
    own = norm.running_mean if norm.weight is None else norm.weight
    x = u if own is None or own.dtype.itemsize >= u.dtype.itemsize else u.to(own.dtype)
    if not norm.training:
        return as_rows(norm, x).to(u.dtype)
    # Torch saves the running statistics for the backward pass, before which another place may change them by track.
    copies = {name: t.clone() for name, t in norm.named_buffers() if name.startswith("running_")}
    z = as_rows(lambda x: functional_call(norm, copies, x), x)
    with torch.no_grad():
        for name, t in copies.items():
            norm.get_buffer(name).copy_(t)
    return z.to(u.dtype)


def own_norm(norm: object) -> BatchNorm | None:
    """Check a layer's batch norm, and convert torch's SyncBatchNorm, which runs on GPUs only, to this one."""
    if norm is not None and not isinstance(norm, BatchNorm):
        raise TypeError(f"norm: expected a batch norm of torch.nn or None, got {type(norm).__name__}")
    return SyncBatchNorm(norm, norm.process_group) if isinstance(norm, nn.SyncBatchNorm) else norm


class _Normalise(torch.autograd.Function):
    """Batch norm with statistics, and in the backward pass gradients, summed over processes."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, ...]:
        dtype = compute_dtype(u.dtype)
        dims = [d for d in range(u.dim()) if d != 1]
        wide = u.double()
        count = wide.new_full((1,), u.numel() // u.shape[1])
        sums = _total(torch.cat([count, wide.sum(dims), (wide * wide).sum(dims)]), group)
        n, s1, s2 = sums.split([1, u.shape[1], u.shape[1]])
        mean = s1 / n
        var = (s2 / n - mean * mean).clamp_min(0).to(dtype)
        mean = mean.to(dtype)
        rstd = torch.add(1 / (var + eps).double().sqrt().to(dtype), var, alpha=0)
        scale = rstd if gamma is None else gamma.to(dtype) * rstd
        shift = -mean * scale if beta is None else beta.to(dtype) - mean * scale
        z = (u.to(dtype) * over_space(scale, u.shape) + over_space(shift, u.shape)).to(u.dtype)
        ctx.save_for_backward(u, mean, rstd, scale, n)
        ctx.group = group
        ctx.mark_non_differentiable(scale, shift, mean, var, n)
        return z, scale, shift, mean, var, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        u, mean, rstd, scale, n = ctx.saved_tensors
        dims = [d for d in range(u.dim()) if d != 1]
        grad_z = grad.to(scale.dtype)
        xhat = (u.to(scale.dtype) - over_space(mean, u.shape)) * over_space(rstd, u.shape)
        grad_beta = grad_z.sum(dims)
        grad_gamma = (grad_z * xhat).sum(dims)
        total = _total(torch.stack([grad_beta, grad_gamma]).double(), ctx.group) / n
        to_mean, to_var = (over_space(part.to(scale.dtype), u.shape) for part in total)
        grad_u = over_space(scale, u.shape) * (grad_z - to_mean - xhat * to_var)
        needs_gamma, needs_beta = ctx.needs_input_grad[1:3]
        return grad_u.to(u.dtype), grad_gamma if needs_gamma else None, grad_beta if needs_beta else None, None, None


def _total(sums: Tensor, group: Any) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums, group=group)
    return sums
