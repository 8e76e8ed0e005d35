"""``tandem-snn eval``: measure a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .train import DataDir, Device, Workers


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `tandem-snn train` wrote.")],
    data_dir: DataDir = None,
    device: Device = "cpu",
    workers: Workers = 0,
) -> None:
    """Measure the networks of a run again on the test samples: the metric, firing rates, synaptic operations."""
    from ..measure import firing_rates, mismatch, synops
    from ..training.checkpoint import load_checkpoint, read_recipe
    from ..training.task import make_task
    from ..training.trainer import evaluate
    from .job import CHECKPOINT, TWIN, check_device
    from .show import OPERATIONS, compared, show_layers, show_networks

    check_device(device)
    recipe = read_recipe(run / CHECKPOINT)
    data = recipe.load(data_dir, workers).to(device)
    task = make_task(data.task)
    kinds = {"SNN": CHECKPOINT, "ANN": TWIN} if (run / TWIN).exists() else {"SNN": CHECKPOINT}
    nets, values = {}, {}
    for kind, name in kinds.items():
        nets[kind] = recipe.build(data, kind).to(device)
        load_checkpoint(run / name, nets[kind])
        values[kind] = evaluate(nets[kind], data.test, task, precision=recipe.precision)[task.metric]
    samples = next(data.test.batches(1000))[0].to(device)
    rows = [
        compared(task.metric, values["SNN"], values.get("ANN"), len(data.test)),
        (OPERATIONS, "", "", f"{synops(nets['SNN'], samples).ratio:.2f}"),
    ]
    show_networks(f"{run}: {recipe.data}, {recipe.model}, T={recipe.T}", rows)
    show_layers(nets["SNN"], firing_rates(nets["SNN"], samples), mismatch(nets["SNN"], samples))
