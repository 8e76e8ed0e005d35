"""Recordings of layers: spikes, membrane potentials, firing rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain, checks
from tandem_ext.signal import Signal

from ..errors import abridged
from ..nn.hooks import FIRING, check_layers, evaluating, is_own, watching
from ..nn.passing import Encoder
from ..nn.signals import called


@dataclass(repr=False)
class Recording:
    """The recording of one layer.

    Attributes:
        train: the spikes of the latest samples, on the CPU.
        potentials: v after each step of the same samples, as the layer's ``potentials`` returns it; None unless asked
            for, and of modules of your own.
        samples: the number of all samples that the layer has seen.
        spikes: float64 [*features], each neuron's number of spikes over these samples.
    """

    train: SpikeTrain
    potentials: Tensor | None
    samples: int
    spikes: Tensor

    @property
    def counts(self) -> Tensor:
        """The spike counts of the latest samples, [B, *features]."""
        return self.train.counts

    @property
    def rates(self) -> Tensor:
        """Each neuron's firing rate, in spikes per step, over all samples: float64 [*features]."""
        return self.spikes / (self.samples * self.train.T)

    def __repr__(self) -> str:
        kept = "" if len(self.train) == self.samples else f", {len(self.train):,} kept"
        v = "" if self.potentials is None else ", with potentials"
        rate = 100 * self.rates.mean().item()
        return (
            f"Recording({self.samples:,} samples{kept}, T={self.train.T}, neurons {list(self.train.shape[1:])}, "
            f"firing rate {rate:.1f} %{v})"
        )


class Monitor(dict[str, Recording]):
    """Records spike trains, counts and membrane potentials of a network's layers with neurons, while it is entered.

    The network itself runs unchanged, in training or evaluation; recordings carry no gradients. They stay after the
    context, and grow when the monitor is entered again. Memory is bounded: a layer keeps the latest ``samples``
    samples, with ⌈T/8⌉ bytes per neuron and 4·T more with potentials, or with timing "window" 1 and 8·T. A pass with
    another T or image size restarts the recording of a layer. A layer that the network calls several times in one pass
    has a recording for each call, "name", "name:2" and so on.

    A module of your own that makes a train of a signal is recorded, too.

    Args:
        net: a network of layers of ``tandem_snn.nn``.
        layers: names of layers, or patterns such as "conv*", one or several.
        potentials: also record v after each step (after the reset). Each layer then runs a second time, step by step;
            layers with batch norm must be in evaluation mode.
        samples: the number of latest samples to keep.

    Raises:
        TypeError: net is not a module, layers are not strings, or samples is not an int.
        ValueError: no layer with neurons has this name or pattern; samples below 1; while running, potentials of batch
            norm in training mode.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2)).eval()
    >>> with tandem_snn.measure.Monitor(net, potentials=True) as monitor:
    ...     _ = net(torch.rand(5, 4))
    >>> layer = monitor["1"]
    >>> layer.counts.shape, layer.train.to_dense().shape, layer.potentials.shape, layer.rates.shape
    (torch.Size([5, 3]), torch.Size([8, 5, 3]), torch.Size([8, 5, 3]), torch.Size([3]))
    """

    def __init__(
        self, net: nn.Module, layers: str | Sequence[str] = "*", *, potentials: bool = False, samples: int = 256
    ) -> None:
        check_layers(net, (*FIRING, Encoder))
        checks.positive("samples", samples)
        super().__init__()
        patterns = [layers] if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
        names = [name for name, layer in net.named_modules() if isinstance(layer, FIRING) or is_own(layer)]
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"layers: expected names of layers or patterns, got {pattern!r:.80}")
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"layers: {pattern!r} matches no layer with neurons, of {abridged(names)}")
        self._net = net
        self._names = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        self._potentials = potentials
        self._samples = samples
        self._watching: Any = None
        self._calls: list[Counter[str]] = []  # of each layer, within a pass of the network

    def __enter__(self) -> Monitor:
        if self._watching is not None:
            raise RuntimeError("Monitor: it is recording already, and cannot be entered twice")
        self._watching = ExitStack()
        self._watching.enter_context(watching(self._net, FIRING, self._record, own=True))
        for handle in (
            self._net.register_forward_pre_hook(lambda *_: self._calls.append(Counter())),
            self._net.register_forward_hook(lambda *_: self._calls.clear(), always_call=True),
        ):
            self._watching.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        self._watching = None

    def __repr__(self) -> str:
        state = "recording" if self._watching is not None else "left"
        layers = abridged(f"{name}: {record.samples:,} samples" for name, record in self.items())
        return f"Monitor({state}; {layers or 'nothing recorded of ' + abridged(sorted(self._names))})"

    @torch.no_grad()
    def _record(self, name: str, layer: Any, x: Any, keywords: dict[str, Any], y: Any) -> None:
        own = not isinstance(layer, FIRING)
        if name not in self._names or not isinstance(y, SpikeTrain) or (own and not isinstance(x, Signal)):
            return
        if self._calls:  # within a pass of the network
            calls = self._calls[-1]
            calls[name] += 1
            name = name if calls[name] == 1 else f"{name}:{calls[name]}"
        latest = slice(max(0, len(y) - self._samples), None)
        train = y.replace(counts=None)[latest].detach().to("cpu").map(torch.clone)
        potentials = None
        if self._potentials and not own:
            residual = keywords.get("residual")
            v = layer.potentials(x) if residual is None else layer.potentials(x, residual)
            potentials = v[:, latest].to("cpu", copy=True)
        spikes = y.counts.detach().sum(0, dtype=torch.float64).to("cpu")
        before = self.get(name)
        if before is None or _kind(before.train) != _kind(train):
            self[name] = Recording(train, potentials, len(y), spikes)
            return
        if potentials is not None and before.potentials is not None:
            potentials = torch.cat([before.potentials, potentials], 1)[:, -self._samples :].clone()
        self[name] = Recording(
            SpikeTrain.concatenate([before.train, train], 0)[-self._samples :].map(torch.clone),
            potentials,
            before.samples + len(y),
            before.spikes + spikes,
        )


def firing_rates(net: nn.Module, x: Any) -> dict[str, float]:
    """Spikes per neuron and time step, 0..1, of each layer that :class:`Monitor` records, in evaluation mode.

    Args:
        net: a network of layers of ``tandem_snn.nn``.
        x: a batch of inputs of ``net``.

    Returns:
        The rate by the layer's name, in the order of execution.

    Raises:
        ValueError: the network has no such layers.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3, norm=True), tnn.Readout(3, 2))
    >>> list(firing_rates(net, torch.rand(5, 4)))
    ['1']
    """
    check_layers(net, (*FIRING, Encoder), x)
    with evaluating(net), Monitor(net, samples=1) as monitor:
        called(net, x)
    return {name: layer.rates.mean().item() for name, layer in monitor.items()}


def _kind(train: SpikeTrain) -> tuple[Any, ...]:
    """Equal for trains that can be joined."""
    return train.T, train.timing, train.shape[1:]
