"""Training one network: a plain loop, which resumes from its last whole epoch with bit-identical weights."""

import copy
import ctypes
import gc
import io
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import update_bn

import tandem_snn as ts
import tandem_snn.nn as tnn
from data import Data, Split
from recipe import Recipe


@dataclass(frozen=True)
class World:
    """This process and the number of processes that train together."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """``values`` summed over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


class Task:
    """The loss and the metric of a recipe: cross-entropy and accuracy, or the mean squared error as both."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.classifies = recipe.task == "classification"
        self.metric = "accuracy" if self.classifies else "mse"

    def loss(self, output: Tensor, target: Tensor, teacher: Tensor | None = None) -> Tensor:
        """With the logits of a teacher (1 - α) times the cross-entropy + α τ² KL(teacher, output), both over τ."""
        loss = F.cross_entropy(output, target) if self.classifies else F.mse_loss(output, target)
        if teacher is None:
            return loss
        tau = self.recipe.temperature
        own, theirs = (F.log_softmax(logits / tau, 1) for logits in (output, teacher))
        apart = tau**2 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)
        return torch.lerp(loss, apart, self.recipe.distill)

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        """The metric of each sample, float64 [B]."""
        if self.classifies:
            return (output.argmax(1) == target).double()
        return (output - target).square().double().mean(1)


def train(
    net: nn.Module,
    data: Data,
    recipe: Recipe,
    seed: int,
    path: Path,
    world: World,
    on_step: Callable[[int, int], None],
    writer: Any = None,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Trains the network, and writes a checkpoint after each epoch, from which it resumes.

    Order of the samples, augmentation and dropout of an epoch depend on the seed and the number of the epoch alone.

    Args:
        net: on the device where it is trained; at the end it has the kept weights.
        path: of the checkpoint; one that is there is continued.
        on_step: called after each step with the number of steps taken, and of all.
        writer: a SummaryWriter for TensorBoard.
        teacher: a network whose answers are distilled.

    Returns:
        The last checkpoint: recipe, history (a record of each epoch), epoch (whose weights are kept), weights,
        seconds_per_epoch, peak_memory (bytes).

    Raises:
        ValueError: the checkpoint is of another recipe, the batch cannot be shared, or the loss became infinite or NaN.
    """
    task, device = Task(recipe), next(net.parameters()).device
    batch_size = min(recipe.batch_size, len(data.train))
    if batch_size % world.size:
        raise ValueError(f"batch_size: {batch_size} samples cannot be divided among {world.size} processes")
    steps = len(data.train) // batch_size
    optimizer = make_optimizer(net, recipe)
    schedule = make_schedule(optimizer, recipe, recipe.epochs * steps)
    done: dict[str, Any] = {"recipe": asdict(recipe), "seed": seed, "history": [], "epoch": 0, "peak_memory": 0}
    if path.exists():
        done = read(path, recipe)
        net.load_state_dict(done.pop("net"))
        optimizer.load_state_dict(done.pop("optimizer"))
        schedule.load_state_dict(done.pop("schedule"))
    penalty = None
    if recipe.synops_penalty and any(isinstance(layer, tnn.SpikingLayer) for layer in net.modules()):
        penalty = ts.measure.synops_penalty(net)
    encoder: Any = net.encoder
    drawn = recipe.draw_T if isinstance(encoder, tnn.Encoder) else ()
    model: Any = nn.parallel.DistributedDataParallel(net) if world.size > 1 else net
    memory = PeakMemory(device)
    for epoch in range(len(done["history"]) + 1, recipe.epochs + 1):
        start, sums = time.perf_counter(), torch.zeros(3, dtype=torch.float64, device=device)
        torch.manual_seed(derived(seed, epoch, world.rank))
        net.train()
        batches = data.train.epoch(derived(seed, epoch), batch_size, world.rank, world.size)
        draw = random.Random(derived(seed, epoch))
        for step, (inputs, targets) in enumerate(batches, (epoch - 1) * steps + 1):
            if drawn:
                encoder.T = draw.choice(drawn)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                output = model(inputs).float()
                with torch.no_grad():
                    theirs = None if teacher is None else teacher(inputs).float()
            loss = task.loss(output, targets, theirs)
            if penalty is not None:
                loss = loss + recipe.synops_penalty * penalty()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                part = loss.double() * len(targets), task.values(output, targets).sum(), sums.new_tensor(len(targets))
                sums += torch.stack(part)
            on_step(step, recipe.epochs * steps)
        loss_sum, metric, samples = world.sum(sums).tolist()
        if not math.isfinite(loss_sum):
            raise ValueError(f"the loss became {loss_sum} in epoch {epoch}: try a smaller learning rate")
        seconds = time.perf_counter() - start
        record = {"epoch": epoch, "lr": schedule.get_last_lr()[0], "loss": loss_sum / samples}
        record |= {task.metric: metric / samples, "seconds": seconds, "images_per_second": samples / seconds}
        if data.validation is not None:
            nets = [at_T(net, T, data) for T in drawn] or [net]
            values = [evaluate(one, data.validation, recipe, world).mean().item() for one in nets]
            record[f"validation_{task.metric}"] = fmean(values)
        done["history"].append(record)
        values = [one.get(f"validation_{task.metric}") for one in done["history"]]
        # Of equals the later: it was trained for longer, at a smaller learning rate.
        if data.validation is None or values[-1] == (max(values) if task.classifies else min(values)):
            kept = at_T(net, recipe.T, data) if drawn else net
            done |= {"epoch": epoch, "weights": {name: value.clone() for name, value in kept.state_dict().items()}}
        done["peak_memory"] = max(done["peak_memory"], memory.grown())
        if world.rank == 0:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            write(path, done | state)
        for name, value in record.items() if writer is not None else ():
            writer.add_scalar(name, value, epoch)
    encoder.T = recipe.T
    if penalty is not None:
        penalty.remove()
    net.load_state_dict(done["weights"])
    seconds = sum(record["seconds"] for record in done["history"]) / recipe.epochs
    return done | {"seconds_per_epoch": seconds}


