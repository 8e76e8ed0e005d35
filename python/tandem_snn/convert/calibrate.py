"""calibrate: set the thresholds of a network from data."""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext._torch import BatchNorm
from tandem_ext.functional.neuron import over_space

from .. import ann
from .. import nn as tnn
from ..nn.hooks import evaluating, watching
from ..nn.signals import check_network, describe, effective_counts, inputs_of
from .to_ann import to_ann

_SAMPLE, _KEPT = 2**20, 2**22  # the most activations of a layer that are kept: of one batch, and of all
_APART = 4  # by which running standard deviations may differ from those of a batch, without a warning
_PRIOR, _FEW = 16, 256  # the weights of the layer's mean square and threshold, in samples of a channel


@torch.no_grad()
def calibrate(net: nn.Module, data: Iterable[Any], percentile: float | None = None) -> nn.Module:
    """Set the threshold of each layer from data, so that spike counts cover the ANN's activations.

    The threshold is ϑ = a/T. A count cannot exceed T, so activations above a saturate. a is chosen from the layer's
    activations in the ANN twin, in evaluation mode, over all inputs (of many millions, a part): for the whole layer if
    its threshold is one number, or is not given and it may make tokens, else per channel. By default, a minimises the
    squared error from saturation and from rounding to multiples of ϑ; channels with few samples also use the statistics
    of the layer. a is at most the ceiling of a ReLU6 or hardtanh(0, c). Initial potentials are scaled with the
    thresholds.

    The twin's batch norms use their running statistics, those of training the statistics of a batch. Where the two are
    far apart, as in an ANN that was never trained, neurons saturate or are silent in training, and gradients can
    overflow; a warning names the batch norm. ``torch.optim.swa_utils.update_bn(batches, ann)`` gives an ANN running
    statistics of its data.

    It is for weights that come from an ANN. The twin of a network that was trained with spikes is another network:
    above all behind attention, whose product is cubic, activations without a ceiling grow in each block, and thresholds
    that cover them ruin the network, which needs none.

    Args:
        net: a network whose layers have no gain of their own, such as :func:`convert` returns. Their thresholds are
            changed in place; layers with a gain are not changed.
        data: batches of inputs of ``net``, or tuples or lists that begin with such a batch, or with one of each input.
            A few hundred samples suffice; the ANN runs on each.
        percentile: in (0, 100]; if given, a is this percentile of the activations that are not zero.

    Returns:
        net.

    Raises:
        TypeError: net is not a module, a batch is neither a tensor nor a SpikeTrain, data is a single batch, or
            percentile is not a number.
        ValueError: net is frozen, has no layer to calibrate or no T, percentile is out of range, data has no
            sample, or activations are not finite.

    >>> from tandem_snn import convert
    >>> snn = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), T=8)
    >>> _ = calibrate(snn, [torch.rand(10, 6)])
    >>> snn.get_submodule("0").threshold.shape, bool((snn.get_submodule("0").threshold < 0.5).all())
    (torch.Size([5]), True)
    """
    check_network("net", net)
    if percentile is not None:
        checks.number("percentile", percentile, "a number", "a number in (0, 100]", math.ulp(0.0), 100)
    layers = {n: m for n, m in net.named_modules() if isinstance(m, tnn.SpikingLayer) and m.neurons and m.gain is None}
    if not layers:
        raise ValueError("net: expected layers with neurons and gain=None, such as convert gives, found none")
    windows = {m.T for m in net.modules() if isinstance(m, tnn.Encoder)}
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    every = dict.fromkeys(layers, 1)  # one of so many activations is kept

    def keep(name: str, layer: nn.Module, x: Any, keywords: dict[str, Any], activation: Tensor) -> None:
        if name in seen:
            if isinstance(layer, ann.Linear):
                activation = activation.movedim(-1, 1)
            if activation.dim() > 2 and layers[name].threshold is None and has_one_gain(layers[name]):
                activation = activation.reshape(-1)
            values = sample_by_channel(activation)
            if not bool(values.isfinite().all()):
                raise ValueError(f"data: in a batch the activations of {name!r} are infinite or NaN in the ANN twin")
            seen[name].append(one_of(values, every[name]))
            if sum(kept.numel() for kept in seen[name]) > _KEPT:
                seen[name] = [one_of(torch.cat(seen[name], 1), 2)]
                every[name] *= 2

    spreads: dict[str, list[float]] = {}  # of batch norms' inputs, median channel, in running standard deviations

    def compare(name: str, norm: Any, x: Tensor, keywords: dict[str, Any], output: Tensor) -> None:
        values = sample_by_channel(x)
        if norm.running_var is not None and values.shape[1] > 1:
            ratio = (values.var(1) + norm.eps) / (norm.running_var.float().cpu() + norm.eps)
            spreads.setdefault(name, []).append(ratio.median().sqrt().item())

    twin, kinds = to_ann(net), (ann.Linear, ann.Conv1d, ann.Conv2d, ann.Neurons)
    norms = (BatchNorm,)
    with evaluating(net), evaluating(twin), watching(twin, kinds, keep), watching(twin, norms, compare):
        for batch in batches_of(data, len(inputs_of(net))):
            windows |= {x.T for x in batch if isinstance(x, SpikeTrain)}
            try:
                twin(*map(effective_counts, batch))
            except RuntimeError as error:  # of torch, about shapes and types
                given = " and ".join(f"{x.dtype} {list(x.shape)}" for x in map(effective_counts, batch))
                raise ValueError(f"data: the network does not accept {given}: {str(error).splitlines()[0]}") from error
    if not any(values.numel() for kept in seen.values() for values in kept):
        raise ValueError("data: expected at least one sample, got none")
    if len(windows) != 1:
        raise ValueError(f"T: expected one number of steps in the network and its inputs, got {sorted(windows)}")
    (T,) = windows
    for name, layer in layers.items():
        if seen[name]:
            _set(layer, torch.cat(seen[name], 1), layer.own_T(T), percentile)
    _warn_of_training({name: sum(values) / len(values) for name, values in spreads.items()})
    return net


