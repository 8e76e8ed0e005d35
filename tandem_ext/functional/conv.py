"""IF neurons behind a convolution."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import checks
from ..train import SpikeTrain
from .layer import Input, Result, pad, product_layer
from .products import conv_product

Size1 = int | tuple[int]
Size2 = int | tuple[int, int]


def conv1d_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size1 = 1,
    padding: Size1 | str = 0,
    dilation: Size1 = 1,
    groups: int = 1,
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
    """A layer of integrate-and-fire neurons behind a 1-d convolution.

    As :func:`linear_if`, with y[t] = conv1d(s_in[t], weight) for x [B, K, L] and weight [N, K/groups, k]. ``stride``,
    ``padding`` (also "same" and "valid"), ``dilation`` and ``groups`` are those of ``torch.nn.functional.conv1d``;
    bias, threshold, scale and shift are per output channel, [N]. The output is [B, N, L'], channels-last in memory.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`linear_if`; also for a stride or dilation below 1, a padding
            below 0, groups that do not divide the channels, and a kernel larger than the padded input.

    >>> x = te.SpikeTrain.from_dense(torch.ones(4, 1, 1, 5))
    >>> te.functional.conv1d_if(x, torch.full((2, 1, 3), 0.25), padding=1).counts
    tensor([[[2., 3., 3., 3., 2.],
             [2., 3., 3., 3., 2.]]])
    """
    checks.signal("x", x)
    checks.weight("weight", weight, 3, "[N, K/groups, k]", or_int8=True)
    return _conv_if(
        x, weight, bias, stride, padding, dilation, groups, scale, shift,
        residual, threshold, leak, v_init, gate, steps, return_v,
    )  # fmt: skip


def conv2d_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
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
    """A layer of integrate-and-fire neurons behind a 2-d convolution.

    As :func:`linear_if`, with y[t] = conv2d(s_in[t], weight) for x [B, K, H, W] and weight [N, K/groups, kh, kw].
    ``stride``, ``padding`` (also "same" and "valid"), ``dilation`` and ``groups`` are those of
    ``torch.nn.functional.conv2d``; bias, threshold, scale and shift are per output channel, [N]. The output is
    [B, N, H', W'], channels-last in memory.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`conv1d_if`.

    >>> x = te.SpikeTrain.from_dense(torch.ones(4, 1, 1, 3, 3))
    >>> te.functional.conv2d_if(x, torch.full((1, 1, 3, 3), 0.125), padding="same").counts
    tensor([[[[2., 3., 2.],
              [3., 4., 3.],
              [2., 3., 2.]]]])
    """
    checks.signal("x", x)
    checks.weight("weight", weight, 4, "[N, K/groups, kh, kw]", or_int8=True)
    return _conv_if(
        x, weight, bias, stride, padding, dilation, groups, scale, shift,
        residual, threshold, leak, v_init, gate, steps, return_v,
    )  # fmt: skip


def _conv_if(
    x: Input,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    scale: Tensor | None,
    shift: Tensor | None,
    *neuron: Any,
) -> Result:
    product, sides = conv_product(weight, stride, padding, dilation, groups)
    return product_layer(pad(x, sides) if sides else x, product, weight, bias, scale, shift, *neuron)
