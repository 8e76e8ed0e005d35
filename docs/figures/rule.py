"""The figures of docs/rule.md, computed by the package itself: python docs/figures/rule.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from small import save
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn.measure import activations, mismatch

BLUE, ORANGE, GREY = "#2b62d9", "#cf6d12", "#8a8f98"


def trace(ax, current):
    """The potential of a neuron before and after each step."""
    v, last, fired = torch.zeros(1, 1), None, {}
    for t, step in enumerate(current.view(-1, 1, 1)):
        before, (train, v) = (v + step).item(), te.functional.if_scan(step[None], v_init=v, return_v=True)
        if last is not None:
            ax.plot([t - 1, t], [last, before], color=BLUE, linewidth=1)
        last = v.item()
        ax.plot([t, t], [before, last], color=ORANGE if train.counts else BLUE, linewidth=1)
        if train.counts:
            fired[t] = before
    ax.plot(fired.keys(), fired.values(), "o", color=ORANGE, markersize=5, label=f"spike, {len(fired)} in all")


def neuron(axes):
    """One neuron for sixteen steps: current, potential, spikes."""
    torch.manual_seed(3)
    current = (0.6 * torch.rand(16)).round(decimals=2)
    top, bottom = axes
    top.bar(range(16), current.tolist(), color=GREY, width=0.6)
    top.set(ylabel="current I[t]", xlim=(-0.6, 16))
    trace(bottom, current)
    bottom.axhline(1, color=GREY, linestyle="--", linewidth=0.8, label="threshold ϑ")
    bottom.set(xlabel="step t", ylabel="potential v", xlim=(-0.6, 16))
    bottom.legend(loc="lower right", frameon=False)


def staircase(axes):
    """The count of a neuron whose current is the same at every step, against z."""
    for ax, T in zip(axes, (2, 8, 32), strict=True):
        z = torch.linspace(-0.3 * T, 1.5 * T, 2000)
        counts = te.functional.if_scan(te.ConstantInput((z / T)[:, None], T)).counts.flatten()
        ax.plot(z, z.clamp(0, T), color=ORANGE, linewidth=1.2, label="ANN: ρ(z)/ϑ, up to T")
        ax.plot(z, counts, color=BLUE, linewidth=1.2, label="spikes")
        ax.set(title=f"T = {T}", xlabel="pre-activation z = Σ I[t]")
    axes[0].set_ylabel("count c")
    axes[2].legend(frameon=False, loc="lower right")


def coupling(axes):
    """Counts and activations in the layers of a random network, at the real counts of their inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        tnn.Encoder(8), *(tnn.Linear(n, 256, norm=True) for n in (64, 256, 256)), tnn.Readout(256, 10)
    ).eval()
    images = torch.randn(200, 64)
    net.train()(images)
    for layer in net[1:4]:
        layer.norm.momentum = None
    net(images)
    found = mismatch(net, images)
    for ax, layer in zip(axes, activations(net, images), strict=True):
        chosen = torch.randperm(layer.a.numel())[:1500]
        a, c = layer.a.relu().flatten()[chosen], layer.counts.flatten()[chosen]
        ax.plot([0, 8, 12], [0, 8, 8], color=ORANGE, linewidth=1.2)
        ax.plot(a, c + 0.5 * torch.rand(len(c)) - 0.25, ".", color=BLUE, markersize=2, alpha=0.5)
        ax.set(
            title=f"layer {layer.name}: cosine {found[layer.name].cosine:.3f}",
            xlabel="activation ρ(z)/ϑ",
            xlim=(-0.5, 12),
        )
    axes[0].set_ylabel("count c (jittered)")


def timings(axes):
    """One neuron by both timings, whose current comes early and is outweighed later; and layers in a pipeline."""
    T, current = 8, torch.tensor([0.7, 0.9, 0.8, 0.8, -0.3, -0.5, -0.4, -0.4])
    top, middle, bottom = axes
    trace(top, current)
    sums = current.cumsum(0).tolist()
    middle.plot(range(T), sums, "o-", color=BLUE, markersize=2, linewidth=1)
    v = sums[-1]
    for t in range(T, 2 * T):
        fired = v >= 1
        middle.plot([t, t], [v, v - fired], color=ORANGE if fired else BLUE, linewidth=1)
        middle.plot(t, v, "o", color=ORANGE if fired else BLUE, markersize=5 if fired else 2)
        v -= fired
    for ax, name in (top, "step"), (middle, "window"):
        ax.axhline(1, color=GREY, linestyle="--", linewidth=0.8)
        ax.axvline(T - 0.5, color=GREY, linewidth=0.8)
        ax.set(ylabel=f"v, timing {name!r}", xlim=(-0.6, 2 * T))
    middle.set(xlabel="step t: the input's window, and the one after it")
    for row in range(3):
        for window in range(3):
            start = (row + window) * T
            bottom.barh(2.2 - row, T - 0.3, left=start, height=0.35, color=BLUE, alpha=0.3 + 0.3 * window)
            bottom.barh(1.8 - row, T - 0.3, left=start + T, height=0.35, color=ORANGE, alpha=0.3 + 0.3 * window)
    bottom.set(
        xlabel="step: blue a layer integrates a window, orange it fires; darker is a later window",
        yticks=[0, 1, 2],
        yticklabels=["layer 3", "layer 2", "layer 1"],
        xlim=(-0.6, 6 * T),
        xticks=range(0, 49, 8),
    )


FIGURES = {
    "neuron": (neuron, (2, 1), (6.5, 3.6)),
    "timings": (timings, (3, 1), (6.5, 5.4)),
    "staircase": (staircase, (1, 3), (8.5, 2.6)),
    "coupling": (coupling, (1, 3), (8.5, 2.8)),
}


def main(folder: Path) -> None:
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif"}
    for name, (draw, shape, size) in FIGURES.items():
        with matplotlib.rc_context(style):
            figure, axes = plt.subplots(*shape, figsize=size, layout="constrained")
            draw(axes)
            save(figure, folder / f"{name}.png")
            plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
