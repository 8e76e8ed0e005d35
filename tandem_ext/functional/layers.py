"""Functional layers: a linear map, convolution or batch norm, or given currents, followed by spiking neurons."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from .. import checks
from ..inputs import ConstantInput, ImpulseInput
from .layer import Input, Result, current_if, product_if
from .neuron import channels_of
from .products import LINEAR, convolution
from .settings import Neuron, Settings, check_neuron, shows

Size = int | tuple[int] | tuple[int, int]


@shows(Neuron)
def linear_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    **neuron: Unpack[Neuron],
) -> Result:
    """A fully connected layer of integrate-and-fire neurons, trained by the tandem rule.

    With y[t] = W s_in[t] and a window of T steps, for every neuron and t = 0 .. T-1:

        v += scale·gain·y[t] + (scale·bias + shift)/T + residual[t],    s[t] = (v ≥ ϑ),    v = λ·v - ϑ·s[t]

    The currents sum to the ANN's pre-activation z = scale·(gain·W c + bias) + shift + Σ residual at the input's spike
    counts c. With timing "window" the neuron first integrates the whole window, v = v_init + z. It then spikes while
    v ≥ ϑ, subtracting ϑ each time, at most T times; so there is one product for any T. In the backward pass the
    output's counts have the gradient of ρ(z)/ϑ at the real counts. No gradient flows through single spikes, and only
    their bits are stored for the steps.

    Args:
        x: the input [B, K]: a :class:`SpikeTrain`; or a :class:`ConstantInput` or :class:`ImpulseInput`, whose product
            is computed once.
        weight: [N, K]; float32, bfloat16, float16 or float64. Low precisions are multiplied and integrated in float32.
            An int8 weight has exact sums but no gradient; ``scale`` is then the value of one unit of each row.
        bias: [N], for the whole window: each step receives 1/T of it.
        scale, shift: [N], for example from a folded batch norm. Like bias, shift is for the whole window.
        neuron: the settings of the neurons and the residual, see :class:`Neuron`.

    Returns:
        The output spikes, a :class:`SpikeTrain` [B, N] with counts in the dtype of the weight (float32 for int8); with
        ``return_v`` a pair (train, v).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or T do not fit, or a setting is out of range.

    >>> x = te.SpikeTrain.from_dense(torch.ones(4, 1, 2))
    >>> weight = torch.tensor([[0.25, 0.25]], requires_grad=True)
    >>> train = te.functional.linear_if(x, weight)
    >>> train.to_dense(torch.int).flatten().tolist()
    [0, 1, 0, 1]
    >>> train.counts.sum().backward()
    >>> weight.grad  # z > 0, so the gradient is that of W c at the counts 4 and 4
    tensor([[4., 4.]])
    """
    return _run(x, weight, (2,), (), neuron, bias, scale, shift)[0]


@shows(Neuron)
def conv_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    **neuron: Unpack[Neuron],
) -> Result:
    """A convolution followed by integrate-and-fire neurons: ``conv1d_if`` and ``conv2d_if``.

    The same as :func:`linear_if`, with y[t] = conv1d(s_in[t], weight) for x [B, K, L] and weight [N, K/groups, k], or
    y[t] = conv2d(s_in[t], weight) for x [B, K, H, W] and weight [N, K/groups, kh, kw]. ``stride``, ``padding`` (also
    "same" and "valid"), ``dilation`` and ``groups`` are those of ``torch.nn.functional.conv1d`` and ``conv2d``. Tensors
    per channel are per output channel, [N]. The output is [B, N, L'] or [B, N, H', W'], channels-last in memory.

    Raises:
        TypeError, ValueError: as in :func:`linear_if`; also for a stride or dilation below 1, a padding
            below 0, groups that do not divide the channels, and a kernel larger than the padded input.

    >>> x = te.SpikeTrain.from_dense(torch.ones(4, 1, 1, 5))
    >>> te.functional.conv1d_if(x, torch.full((2, 1, 3), 0.25), padding=1).counts
    tensor([[[2., 3., 3., 3., 2.],
             [2., 3., 3., 3., 2.]]])
    >>> x = te.SpikeTrain.from_dense(torch.ones(4, 1, 1, 3, 3))
    >>> te.functional.conv2d_if(x, torch.full((1, 1, 3, 3), 0.125), padding="same").counts
    tensor([[[[2., 3., 2.],
              [3., 4., 3.],
              [2., 3., 2.]]]])
    """
    return _run(x, weight, (3, 4), (stride, padding, dilation, groups), neuron, bias, scale, shift)[0]


conv1d_if = conv2d_if = conv_if  # the weight says which


@shows(Neuron)
def bn_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    eps: float = 1e-5,
    **neuron: Unpack[Neuron],
) -> tuple[Result, Tensor, Tensor]:
    """:func:`linear_if`, or :func:`conv_if` if the weight is a kernel, with batch norm in training mode.

    With u = gain·W c, z = γ·(u - mean(u))/√(var(u) + eps) + β + Σ residual. mean and var are batch statistics over
    samples and spatial positions, and gradients flow through them as in ``torch.nn.BatchNorm``. For evaluation, fold
    batch norm into ``scale`` and ``shift``.

    Args:
        x, weight, neuron: as in :func:`linear_if`, except that weight cannot be int8.
        bias: [N]. It cancels in z and only shifts the returned mean.
        gamma, beta: [N], default 1 and 0. beta is for the whole window.
        stride, padding, dilation, groups: as in :func:`conv_if`.
        eps: added to the variance.

    Returns:
        (train, mean, var), with ``return_v`` ((train, v), mean, var). mean and var [N] are the statistics of
        gain·W c + bias, with which to update running statistics. var is the biased variance. They have no gradient.

    Raises:
        TypeError, ValueError: as in :func:`conv_if`; ValueError also for a batch with fewer than two
            values per channel.

    >>> x = te.SpikeTrain.from_dense(torch.tensor([[[0.0], [1.0]]]))
    >>> train, mean, var = te.functional.bn_if(x, torch.tensor([[4.0]]))
    >>> train.counts.tolist(), mean, var
    ([[0.0], [0.0]], tensor([2.]), tensor([4.]))
    """
    return _run(x, weight, (2, 3, 4), (stride, padding, dilation, groups), neuron, bias, gamma, beta, eps)


@shows(Neuron)
def if_scan(
    currents: Tensor | ConstantInput | ImpulseInput,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    **neuron: Unpack[Neuron],
) -> Result:
    """Integrate-and-fire neurons driven by given input currents.

    The same as :func:`linear_if`, with the currents instead of y. In the backward pass the currents of all steps
    receive the same gradient, scale·grad_z, as a view expanded over time.

    Args:
        currents: floating point [T, B, *features], T in 1..65535; or a :class:`ConstantInput` or :class:`ImpulseInput`,
            whose x [B, *features] is the current. The first feature dimension is the channels.
        scale, shift, neuron: as in :func:`linear_if`; per-channel tensors have one value for each channel.

    Returns:
        The output spikes, a :class:`SpikeTrain` [B, *features]; with ``return_v`` a pair (train, v).

    Raises:
        TypeError, ValueError: as in :func:`linear_if`.

    >>> train, v = te.functional.if_scan(torch.full((4, 1, 1), 0.375), return_v=True)
    >>> train.to_dense(torch.int).flatten().tolist(), v.item()
    ([0, 0, 1, 0], 0.5)
    """
    gain: float | Tensor = 1.0
    if isinstance(currents, (ConstantInput, ImpulseInput)):
        current, source, T, shape, gain = currents.x, currents.source, currents.T, currents.shape, currents.gain
    else:
        direct = ", a ConstantInput or an ImpulseInput"
        checks.over_time("currents", currents, "a floating-point tensor", checks.is_float, direct)
        current, source, T, shape = currents, "train", currents.shape[0], currents.shape[1:]
    check_neuron(neuron, T, channels_of(shape))
    return current_if(current, source, gain, Settings(T, None, scale, shift, **neuron))[0]


def _run(
    x: Input,
    weight: Tensor,
    dims: tuple[int, ...],
    geometry: tuple[Any, ...],
    neuron: Neuron,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float | None = None,
) -> Any:
    """Check the arguments that are not per channel, and run the layer.

    The weight has one of these numbers of dimensions; ``geometry`` is (stride, padding, dilation, groups) of a kernel.
    """
    checks.signal("x", x)
    checks.weight("weight", weight, dims, or_int8=eps is None)
    if eps is not None:
        checks.eps(eps)
    product = convolution(weight.shape[2:], *geometry) if weight.dim() > 2 else LINEAR
    if geometry and product is LINEAR and geometry != (1, 0, 1, 1):
        raise ValueError(f"stride, padding, dilation, groups: a weight [N, K] takes none, got {geometry}")
    if neuron:
        check_neuron(neuron, x.T, weight.shape[0])
    return product_if(x, weight, product, Settings(x.T, bias, scale, shift, None, eps, **neuron))
