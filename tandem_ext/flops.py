"""FLOP formulas of the ops for torch's FlopCounterMode and fvcore: the operations of the ANN twin.

They do not depend on T or on firing rates, so that networks can be compared. ``tandem_snn.measure.synops`` counts the
synaptic operations, which do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _load  # noqa: F401  (registers the ops)

# Only ops with a product: torch counts no element-wise ops, and it computes the products of the backward pass itself.
PRODUCTS = ("linear_if", "linear_bn_if", "conv_if", "conv_bn_if")


def macs(weight: Sequence[int], planes: Sequence[int]) -> int:
    """Return the multiply-accumulates of a product with a weight [N, K, *kernel] and output [P, B, N, *space]."""
    return prod(weight) * planes[1] * prod(planes[3:])


@register_flop_formula([getattr(torch.ops.tandem, name) for name in PRODUCTS])
def _(planes: Any, T: int, weight: Sequence[int], *_: Any, out_shape: Sequence[Any], **__: Any) -> int:
    return 2 * macs(weight, out_shape[0])


def fvcore_handles() -> dict[str, Callable[[Sequence[Any], Sequence[Any]], int]]:
    """Return the handles with which ``fvcore.nn.FlopCountAnalysis`` counts the ops, in multiply-accumulates.

    Use ``FlopCountAnalysis(net, x).set_op_handle(**te.flops.fvcore_handles())`` within ``torch.no_grad()``: with
    gradients fvcore's trace contains autograd Functions instead of the ops, and fvcore warns.

    >>> sorted(fvcore_handles())[0]
    'tandem::conv_bn_if'
    """

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return macs(inputs[2].type().sizes(), outputs[0].type().sizes())

    return dict.fromkeys((f"tandem::{name}" for name in PRODUCTS), handle)
