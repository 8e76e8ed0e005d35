"""``tandem-snn eval``: measure a checkpoint again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `tandem-snn train` wrote.")],
    data_dir: Annotated[
        Optional[Path],  # noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)
        typer.Option(help="Folder that holds MNIST/raw or FashionMNIST/raw.", envvar="TANDEM_DATA"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure the networks of a run again: test accuracy, firing rates, synaptic operations."""
    from rich.console import Console
    from rich.table import Table

    from ..data import load
    from ..measure import firing_rates, mismatch, synops
    from ..training.checkpoint import load_checkpoint, read_recipe
    from ..training.loop import accuracy
    from .job import CHECKPOINT, TWIN, set_device

    set_device(device)
    recipe = read_recipe(run / CHECKPOINT)
    dataset = load(recipe.data, data_dir).to(device)
    snn, ann = (net.to(device) for net in recipe.networks(dataset))
    load_checkpoint(run / CHECKPOINT, snn)
    load_checkpoint(run / TWIN, ann)
    images = dataset.test.images[:1000]
    rates, matches = firing_rates(snn, images), mismatch(snn, images)

    table = Table(title=f"{run}: {recipe.data}, {recipe.model}, T={recipe.T}")
    for column in ("", "SNN", "ANN twin"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("test accuracy", *(f"{100 * accuracy(net, dataset.test):.2f} %" for net in (snn, ann)))
    table.add_row("synaptic operations, SNN / ANN", f"{synops(snn, images).ratio:.2f}", "", end_section=True)
    for name, rate in rates.items():
        cosine = f"cosine of counts and activation {matches[name].cosine:.3f}" if name in matches else ""
        table.add_row(f"firing rate, layer {name}", f"{100 * rate:.1f} %", cosine)
    Console().print(table)
