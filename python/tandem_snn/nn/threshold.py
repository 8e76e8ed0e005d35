"""Choose thresholds from recorded activations."""

from __future__ import annotations

import torch
from torch import Tensor

from tandem_ext.functional.neuron import over_space

from .general import Neurons
from .neuron import SpikingLayer

_SAMPLE = 2**20  # the number of activations kept of one batch
_PRIOR, _FEW = 16, 256  # the weights of the layer's mean square and threshold, in samples of a channel


def sample_by_channel(activations: Tensor) -> Tensor:
    """Return at most a million evenly spaced activations of [B, C, *space] by channel: float32 [C, N] on the CPU."""
    values = activations.transpose(0, 1).flatten(1) if activations.dim() > 1 else activations.unsqueeze(0)
    return values[:, :: 1 + values.numel() // _SAMPLE].float().cpu()


def percentiles_of(values: Tensor, percentile: float) -> Tensor:
    """Return the value that ``percentile`` per cent of the positive values of a row do not exceed, for rows [C, N].

    It is 0 if there are none.

    >>> percentiles_of(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), 100)
    tensor([2., 0.])
    """
    values, positive = values.clamp_min(0).sort(1).values, (values > 0).sum(1)
    rank = len(values[0]) - positive + ((positive - 1).clamp_min(0) * percentile / 100).round().long()
    return values.gather(1, rank.clamp_max(len(values[0]) - 1).unsqueeze(1)).squeeze(1)


def least_error(values: Tensor, T: int, start: float) -> Tensor:
    """Return the activation a that count T should represent, so that the squared error of the counts is least.

    With ϑ = a/T, activations v > a are cut to a. Activations 0 < v ≤ a are rounded to multiples of ϑ, with an error of
    variance ϑ²/12 about a mean of ϑ(start - 1/2).

    Args:
        values: activations [C, N].
        T: the number of time steps.
        start: the initial membrane potential, in units of ϑ.

    Returns:
        [C]: a for each row, one of its values; 0 if no value is positive.

    >>> least_error(torch.cat([torch.linspace(0, 1, 1000), torch.tensor([9.0])]).unsqueeze(0), T=4, start=0.5) < 2
    tensor([True])
    """
    a = values.clamp_min(0).double().sort(1).values
    above = torch.arange(a.shape[1] - 1, -1, -1)
    total, squares = (powers.sum(1, keepdim=True) - powers.cumsum(1) for powers in (a, a * a))
    lost = squares - 2 * a * total + above * a * a
    rounded = (a > 0).cumsum(1) * (a / T) ** 2 * (1 / 12 + (start - 0.5) ** 2)
    best = torch.where(a > 0, lost + rounded, torch.inf).argmin(1, keepdim=True)
    return a.gather(1, best).squeeze(1).to(values.dtype)


def covering(values: Tensor, T: int, start: float) -> Tensor:
    """Return :func:`least_error` for the channels [C, N] of a layer, adjusted for channels with few samples: [C].

    An estimate from few samples does not generalise. So the fewer samples a channel has, the more it is drawn to an
    estimate from all channels together, each in units of its root mean square. All are 0 if no value is positive.

    >>> covering(torch.tensor([[0.1, 0.0, 0.0], [2.0, 1.0, 4.0]]), T=8, start=0.5) > torch.tensor([0.2, 3.0])
    tensor([True, True])
    """
    positive, squares = (values > 0).sum(1), values.clamp_min(0).square().sum(1)
    if not bool(positive.any()):
        return squares
    mean = squares.sum() / positive.sum()
    scale = ((squares + _PRIOR * mean) / (positive + _PRIOR)).sqrt()
    common = least_error((values / scale.unsqueeze(1)).view(1, -1), T, start)
    return torch.lerp(common * scale, least_error(values, T, start), positive / (positive + _FEW))


def set_threshold(layer: SpikingLayer | Neurons, value: float | Tensor) -> None:
    """Set the threshold of a layer, in place if it is a tensor, and scale its initial potential by the same ratio.

    Args:
        value: a number, or one per channel for a threshold [C].
    """
    threshold, v_init = layer.threshold, layer.v_init
    ratio = value / threshold
    if isinstance(threshold, Tensor):
        threshold.data.copy_(torch.as_tensor(value))
    else:
        layer.threshold = float(value)
    if isinstance(v_init, Tensor):
        if isinstance(ratio, Tensor) and ratio.dim() and v_init.dim() != 1:
            ratio = over_space(ratio, (1, *v_init.shape)) if v_init.dim() else ratio.mean()
        v_init.data.mul_(ratio)
    else:
        layer.v_init = v_init * float(torch.as_tensor(ratio).mean())
