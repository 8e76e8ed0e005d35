"""Flatten and Dropout: layers without neurons, from trains to trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from .signals import X, check_input, map_features


class Flatten(nn.Flatten):
    """``torch.nn.Flatten`` for trains, direct inputs and counts.

    Features are in C, H, W order for any memory format.

    Args:
        start_dim, end_dim: dimensions of [B, *features]; the batch, dimension 0, cannot be included.

    Raises:
        ValueError: start_dim is 0.

    >>> tnn.Flatten()(te.ConstantInput(torch.rand(2, 4, 3, 3), T=8))
    ConstantInput(T=8, shape=[2, 36], gain=1.0, device=cpu)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        if start_dim == 0:
            raise ValueError("start_dim: the batch (dimension 0) cannot be flattened into the features")
        super().__init__(start_dim, end_dim)

    def forward(self, x: X) -> X:
        check_input(x, "Flatten")
        dims = len(x.shape)
        if dims == 1:
            return x
        start, end = self.start_dim % dims - dims, self.end_dim % dims - dims  # negative: planes have an extra dim
        flat: Any = map_features(x, lambda t: t.flatten(start, end))
        gain = 1.0 if isinstance(x, Tensor) else x.gain
        if isinstance(gain, Tensor) and gain.dim() and start == 1 - dims:  # one channel becomes several features
            flat = flat.but(gain=gain.repeat_interleave(flat.shape[1] // len(gain)))
        return flat


class Dropout(nn.Dropout):
    """Silence each neuron of each sample for the whole window with probability p, in training mode only.

    The remaining spikes are still 0 or 1; the ``gain`` of the train is multiplied by 1/(1-p). Counts given as a tensor
    are scaled.

    Args:
        p: the probability that a neuron is silenced, 0 to 1.

    Raises:
        ValueError: p is out of range.

    >>> tnn.Dropout(0.2)(te.SpikeTrain.from_dense(torch.ones(8, 2, 3))).gain
    1.25
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    def forward(self, x: X) -> X:
        check_input(x, "Dropout")
        if not self.training or self.p == 0:
            return x
        if isinstance(x, Tensor):
            return super().forward(x)  # type: ignore[return-value]
        values = x.stored[0] if isinstance(x, SpikeTrain) else x.x
        keep = torch.empty_like(values, dtype=torch.float32).bernoulli_(1 - self.p).bool()
        kept: Any = map_features(x, lambda t: t * keep)
        if self.p < 1:
            kept = kept.but(gain=x.gain / (1 - self.p))
        return kept
