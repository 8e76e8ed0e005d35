"""The commands of ``tandem-snn``; eval, export, report and info are defined here."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import torch
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

import tandem_ext

from ..container import atomically
from ..errors import UserError, extra
from ..frozen import freeze
from ..machine import commit, machine
from ..nir import to_nir
from ..onnx import to_onnx
from ..report import tables, write_report
from ..training.checkpoint import load_checkpoint, read_recipe
from ..training.measures import measure_spikes, rounded
from ..training.recipe import PREFIXES
from ..training.task import make_task
from ..training.trainer import evaluate
from .job import CHECKPOINT, SUFFIX, TWIN, check_device
from .train import DataDir, Device, Workers, sweep, train

# ruff: noqa: UP045  (typer reads annotations at run time, on Python 3.10 too)


class _Plain:
    """Flags take no value, so help shows none."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters


class Command(_Plain, TyperCommand): ...


class Group(_Plain, TyperGroup): ...


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tandem-snn {tandem_ext.__version__}")
        raise typer.Exit


def evaluate_run(
    run: Annotated[Path, typer.Argument(help="Folder that `tandem-snn train` wrote.")],
    data_dir: DataDir = None,
    device: Device = "cpu",
    workers: Workers = 0,
) -> None:
    """Measure the networks of a run again on the test samples: the metric, firing rates, synaptic operations."""
    check_device(device)
    recipe = read_recipe(run / CHECKPOINT)
    data = recipe.load(data_dir, workers).to(device)
    task = make_task(data.task)
    kinds = {"SNN": CHECKPOINT, "ANN": TWIN} if (run / TWIN).exists() else {"SNN": CHECKPOINT}
    nets = {}
    summary: dict[str, Any] = {"recipe": recipe.to_dict(), "seeds": [recipe.seed], "samples": {"test": len(data.test)}}
    for kind, name in kinds.items():
        nets[kind] = recipe.build(data, kind).to(device)
        load_checkpoint(run / name, nets[kind])
        value = evaluate(nets[kind], data.test, task, precision=recipe.precision)[task.metric]
        summary[f"{PREFIXES[kind]}test_{task.metric}"] = rounded(task.metric, value)
    summary |= measure_spikes([nets["SNN"]], data)
    Console().print(*tables(summary), sep="\n")


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `tandem-snn train` wrote.")],
    to: Annotated[
        Literal["frozen", "onnx", "nir"],
        typer.Option(help="frozen: for tandem_snn.load_frozen; onnx: a step or a window; nir: a graph."),
    ],
    out: Annotated[Optional[Path], typer.Option(help="The file (default: RUN/model with the format's ending).")] = None,
    weight_bits: Annotated[Optional[int], typer.Option(help="Round the weights to this many bits, 2 to 8.")] = None,
    neurons: Annotated[
        Literal["IF", "primitives"], typer.Option(help="NIR's IF nodes, or primitives that define them.")
    ] = "IF",
    data_dir: DataDir = None,
) -> None:
    """Write a run's spiking network as one file for inference, other engines, chips and simulators."""
    recipe = read_recipe(run / CHECKPOINT)
    data = recipe.load(data_dir)
    net = recipe.build(data)
    load_checkpoint(run / CHECKPOINT, net)
    sample = next(data.test.batches(1))[0]
    path = out or run / f"model{SUFFIX[to]}"
    nir: Any = extra("nir", "the export to NIR") if to == "nir" else None
    try:
        frozen = freeze(net, weight_bits)
        frozen(sample)  # an export needs the shapes of a run
        if to == "frozen":
            frozen.save(path)
        elif to == "onnx":
            to_onnx(frozen, path)
        else:
            graph = to_nir(frozen, sample, neurons=neurons)
            atomically(path, lambda temporary: nir.write(str(temporary), graph))
    except ValueError as error:
        raise UserError(f"{run} as {to}: {error}") from error
    typer.echo(f"{path}: {path.stat().st_size:,} bytes")


def report(
    run: Annotated[Path, typer.Argument(help="Folder that `tandem-snn train` wrote.")],
    out: Annotated[Optional[Path], typer.Option(help="The file (default: RUN/report.html).")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write one self-contained HTML page about a run: curves, confusions, spikes, rates, accuracy against time."""
    typer.echo(write_report(run, out, data_dir))


# The extra "all", numpy, and the libraries that networks are exchanged with.
PACKAGES = ("aedat", "matplotlib", "nir", "nirtorch", "norse", "numpy", "onnx", "onnxruntime", "pyyaml",
            "rich", "safetensors", "scikit-learn", "sinabs", "snntorch", "spikingjelly", "tensorboard", "tonic",
            "torchvision", "typer")  # fmt: skip
STEERING = ("ATEN_", "CUDA_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "PYTORCH_", "TANDEM_", "TORCH")


def info() -> None:
    """Print the facts for a bug report: build, machine, torch, environment variables and packages."""
    table = Table(show_header=False)
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(STEERING)}
    build = tandem_ext.build_info() | {"folder": str(Path(tandem_ext.__file__).parent), "commit": commit()}
    for section in build, _machine(), environment, {package: _version(package) for package in PACKAGES}:
        for name, value in section.items():
            table.add_row(name, _text(value))
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a pasted report has no broken lines


def _machine() -> dict[str, str]:
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB" for d in devices]
    return {name: str(value) for name, value in machine().items()} | {
        "Python": f"{platform.python_version()}, {sys.executable}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA {_text(torch.version.cuda)}",
        "GPU": "; ".join(gpus) or "none visible to torch",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _text(value: Any) -> str:
    return "none" if value is None else " ".join(value) if isinstance(value, list) else str(value)


app = typer.Typer(
    cls=Group,
    help="Train spiking neural networks with the tandem learning rule, and their ANN twins.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for name, command in (
    ("train", train), ("sweep", sweep), ("eval", evaluate_run), ("report", report), ("export", export),
    ("info", info),
):  # fmt: skip
    app.command(name, cls=Command)(command)
