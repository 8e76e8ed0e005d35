"""The functions in plain PyTorch, on any device: the definition against which all kernels are tested.

Each function returns the same as the function of that name in :mod:`tandem_ext.functional`, bit for bit, with or
without kernels, by the rule in ``tandem_ext/rule.py``. It does not check arguments, and is slow:
``tandem_ext/composite.py`` has the ops that run where there are no kernels.
"""

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._load import has_kernels
from .functional.attention import mean_gain, product
from .functional.autograd import apply
from .functional.currents import StraightThrough
from .functional.layer import Input, Result
from .functional.products import LINEAR, convolution, products_of_steps, torch_product
from .inputs import ConstantInput, ImpulseInput
from .ops import compute_dtype, counts_dtype
from .rule import Residual, batch_statistics, fire, fixed_point, lost, spikes_of, wide
from .train import SpikeTrain, with_flags


def linear_if(x: Input, weight: Tensor, *arguments: Any, **options: Any) -> Result:
    """IF neurons driven by ``weight @ s[t]``, or by a convolution if the weight has spatial dimensions.

    Arguments as in :func:`tandem_ext.functional.linear_if`, ``conv1d_if`` and ``conv2d_if``.
    """
    return _layer(x, weight, *arguments, **options)[0]


def bn_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *geometry: Any,
    eps: float = 1e-5,
    **options: Any,
) -> tuple[Result, Tensor, Tensor]:
    """:func:`linear_if` with batch norm in training mode; see :func:`tandem_ext.functional.bn_if`."""
    return _layer(x, weight, bias, *geometry, scale=gamma, shift=beta, eps=eps, **options)


def if_scan(currents: Tensor | ConstantInput | ImpulseInput, **options: Any) -> Result:
    """IF neurons driven by given currents [T, B, *features]; see :func:`tandem_ext.functional.if_scan`."""
    return _layer(currents, None, **options)[0]


