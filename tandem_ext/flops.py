"""FLOP counters see the operations of the ANN twin, whatever T and the firing rate, to compare with other networks.

``tandem_snn.measure.synops`` counts what a spiking network costs per spike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _load  # noqa: F401  (registers the ops)

# The ops with a product. torch counts no element-wise ops, and the products of the backward pass are its own.
PRODUCTS = ("linear_if", "linear_bn_if", "conv_if", "conv_bn_if")


def macs(weight: Sequence[int], planes: Sequence[int]) -> int:
    """Multiply-accumulates of a product, from the weight's shape [N, K, *kernel] and the output's [P, B, N, *space].

    >>> macs([4, 3], [1, 5, 4])
    60
    """
    return prod(weight) * planes[1] * prod(planes[3:])


@register_flop_formula([getattr(torch.ops.tandem, name) for name in PRODUCTS])
def _(planes: Any, T: int, weight: Sequence[int], *_: Any, out_shape: Sequence[Any], **__: Any) -> int:
    return 2 * macs(weight, out_shape[0])


def fvcore_handles() -> dict[str, Callable[[Sequence[Any], Sequence[Any]], int]]:
    """Handles by which ``fvcore.nn.FlopCountAnalysis`` counts the ops, in its unit, the multiply-accumulate.

    Use ``FlopCountAnalysis(net, x).set_op_handle(**te.flops.fvcore_handles())`` within ``torch.no_grad()``: with
    gradients its trace sees autograd Functions instead of the ops, and it warns.

    >>> sorted(fvcore_handles())[0]
    'tandem::conv_bn_if'
    """

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return macs(inputs[2].type().sizes(), outputs[0].type().sizes())

    return dict.fromkeys((f"tandem::{name}" for name in PRODUCTS), handle)
