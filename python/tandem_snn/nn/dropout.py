"""Dropout of whole spike trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain

from .signals import X, check_input, map_features, with_gain


class Dropout(nn.Dropout):
    """While training, silences each neuron of each sample for the whole window with probability p; off in evaluation.

    Spikes stay 0 and 1: the surviving trains are worth 1/(1-p), as their ``gain``. A tensor of counts is scaled.

    Args:
        p: the probability that a neuron is silenced.

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
        kept = map_features(x, lambda t: t * keep)
        return kept if self.p == 1 else with_gain(kept, x.gain / (1 - self.p))
