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
    from ..data import load
    from ..measure import firing_rates, mismatch, synops
    from ..training.checkpoint import load_checkpoint, read_recipe
    from ..training.loop import accuracy
    from .job import CHECKPOINT, TWIN, set_device
    from .show import show_layers, show_networks

    set_device(device)
    recipe = read_recipe(run / CHECKPOINT)
    dataset = load(recipe.data, data_dir, validation=False).to(device)
    snn, ann = (net.to(device) for net in recipe.networks(dataset))
    load_checkpoint(run / CHECKPOINT, snn)
    load_checkpoint(run / TWIN, ann)
    images, _ = next(dataset.test.batches(1000))
    of_snn, of_ann = (100 * accuracy(net, dataset.test) for net in (snn, ann))
    rows = [
        ("test accuracy", f"{of_snn:.2f} %", f"{of_ann:.2f} %", f"{of_snn - of_ann:+.2f} points"),
        ("synaptic operations", "", "", f"{synops(snn, images).ratio:.2f}"),
    ]
    show_networks(f"{run}: {recipe.data}, {recipe.model}, T={recipe.T}", rows)
    show_layers(snn, firing_rates(snn, images), mismatch(snn, images))
