"""Draws the pictures of the pages into docs/figures/pages, or a folder that is named: ``python docs/figures/pages.py``.

Those of howto/look-inside.md are of a small network, trained here for half a minute; that of the home page is of
docs/results/cost.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import nn

matplotlib.use("agg")

import matplotlib.pyplot as plt
from small import save

import tandem_snn as ts
from tandem_snn.bench.command import median

ROOT = Path(__file__).parents[2]
SIZE = (5.0, 3.0)


def trained() -> tuple[nn.Module, torch.Tensor]:
    """A network, and images that it has not seen."""
    torch.manual_seed(0)
    data = ts.data.load("digits")
    net = ts.create_model("16C3-32C3s2-FC64", shape=data.shape, classes=data.classes, T=16)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for epoch in range(5):
        for images, labels in data.train.batches(64, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net.eval(), next(data.test.batches(200))[0]


def look_inside(folder: Path) -> None:
    net, images = trained()
    with torch.no_grad(), ts.measure.Monitor(net, potentials=True) as monitor:
        net(images)
    for name, axes in (
        ("raster", ts.plots.raster(monitor["fc1"])),
        ("potentials", ts.plots.potentials(monitor, layer="fc1")),
        ("counts", ts.plots.counts_against_activations(net, images)),
        ("rates", ts.plots.rates(net, images)),
    ):
        axes.figure.set_size_inches(*SIZE)
        save(axes.figure, folder / f"{name}.png")
        plt.close(axes.figure)


def home(folder: Path) -> None:
    """Time and extra memory of a training step against T."""
    result = json.loads((ROOT / "docs/results/cost.json").read_text())
    with plt.rc_context({"font.size": 9}):
        figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.2), layout="constrained")
        for axes, quantity, label, unit in (
            (panels[0], "time", "training step, ms", 1e3),
            (panels[1], "peak", "extra memory, MiB", 2**-20),
        ):
            rows = {int(r["case"].rpartition("T")[2]): r for r in result["rows"] if r["quantity"] == quantity}
            _lines(axes, rows, unit)
            axes.set(xlabel="time steps T", ylabel=f"{label} (log scale)")
        panels[0].legend(frameon=False)
        save(figure, folder / "home.png")
        plt.close(figure)


def _lines(axes: Any, rows: dict[int, Any], unit: float) -> None:
    for rival, name, style in (
        ("BPTT", "backpropagation through time", "s-"), ("tandem", "tandem_ext", "o-"), ("ANN", "the ANN", "--"),
    ):  # fmt: skip
        values = [unit * median(row["values"][rival]) for row in rows.values()]
        color = {"BPTT": "tab:purple", "tandem": "tab:blue", "ANN": "black"}[rival]
        axes.plot(list(rows), values, style, color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(rows), [str(T) for T in rows])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/figures/pages"
    chosen.mkdir(parents=True, exist_ok=True)
    look_inside(chosen)
    home(chosen)
