"""Several processes train one network: data-parallel, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..nn.batch_norm import SyncBatchNorm
from .world import World


def launched() -> bool:
    """Whether torchrun, or something alike, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join(device: str, timeout: timedelta = timedelta(minutes=10)) -> Iterator[tuple[World, str]]:
    """Joins the processes that torchrun started; alone, there is nothing to join.

        torchrun --nproc-per-node 2 -m tandem_snn train fashion-mnist

    Args:
        device: "cpu", where the processes talk through gloo, or "cuda", through NCCL: each has one GPU of its machine.
        timeout: how long to wait for the others.

    Returns:
        A context that gives (world, this process's device).

    Raises:
        UserError: another process stopped or did not come.

    >>> with join("cpu") as (world, device):
    ...     world.size, world.is_main, device
    (1, True, 'cpu')
    """
    if not launched():
        yield World(), device
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    try:
        # torchrun may keep what processes told each other before it started them again: each start has its own place.
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(start, store)  # type: ignore[attr-defined]
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        yield World(dist.get_rank(), dist.get_world_size()), device
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"another process of this run stopped, so this one does too ({reason})") from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def synchronised(net: nn.Module, world: World) -> Iterator[None]:
    """Within this context the network's batch norms, spiking layers' and others, use the statistics of all processes.

    Afterwards they are torch's own again, with the same parameters and buffers.

    Args:
        net: the network, not wrapped.
        world: the processes; of one alone nothing changes.

    >>> net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3, norm=True), tnn.Readout(3, 2))
    >>> with synchronised(net, World()):
    ...     net(torch.rand(5, 4)).sum().backward()
    """
    if world.size == 1:
        yield
        return
    own = [
        (module, name, child)
        for module in net.modules()
        for name, child in module.named_children()
        if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm)
    ]
    for module, name, child in own:
        setattr(module, name, SyncBatchNorm(child))
    try:
        yield
    finally:
        for module, name, child in own:
            child.train(getattr(module, name).training)
            setattr(module, name, child)
