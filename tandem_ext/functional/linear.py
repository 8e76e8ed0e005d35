"""IF neurons behind a linear map."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..train import SpikeTrain
from .layer import Input, Result, product_layer
from .products import LINEAR


def linear_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: float | Tensor = 1.0,
    leak: float = 1.0,
    v_init: float | Tensor = 0.0,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: SpikeTrain | Tensor | None = None,
    gate: str = "relu",
    steps: int | None = None,
    return_v: bool = False,
) -> Result:
    """A fully connected layer of integrate-and-fire neurons, trained by the tandem rule.

    With y[t] = W s_in[t] and a window of T steps, for every neuron and t = 0 .. T-1:

        v += scale·gain·y[t] + (scale·bias + shift)/T + residual[t],    s[t] = (v ≥ ϑ),    v = leak·v - ϑ·s[t]

    so that the currents sum to the ANN's pre-activation z = scale·(gain·W c + bias) + shift + Σ residual at the input's
    spike counts c. In the backward pass the output's counts have the gradient of ρ(z)/ϑ, taken at the real counts:
    nothing flows through the spikes, and of the steps nothing is stored but their bits.

    Args:
        x: the input [B, K]: a :class:`SpikeTrain`; or a :class:`ConstantInput` or :class:`ImpulseInput`, whose product
            is computed once.
        weight: [N, K]; float32, bfloat16, float16 or float64. Low precisions are multiplied and integrated in float32.
            Or int8, which has no gradient and whose sums are exact: scale then says what a unit of a row is worth.
        bias: [N], for the whole window: each step receives 1/T of it.
        threshold: ϑ > 0, a float, or a 0-dim or [N] tensor, which may be learned.
        leak: λ in (0, 1]; 1 is the IF neuron, less a leaky one.
        v_init: the potential before the first step: a float, or a tensor that is 0-dim, [N] or [B, N].
        scale, shift: [N], such as those of a folded batch norm; shift is for the whole window, as bias is.
        residual: added to the currents after scale and shift: a train of the output's shape and T, which counts with
            its gain, or currents [T, B, N].
        gate: where gradients pass. "relu": z > 0; "clip": 0 < z < ϑT; "resu": z > 0, and neurons with z ≤ 0 are
            silenced.
        steps: the length of the window over which bias and shift are spread, where x is only a part of it (default: T).
        return_v: also return the potential after the last step, [B, N], in float32 (float64 for float64 weights).

    Returns:
        The neurons' spikes, a :class:`SpikeTrain` [B, N] with counts in the type of the weight, for int8 in float32;
        with ``return_v`` a pair (train, v). v has no gradient.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes, devices or T that do not fit; a threshold, leak, gate or steps out of range.
        RuntimeError: CUDA tensors, but a build without CUDA kernels.

    >>> x = te.SpikeTrain.from_dense(torch.ones(4, 1, 2))
    >>> weight = torch.tensor([[0.25, 0.25]], requires_grad=True)
    >>> train = te.functional.linear_if(x, weight)
    >>> train.to_dense(torch.int).flatten().tolist()
    [0, 1, 0, 1]
    >>> train.counts.sum().backward()
    >>> weight.grad  # z > 0, so the gradient is that of W c at the counts 4 and 4
    tensor([[4., 4.]])
    """
    checks.signal("x", x)
    checks.weight("weight", weight, 2, "[N, K]", or_int8=True)
    return product_layer(
        x, LINEAR, weight, bias, scale, shift, residual, threshold, leak, v_init, gate, steps, return_v
    )
