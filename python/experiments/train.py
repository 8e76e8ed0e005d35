"""Trains a spiking network and its ANN twin by a recipe, compares them, and writes the results.

    python python/experiments/train.py                                              # handwritten digits, a minute
    python python/experiments/train.py fashion-mnist-window-t4 --data-dir DIR       # a recipe of recipes.yaml
    python python/experiments/train.py my.yaml --T 4 --seeds 1 --out runs/x         # your own; each key is an option

The same command resumes an interrupted run from its last whole epoch, and with the same number of threads ends with
bit-identical weights. A finished run is only printed again. The folder of a run holds

    summary.json           every measure, recipe, commit, machine, and which test samples are right in each seed
    picture.png            curves of the training, accuracy over time, spikes, firing rates
    seed-0/snn.tandem      the network for inference: tandem_snn.load(path), or C++ without torch
    seed-0/snn.pt, ann.pt  the last checkpoints: "weights" is the state_dict of the kept epoch
"""

import argparse
import copy
import gc
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

import recipe as recipes
import tandem_snn as ts
import tandem_snn.nn as tnn
from architectures import create
from blocks import Softmax, Transformer
from data import Data, load
from measures import measure, packed, rounded, tables
from pictures import draw
from recipe import Recipe
from tandem_snn import ann
from tandem_snn.info import origin
from training import Task, World, at_T, evaluate, keep_freed_memory, train, with_shared_statistics

CONTINUED = "ANN continued"  # the control for a network that started from its twin or is taught by it, a twin as well
PREFIXES = {"SNN": "", "ANN": "ann_", CONTINUED: "ann_continued_", "ViT": "vit_"}  # of the entries in a summary
Report = Callable[[str, int, int, int], None]  # kind, seed, steps done, steps in all


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="digits", help="a recipe's name, or a .yaml file")
    parser.add_argument("--list", action="store_true", help="print the recipes")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("TANDEM_DATA"), help="default: $TANDEM_DATA")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too")
    recipes.add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; an error is one line on stderr."""
    options = make_parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if options.list:
            print("\n".join(f"{name}: {about}" for name, about in recipes.describe().items()))
            return 0
        recipe = recipes.chosen(options)
        folder = options.out or Path("runs") / Path(options.recipe).stem
        with processes(options.device) as (world, device):
            command = shlex.join(["python", "python/experiments/train.py", *given])
            run(recipe, folder, options.data_dir, device, world, command, options.tensorboard)
    except (ValueError, OSError) as error:
        print("train.py: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command resumes from the last whole epoch", file=sys.stderr)
        return 130
    return 0


@contextmanager
def processes(device: str) -> Iterator[tuple[World, str]]:
    """The processes that torchrun started, and the device of this one; a single process otherwise."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        gc.collect()  # gloo's group may wait forever if the reducer of DistributedDataParallel is its last owner
        dist.destroy_process_group()


def run(
    recipe: Recipe, folder: Path, data_dir: Path | None, device: str, world: World, command: str, tensorboard: bool
) -> None:
    """Trains the networks of all seeds, measures them, and writes the folder of the run."""
    console, path = Console(quiet=world.rank > 0), folder / "summary.json"
    if path.exists():
        summary = json.loads(path.read_text())
        if summary["recipe"] != json.loads(json.dumps(asdict(recipe))):
            raise ValueError(f"{folder} holds a finished run of another recipe: choose another folder with --out")
        console.print(*tables(summary), sep="\n")
        console.print(f"{folder}: finished before", soft_wrap=True)
        return
    started, start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    keep_freed_memory()
    data = load(recipe, data_dir).to(device)
    with progress(recipe, console) as report:
        seeds = range(recipe.seed, recipe.seed + recipe.seeds)
        runs = {seed: train_seed(seed, recipe, data, folder, device, world, report, tensorboard) for seed in seeds}
    if world.rank > 0:
        return
    summary = summarise(recipe, data, runs) | origin(command)
    summary |= {"started": started, "seconds": round(time.monotonic() - start, 1), "threads": torch.get_num_threads()}
    for seed, (nets, _) in runs.items():
        example = next(data.test.batches(1))[0]
        frozen = ts.freeze(nets["SNN"], example=example).cpu()
        frozen(example.to("cpu"))  # a file has the shapes of a run
        frozen.save(folder / f"seed-{seed}" / "snn.tandem")
    draw(folder / "picture.png", recipe, data, summary, list(runs.values()))
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    temporary.replace(path)
    console.print(*tables(summary), sep="\n")
    console.print(f"{folder}: {', '.join(sorted(f.name for f in folder.iterdir()))}", soft_wrap=True)


def kinds(recipe: Recipe) -> tuple[str, ...]:
    """In the order of training: a network that needs its trained twin comes after it, and after it the control."""
    order = ("ANN", "SNN", CONTINUED) if recipe.init_from == "twin" or recipe.distill else ("SNN", "ANN")
    return (*(order if recipe.twin else order[:-1]), *(["ViT"] if recipe.softmax else []))


