"""Residual: a residual block whose two paths feed the same neurons."""

from __future__ import annotations

from typing import Any

from torch import nn

from .signals import describe


class Residual(nn.Module):
    """A residual block: the last neurons of the body also receive the currents of the shortcut.

    Their input current is I[t] = I_body[t] + I_shortcut[t], so z is the ANN's pre-activation body(x) + shortcut(x).

    Args:
        body: a layer of this package with neurons (Linear, Conv1d, Conv2d), or a Sequential that ends in one.
        shortcut: None: the spikes of the input, times its gain, are the currents; the input must then be a SpikeTrain
            with the body's output shape. Otherwise a module like ``body``, whose last layer only contributes its
            currents; its neurons do not fire.

    Shape: the input of ``body`` -> SpikeTrain with the body's output shape.

    Raises:
        TypeError: a path does not end in a layer with neurons.
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
    """Apply the layers of ``path`` to x, with the further arguments ``last`` for the last layer."""
    *layers, end = _layers(path)
    for layer in layers:
        x = layer(x)  # type: ignore[operator]
    return end(x, **last)  # type: ignore[operator]
