"""FLOP formulas of the ops for torch's FlopCounterMode: the operations of the ANN twin.

They do not depend on T or on firing rates, so that networks can be compared. ``tandem_snn.measure.synops`` counts the
synaptic operations, which do.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _load  # noqa: F401  (registers the ops)

# Only ops with a product: torch counts no element-wise ops, and it computes the products of the backward pass itself.
PRODUCTS = ("linear_if", "conv_if", "bn_if")


@register_flop_formula([getattr(torch.ops.tandem, name) for name in PRODUCTS])
def _(stored: Any, T: int, weight: Sequence[int], *_: Any, out_shape: Sequence[Any], **__: Any) -> int:
    return _product(weight, out_shape[0][1:])  # of spikes [P, B, N, *space]


@register_flop_formula(torch.ops.tandem.window_product)
def _(stored: Any, T: int, weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return _product(weight, out_shape)


def _product(weight: Sequence[int], outputs: Sequence[int]) -> int:
    """The operations for outputs [B, N, *space]."""
    return 2 * prod(weight) * outputs[0] * prod(outputs[2:])