def derived(*numbers: int) -> int:
    """A seed for these numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def at_T(net: Any, T: int, data: Data) -> Any:
    """A copy of a network at T; batch norm's statistics, which depend on T, are measured on some training samples."""
    net = copy.deepcopy(net)
    net.encoder.T = T
    update_bn(islice(data.train.epoch(0, min(500, len(data.train))), 10), net)
    return net.eval()


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, recipe: Recipe, world: World | None = None) -> Tensor:
    """The metric of each sample of a split, [N], in evaluation mode and in float32, as files compute."""
    world = World() if world is None else world
    task, found = Task(recipe), torch.zeros(len(split), dtype=torch.float64, device=split.inputs.device)
    net.eval()
    parts = [task.values(net(x), y) for x, y in split.batches(512, world.rank, world.size)]
    found[world.rank :: world.size] = torch.cat(parts)
    return world.sum(found)


def make_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]  # of batch norm, biases and thresholds
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.lr, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, recipe.lr, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> lr_scheduler.LRScheduler:
    if recipe.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False)
    return lr_scheduler.ConstantLR(optimizer, 1.0)


def with_shared_statistics(net: nn.Module) -> nn.Module:
    """The network, whose batch norms use the statistics of all processes; the names in its state_dict are the same."""
    for layer in net.modules():
        if isinstance(norm := getattr(layer, "norm", None), nn.modules.batchnorm._BatchNorm):
            layer.norm = tnn.SyncBatchNorm(norm)
    return net


def write(path: Path, state: dict[str, Any]) -> None:
    """Writes a file of torch, such that after a crash it is the old one or the new one."""
    content = io.BytesIO()
    torch.save(state, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path, recipe: Recipe) -> dict[str, Any]:
    """A file that :func:`write` wrote for this recipe."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch's errors for a damaged file are of many classes
        raise ValueError(f"{path} is damaged: delete it to train this network again ({error!r:.100})") from error
    for name, ours in asdict(recipe).items():
        if ours != (theirs := state["recipe"].get(name)):
            raise ValueError(
                f"{path} belongs to another recipe: {name} is {theirs} there and {ours} here; choose another folder "
                "with --out"
            )
    return state


_libc = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def keep_freed_memory() -> None:
    """Else glibc returns large blocks at once, and the system clears the same pages in every step, for which a small
    convolutional network takes a fifth longer. The whole process is affected.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        _libc.mallopt(_MMAP_THRESHOLD, 1 << 25)


class PeakMemory:
    """The growth of the process's peak memory, or of what torch allocates on a GPU, since this was made, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif (clear := Path("/proc/self/clear_refs")).exists():
            gc.collect()
            if hasattr(_libc, "malloc_trim"):
                _libc.malloc_trim(0)  # growth into what was freed would not be seen
            clear.write_text("5")  # resets the peak, VmHWM
            self.before = self._resident("VmRSS")

    def grown(self) -> int:
        """0 where the system does not say."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return self._resident("VmHWM") - self.before if hasattr(self, "before") else 0

    def _resident(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))