def _warn_of_training(spreads: dict[str, float]) -> None:
    """Warn if batch norms give much smaller or larger values than in training, where their standard deviation is 1."""
    apart = {name: spread for name, spread in spreads.items() if not 1 / _APART < spread < _APART}
    if apart:
        name = max(apart, key=lambda name: abs(math.log(apart[name])))
        warnings.warn(
            f"calibrate: thresholds fit evaluation, but not training: {len(apart)} of {len(spreads)} batch norms, most "
            f"of all {name!r}, normalise to a standard deviation of {apart[name]:.2g} by their running statistics, but "
            "to 1 by those of a batch. In training neurons will saturate or be silent, and gradients may overflow. If "
            "the ANN was never trained, call torch.optim.swa_utils.update_bn(batches, ann) before convert; a network "
            "that was trained with spikes is not what its ANN twin computes, and needs no calibrate",
            stacklevel=4,
        )


def batches_of(data: Iterable[Any], inputs: int) -> Iterator[tuple[Tensor | SpikeTrain, ...]]:
    """Yield the inputs in ``data``, an argument of :func:`calibrate` and :func:`convert`."""
    if isinstance(data, Tensor | SpikeTrain) or not isinstance(data, Iterable):
        raise TypeError(f"data: expected an iterable of batches, such as [x], got {describe(data)}")
    for batch in data:
        given = tuple(batch[: inputs or 1]) if isinstance(batch, (tuple, list)) and batch else (batch,)
        for x in given:
            if not isinstance(x, Tensor | SpikeTrain):
                raise TypeError(
                    f"data: expected tensors or SpikeTrains, or tuples that begin with one, got {describe(x)}"
                )
        yield given


def _set(layer: tnn.SpikingLayer, values: Tensor, T: int, percentile: float | None) -> None:
    """Set the threshold of a layer from activations [C, N]. A layer that never fires keeps its threshold."""
    like = torch.ones(() if len(values) == 1 else len(values)) if layer.threshold is None else layer.threshold
    threshold = torch.as_tensor(like)
    values = values if threshold.dim() else values.reshape(1, -1)
    if percentile is None:
        start = torch.as_tensor(layer.initial_potential).mean() / threshold.mean()
        a = covering(values, T, float(start))
    else:
        positive = values.where(values > 0, torch.nan)
        a = positive.nanquantile(percentile / 100, 1, interpolation="nearest").nan_to_num(0)
    if bool((a > 0).any()):
        a = torch.where(a > 0, a, a.max()).to(threshold.device)  # a silent channel has 0
        a = a.clamp_max(getattr(layer, "ceiling", None) or torch.inf)
        set_threshold(layer, a / T if threshold.dim() else a.item() / T)


def has_one_gain(layer: tnn.SpikingLayer) -> bool:
    """Return whether a layer of several dimensions may make tokens, of which some readers take one gain for all."""
    return isinstance(layer, tnn.Linear) or layer._channels is None


def sample_by_channel(activations: Tensor) -> Tensor:
    """Return at most a million activations of [B, C, *space] by channel: float32 [C, N] on the CPU."""
    values = activations.transpose(0, 1).flatten(1) if activations.dim() > 1 else activations.unsqueeze(0)
    return one_of(values, 1 + values.numel() // _SAMPLE).float().cpu()


def one_of(values: Tensor, n: int) -> Tensor:
    """Return one in n columns of [C, N]: any, since evenly spaced ones could all be from the border of images."""
    if n == 1:
        return values
    chosen = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0))
    return values[:, chosen[: max(1, len(chosen) // n)].to(values.device)]


def least_error(values: Tensor, T: int, start: float) -> Tensor:
    """Return for each row of activations [C, N] the a that count T should represent, for the least squared error.

    With ϑ = a/T, activations v > a are cut to a. Activations 0 < v ≤ a are rounded to multiples of ϑ, with an error of
    variance ϑ²/12 about a mean of ϑ(start - 1/2). a is one of the values, or 0 if no value is positive.
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
    """
    positive, squares = (values > 0).sum(1), values.clamp_min(0).square().sum(1)
    if not bool(positive.any()):
        return squares
    mean = squares.sum() / positive.sum()
    scale = ((squares + _PRIOR * mean) / (positive + _PRIOR)).sqrt()
    common = least_error((values / scale.unsqueeze(1)).view(1, -1), T, start)
    return torch.lerp(common * scale, least_error(values, T, start), positive / (positive + _FEW))


def set_threshold(layer: tnn.SpikingLayer, value: float | Tensor) -> None:
    """Set the threshold of a layer, in place if it is a tensor, and scale its initial potential by the same ratio."""
    threshold, v_init = layer.threshold, layer.v_init
    before = 1.0 if threshold is None else threshold  # without one, potentials count in thresholds

    def fitting(each: Any, start: Tensor) -> Any:
        if isinstance(each, Tensor) and each.dim() and start.dim() != 1:
            return over_space(each, (1, *start.shape)) if start.dim() else each.mean()
        return each

    if isinstance(v_init, Tensor):
        v_init.data.div_(fitting(before, v_init)).mul_(fitting(value, v_init))
    elif v_init:
        ratio = torch.as_tensor(value) / torch.as_tensor(before).detach()
        layer.v_init = v_init * ratio if ratio.dim() else v_init * float(ratio)
    if isinstance(threshold, Tensor):
        threshold.data.copy_(torch.as_tensor(value))
    else:
        layer.threshold = value if threshold is None else float(value)