def follow_if(x: SpikeTrain, weight: Tensor, counts: Tensor, *geometry: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """One step of neurons that follow their input: the state of a stream of a network with window timing.

    Each count moves by at most one towards its target, the count of a neuron with timing "window" for the present
    counts of the inputs, with every rounding of that layer; that of a NaN potential is 0. The move is the spike.

    Args:
        x: a train with the present counts of the inputs; only they matter.
        weight, geometry, options: as for :func:`linear_if`; a residual is a train with the present counts of its
            source, or currents [1, B, *features], the present ones of a projection.
        counts: the neurons' counts before the step, int64 [B, *features].

    Returns:
        (counts, moves): int64 [B, *features], the counts after the step, and 1, 0 or -1.
    """
    train = linear_if(x, weight, None, *geometry, timing="window", **options)
    assert isinstance(train, SpikeTrain)
    moves = (train.stored[0].long() - counts).sign()
    return counts + moves, moves


conv1d_if = conv2d_if = linear_if


def attention(q: SpikeTrain, k: SpikeTrain, v: SpikeTrain, heads: int) -> Tensor:
    """Products of counts in each head, in int64; see :func:`tandem_ext.functional.attention`."""
    cq, ck, cv = (x.clean_counts().double() for x in (q, k, v))
    dtype, exact = compute_dtype(v._dtype), product(cq.long(), ck.long(), cv.long(), heads)
    u: Tensor = apply(StraightThrough, product(cq, ck, cv, heads).to(dtype), exact.to(dtype), None)
    u = reduce(with_flags, (q.bad, k.bad, v.bad), u)
    return (u * (q.gain * k.gain * v.gain * mean_gain(k.shape[1], k.shape[2] // heads))).unsqueeze(0)


# --- a layer ----------------------------------------------------------------------------------------------------------


def tandem_counts(z: Tensor, theta: Tensor, counts: Tensor, is_open: Tensor) -> Tensor:
    """Return the spike counts c, with the gradient of ρ(z)/ϑ: ∂c/∂z = gate/ϑ and ∂c/∂ϑ = -gate·c/ϑ."""
    rate = torch.where(is_open, (z - counts * theta) / theta.detach(), 0)
    return apply(StraightThrough, rate, counts, None)


def _layer(
    x: Tensor | Input,
    weight: Tensor | None,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float | None = None,
    step: Tensor | None = None,
    threshold: float | Tensor = 1.0,
    leak: float = 1.0,
    v_init: float | Tensor | None = None,
    residual: SpikeTrain | Tensor | None = None,
    gate: str = "relu",
    timing: str = "step",
    steps: int | None = None,
    return_v: bool = False,
) -> Any:
    """Neurons with z = scale·(gain·step·W c + bias) + shift, or driven by x if there is no weight.

    With ``eps``, scale and shift are γ and β of batch norm: currents and ANN branch use the same batch statistics.
    ``step`` [N] is the quantisation step of int8 weights. With a tensor threshold potentials are in units of it, and
    neurons fire at 1. A sample is bad if its input was, or if a final potential is not finite; leak and reset cannot
    make it finite again.

    Returns:
        (train, mean, var), or ((train, v), mean, var) with ``return_v``.
    """
    like: Any = x if weight is None else weight
    dtype = (like if isinstance(like, Tensor) else like.x).dtype
    dtype = torch.float32 if dtype == torch.int8 else dtype
    geometry = (stride, padding, dilation, groups)
    y, u, T, total, gain = _currents(x, weight, geometry, compute_dtype(dtype), timing)
    unit = _per_channel(threshold if isinstance(threshold, Tensor) else 1.0, y)
    unit = unit + 0 * unit.detach()  # makes an infinite threshold NaN
    theta, fire_at = (unit, 1.0) if isinstance(threshold, Tensor) else (y.new_tensor(threshold), threshold)
    bad = [t.bad for t in (x, residual) if isinstance(t, SpikeTrain) and t.bad is not None]

    s, g, b = (_per_channel(value, y) for value in (step, gain, 0.0 if bias is None else bias))
    mean = var = None
    if eps is None:
        w, k = _per_channel(scale, y), _per_channel(0.0 if shift is None else shift, y)
        ann = w * (g * s * total + b) + k
        factor, term = (w * s * g / unit).detach(), ((w * b + k) / unit).detach()
    else:
        bad = [flags.sum(0, True) if flags is getattr(x, "bad", None) else flags for flags in bad]  # of any sample
        gamma = y.new_ones(y.shape[2]) if scale is None else scale.to(y.dtype)
        beta = torch.zeros_like(gamma) if shift is None else shift.to(y.dtype)
        ann = F.batch_norm(s * g * total, None, None, gamma, beta, True, 0.0, eps)
        with torch.no_grad():
            (g, units), rows = ((s * g).flatten(), unit.flatten()), u.movedim(1, -1).flatten(0, -2)
            mean, var, factor, term = batch_statistics(rows, g, gamma / units, beta / units, eps)
            factor, term = _per_channel(factor, y), _per_channel(term, y)
            mean, var = g * mean + b.flatten(), g * g * var

    more = None
    if residual is not None:
        r, r_sum, value = _residual(residual, y)
        more = Residual(r, r_sum.detach(), value.detach() / unit.detach())
        ann = ann + value * r_sum
    if v_init is None:
        v_init = threshold / 2 if timing == "window" else 0.0
    with torch.no_grad():
        v = torch.as_tensor(v_init, dtype=y.dtype, device=y.device)
        v = ((_per_channel(v, y) if v.dim() == 1 else v) / unit).expand(y.shape[1:])
        stored, fired, v, is_open = fire(y, u, factor, term, more, v, T, steps or T, fire_at, leak, gate, timing)
    counts = tandem_counts(ann, theta, fired, is_open).to(counts_dtype(dtype, T))  # type: ignore[arg-type]
    flags = reduce(torch.add, bad, lost(v).float())
    fires = steps or T if timing == "window" else T
    train = SpikeTrain.unchecked(stored, fires, counts, timing=timing, bad=flags)
    return (train, v * unit.detach()) if return_v else train, mean, var


def _currents(
    x: Tensor | Input, weight: Tensor | None, geometry: Any, dtype: torch.dtype, timing: str
) -> tuple[Tensor, Tensor, int, Tensor, float | Tensor]:
    """Multiply the input x by the weight, if there is one; an output with an infinite or NaN weight gets NaN.

    Returns:
        (y, u, T, total, gain): y is [T, B, *features] in ``dtype``, with timing "window" u; u is the product over the
        window, [B, *features], exact and rounded once, or the sum of given currents in the order of the steps; total is
        the same with a gradient; gain is that of x.
    """
    if isinstance(x, Tensor):
        y = x.to(dtype).detach()
        u = reduce(torch.add, y)
        return u.unsqueeze(0) if timing == "window" else y, u, len(x), x.to(dtype).sum(0), 1.0
    gain = x.gain
    if weight is not None and isinstance(gain, Tensor) and gain.dim():  # multiply it into the weights of each channel
        rows = gain.view(geometry[-1], 1, -1).expand(-1, len(weight) // geometry[-1], -1).flatten(0, 1)
        weight, gain = (weight * rows.view(*rows.shape, *[1] * (weight.dim() - 2))).to(weight.dtype), 1.0

    def product(a: Tensor, weight: Tensor | None = weight) -> Tensor:
        """The sum, rounded once: float32 may be multiplied by algorithms that round more often, such as Winograd's."""
        if weight is None:
            return a
        factors, convolve = (wide(a), wide(weight)), F.conv1d if weight.dim() == 3 else F.conv2d
        return (F.linear(*factors) if weight.dim() == 2 else convolve(*factors, None, *geometry)).to(a.dtype)

    def spike_product(a: Tensor) -> Tensor:
        """The same of counts or spikes, by which neurons fire; where there are no kernels by torch in its order."""
        assert weight is not None
        if has_kernels(weight.device, weight.dtype):
            return product(a, fixed_point(weight))
        way = LINEAR if weight.dim() == 2 else convolution(weight.shape[2:], *geometry)
        return torch_product(a, weight.to(dtype), way)

    if not isinstance(x, SpikeTrain):
        current = product(x.x).to(dtype)
        total = x.T * current if isinstance(x, ConstantInput) else current
        u = total.detach()
        y = current.detach().expand(1 if timing == "window" else x.T, *current.shape)
        if isinstance(x, ImpulseInput):
            y = torch.cat([y[:1], torch.zeros_like(y[1:])])
        return u.unsqueeze(0) if timing == "window" else y, u, x.T, total, gain
    counts = _counts(x, dtype)
    with torch.no_grad():
        u = spike_product(counts)
        y = u.unsqueeze(0)
        if timing == "step":
            y = torch.stack(list(products_of_steps(unpack(x, dtype).split(8), spike_product)))
        bad = _per_channel(lost(weight), y)  # type: ignore[arg-type]
    return y + bad, u + bad, x.T, apply(StraightThrough, product(counts), u, None) + bad, gain


def _residual(residual: SpikeTrain | Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the currents that a residual adds at each step, their sum in the order of the steps, and their gain."""
    if isinstance(residual, Tensor):
        return residual.detach().to(y.dtype), reduce(torch.add, residual.to(y.dtype)), y.new_ones(())
    return unpack(residual, y.dtype), _counts(residual, y.dtype), _per_channel(residual.gain, y)


def _per_channel(value: float | Tensor | None, y: Tensor) -> Tensor:
    """Return a number, or a per-channel tensor, None for 1, as a tensor that broadcasts against [..., B, C, *space]."""
    tensor = torch.as_tensor(1.0 if value is None else value, dtype=y.dtype, device=y.device)
    return tensor.view(-1, *[1] * (y.dim() - 3)) if tensor.dim() else tensor


# --- trains -----------------------------------------------------------------------------------------------------------


def unpack(train: SpikeTrain, dtype: torch.dtype) -> Tensor:
    """Return the spikes of a train, [T, B, *features]."""
    return spikes_of(train.stored, train.T, train.timing, dtype)


def _counts(train: SpikeTrain, dtype: torch.dtype) -> Tensor:
    return unpack(train, dtype).sum(0) if train.edge is None else train.edge.to(dtype)
