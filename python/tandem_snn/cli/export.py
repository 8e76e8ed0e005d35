"""``tandem-snn export``: a run's network for other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..container import atomically
from ..errors import UserError, extra
from .train import DataDir

# ruff: noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)


class Format(str, Enum):
    frozen = "frozen"
    onnx = "onnx"
    nir = "nir"


class Neurons(str, Enum):
    IF = "IF"
    primitives = "primitives"


SUFFIX = {Format.frozen: ".tandem", Format.onnx: ".onnx", Format.nir: ".nir"}


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `tandem-snn train` wrote.")],
    to: Annotated[Format, typer.Option(help="frozen: for tandem_snn.load_frozen; onnx: one time step; nir: a graph.")],
    out: Annotated[Optional[Path], typer.Option(help="The file (default: RUN/model with the format's ending).")] = None,
    weight_bits: Annotated[Optional[int], typer.Option(help="Round the weights to so many bits, 2 to 8.")] = None,
    neurons: Annotated[Neurons, typer.Option(help="NIR's IF nodes, or primitives that define them.")] = Neurons.IF,
    data_dir: DataDir = None,
) -> None:
    """Write a run's spiking network as one file for inference, other engines, chips and simulators."""
    from ..exchange import to_nir, to_onnx
    from ..frozen import freeze
    from ..training.checkpoint import load_checkpoint, read_recipe
    from .job import CHECKPOINT

    recipe = read_recipe(run / CHECKPOINT)
    data = recipe.load(data_dir)
    net = recipe.build(data)
    load_checkpoint(run / CHECKPOINT, net)
    sample = next(data.test.batches(1))[0]
    path = out or run / f"model{SUFFIX[to]}"
    nir: Any = extra("nir", "the export to NIR") if to is Format.nir else None
    try:
        frozen = freeze(net, weight_bits)
        frozen(sample)  # so it knows its shapes
        if to is Format.frozen:
            frozen.save(path)
        elif to is Format.onnx:
            to_onnx(frozen, path)
        else:
            graph = to_nir(frozen, sample, neurons=neurons.value)
            atomically(path, lambda temporary: nir.write(str(temporary), graph))
    except ValueError as error:
        raise UserError(f"{run} as {to.value}: {error}") from error
    typer.echo(f"{path}: {path.stat().st_size:,} bytes")
