"""What TensorBoard is shown of a network's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data import Split
from ..measure import Monitor
from ..measure.hooks import FIRING, evaluating

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SAMPLES = 256


def log_layers(board: SummaryWriter, net: nn.Module, split: Split, epoch: int) -> None:
    """The firing rate of each layer with neurons as a scalar, those of its neurons as a histogram, in evaluation mode
    over the first samples of the split. Of a network without spikes nothing.
    """
    if not any(isinstance(layer, FIRING) for layer in net.modules()):
        return
    x: Any = next(split.batches(SAMPLES))[0].to(next(net.parameters()).device)
    with torch.no_grad(), evaluating(net), Monitor(net, samples=1) as monitor:
        net(x)
    for name, layer in monitor.items():
        board.add_scalar(f"firing_rate/{name}", layer.rates.mean().item(), epoch)
        board.add_histogram(f"firing_rates/{name}", layer.rates.flatten(), epoch)