def build(recipe: Recipe, data: Data, kind: str) -> nn.Module:
    """The network, or its twin, initialised by torch's global generator."""
    names = ("threshold", "v_init", "timing", "learn_threshold", "norm", "weight_bits", "leak", "gate", "width")
    options = {name: getattr(recipe, name) for name in names}
    events = not isinstance(data.test.inputs, torch.Tensor)
    layers = tnn if kind == "SNN" else ann
    options["softmax"] = kind == "ViT"
    net = create(layers, recipe.model, data.shape, data.outputs, recipe.T, events=events, **options)
    if recipe.softmax and not any(isinstance(module, Transformer | Softmax) for module in net.modules()):
        raise ValueError(f"softmax: model {recipe.model} has no transformers")
    if data.pixels is not None:
        net.encoder = layers.Encoder(recipe.T, "pixels", mean=data.pixels[0], std=data.pixels[1])
    return with_own_T(net, recipe) if kind == "SNN" else net


def with_own_T(net: nn.Module, recipe: Recipe) -> nn.Module:
    """The same network, whose layers have the T that ``layer_T`` gives them."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, tnn.SpikingLayer)}
    given: set[str] = set()
    for name, _, T in (each.rpartition(":") for each in recipe.layer_T):
        if name not in layers or not T.isdecimal():
            raise ValueError(f"layer_T: expected a layer of {', '.join(layers)} and its T, got {name + ':' + T!r}")
        if name in given:
            raise ValueError(f"layer_T: expected one T for each layer, got {', '.join(recipe.layer_T)}")
        if recipe.learn_threshold is not None:
            raise ValueError("layer_T: the thresholds that learn_threshold learns start as T of the network needs it")
        layers[name].T = int(T)
        given.add(name)
    return net


Trained = tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]  # networks, and results of train(), by kind


def train_seed(
    seed: int, recipe: Recipe, data: Data, folder: Path, device: str, world: World, report: Report, tensorboard: bool
) -> Trained:
    """Trains the network and its twins. They see the same samples in the same order, and start from the same weights
    unless one starts from the other.
    """
    nets: dict[str, nn.Module] = {}
    trained: dict[str, dict[str, Any]] = {}
    for kind in kinds(recipe):
        torch.manual_seed(seed)
        net = nets[kind] = build(recipe, data, kind).to(device)
        if kind in (CONTINUED, "SNN") and recipe.init_from == "twin":
            net.load_state_dict(nets["ANN"].state_dict(), strict=recipe.learn_threshold is None)
        shared = with_shared_statistics(copy.deepcopy(net)) if world.size > 1 else net
        name = kind.lower().replace(" ", "-")
        writer = None
        if tensorboard and world.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(folder / f"seed-{seed}" / "tensorboard" / name)
        path = folder / f"seed-{seed}" / f"{name}.pt"
        teacher = nets["ANN"].eval() if recipe.distill and kind not in ("ANN", "ViT") else None
        trained[kind] = train(shared, data, recipe, seed, path, world, partial(report, kind, seed), writer, teacher)
        net.load_state_dict(trained[kind]["weights"])
    return nets, trained


@contextmanager
def progress(recipe: Recipe, console: Console) -> Iterator[Report]:
    """A progress bar over all training steps."""
    order, columns = kinds(recipe), (BarColumn(24), MofNCompleteColumn(), "steps", TimeElapsedColumn(), "left")
    with Progress("{task.description}", *columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("training", total=None)

        def report(kind: str, seed: int, step: int, steps: int) -> None:
            before = len(order) * (seed - recipe.seed) + order.index(kind)
            bar.update(
                task,
                total=len(order) * recipe.seeds * steps,
                completed=before * steps + step,
                description=f"{kind}, seed {seed}, epoch {-(-step * recipe.epochs // steps)}",
            )

        yield report


def summarise(recipe: Recipe, data: Data, runs: dict[int, Trained]) -> dict[str, Any]:
    """The content of summary.json. Accuracies are in per cent, times in milliseconds unless named otherwise."""
    metric = Task(recipe).metric
    summary: dict[str, Any] = {}
    per_seed: list[dict[str, Any]] = [{"seed": seed} for seed in runs]
    for kind in (kind for kind in PREFIXES if kind in kinds(recipe)):
        prefix, name = PREFIXES[kind], f"{PREFIXES[kind]}test_{metric}"
        values = [evaluate(nets[kind], data.test, recipe) for nets, _ in runs.values()]
        means = [value.mean().item() for value in values]
        summary[name] = rounded(metric, fmean(means))
        if len(runs) > 1:
            summary[f"{name}_std"] = rounded(metric, stdev(means))
        for key, join in ("seconds_per_epoch", fmean), ("peak_memory", max):
            summary[prefix + key] = join([trained[kind][key] for _, trained in runs.values()]) or None
        for entry, value, mean, (_, trained) in zip(per_seed, values, means, runs.values(), strict=True):
            entry |= {name: rounded(metric, mean), f"{prefix}epoch": trained[kind]["epoch"]}
            entry |= {f"{prefix}right": packed(value)} if metric == "accuracy" else {}
    if recipe.draw_T:
        for entry, (nets, _) in zip(per_seed, runs.values(), strict=True):
            at = {T: evaluate(at_T(nets["SNN"], T, data), data.test, recipe).mean().item() for T in recipe.draw_T}
            entry[f"test_{metric}_at_T"] = {T: rounded(metric, value) for T, value in at.items()}
    measures = measure(recipe, data, [nets for nets, _ in runs.values()])
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return summary | measures | {
        "T": recipe.T,
        "parameters": sum(p.numel() for p in runs[recipe.seed][0]["SNN"].parameters()),
        "samples": {name: 0 if split is None else len(split) for name, split in parts.items()},
        "seeds": list(runs),
        "per_seed": per_seed,
        "recipe": asdict(recipe),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
