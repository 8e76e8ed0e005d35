"""The processes that train one network, started by torchrun; signals that stop them."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..nn.batch_norm import SyncBatchNorm

# gloo's threads outlive their group. A thread that holds the last reference to a sum takes Python's lock to free it. If
# Python is shutting down, that ends the process: so the last sum is kept here.
_kept: list[Any] = []


@dataclass(frozen=True)
class World:
    """This process and the number of processes in a run; by default one.

    >>> World().is_main
    True
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """``values`` summed over the processes, in place."""
        if self.size > 1:
            work: Any = torch.distributed.all_reduce(values, async_op=True)
            work.wait()
            _kept[:] = [work]
        return values

    def wrap(self, net: nn.Module) -> nn.Module:
        """``net`` with its gradients averaged over the processes in the backward pass."""
        if self.size == 1:
            return net
        # Buffers are equal already: batch norm is synchronised. torch has renamed this argument.
        parallel: Any = nn.parallel.DistributedDataParallel
        known = inspect.signature(parallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return parallel(net, **{name: False})


def launched() -> bool:
    """Whether torchrun, or a similar launcher, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join(device: str, timeout: timedelta = timedelta(minutes=10)) -> Iterator[tuple[World, str]]:
    """Joins the processes that torchrun started; does nothing for a single process.

        torchrun --nproc-per-node 2 -m tandem_snn train fashion-mnist

    Args:
        device: "cpu" (backend gloo), or "cuda" (NCCL, one GPU for each process of a machine).
        timeout: how long to wait for the other processes.

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
        # torchrun may keep the entries of processes that it has restarted: each start has its own prefix.
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(start, store)  # type: ignore[attr-defined]
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        yield World(dist.get_rank(), dist.get_world_size()), device
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"another process of this run stopped, so this one stops too ({reason})") from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def synchronised(net: nn.Module, world: World) -> Iterator[None]:
    """Within this context all batch norms of the network use the statistics of all processes.

    Afterwards they are torch's own again, with the same parameters and buffers.

    Args:
        net: the network, not wrapped.
        world: the processes; with a single one nothing changes.

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


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within this context the first Ctrl-C or SIGTERM only sets :attr:`signal`; the second acts as usual.

    Outside the main thread, where Python delivers no signals, this does nothing.

    >>> import signal
    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.requested()
    True
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
