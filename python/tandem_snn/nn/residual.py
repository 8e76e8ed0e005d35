"""Residual: two paths of synapses into one layer of neurons."""

from __future__ import annotations

from typing import Any

from torch import nn

from .signals import describe


class Residual(nn.Module):
    """The neurons of the body's last layer receive the shortcut's currents too: I[t] = I_body[t] + I_shortcut[t].

    There is one neuron, so nothing is lost between the paths, and z is the ANN's pre-activation body(x) + shortcut(x).

    Args:
        body: a layer of this package with neurons (Linear, Conv1d, Conv2d), or a Sequential that ends in one.
        shortcut: None: the input's spikes are the currents, each worth the train's gain (the input must then be a
            SpikeTrain of the body's output shape). Else as ``body``: its last layer's currents are added; that layer's
            neurons are not used.

    Shape: what ``body`` takes -> SpikeTrain of the body's output shape.

    Raises:
        TypeError: a path that does not end in a layer with neurons.
        ValueError: when called, if the last layers of both paths have different timings.

    >>> block = tnn.Residual(tnn.Conv2d(4, 4, 3, padding="same"))
    >>> block(te.SpikeTrain.from_dense(torch.ones(8, 2, 4, 5, 5))).shape
    torch.Size([2, 4, 5, 5])
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        for name, path in ("body", body), ("shortcut", shortcut):
            last = _layers(path)[-1]
            if not hasattr(last, "preactivation") and not (path is None and name == "shortcut"):
                expected = "Linear, Conv1d, Conv2d or a Sequential that ends in one"
                raise TypeError(f"{name}: expected {expected}, got {describe(last)}")
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Any) -> Any:
        paths = [path for path in (self.body, self.shortcut) if path is not None]
        timings = [getattr(_layers(path)[-1], "timing", None) for path in paths]
        if len(set(timings)) > 1:
            raise ValueError(f"timing: both paths need the same, got body {timings[0]!r}, shortcut {timings[1]!r}")
        residual = x if self.shortcut is None else _run(self.shortcut, x, fire=False)
        return _run(self.body, x, residual=residual)


def _layers(path: object) -> list[object]:
    return list(path) if isinstance(path, nn.Sequential) and len(path) else [path]


def _run(path: nn.Module, x: Any, **last: Any) -> Any:
    """x through the layers of ``path``; the last layer takes the further arguments."""
    *layers, end = _layers(path)
    for layer in layers:
        x = layer(x)  # type: ignore[operator]
    return end(x, **last)  # type: ignore[operator]
