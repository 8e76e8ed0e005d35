"""The processes that train one network together."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# gloo's threads outlive their group. One of them that were the last to hold a sum would need Python's lock to free it,
# and dies for it, with the process, where Python is already ending: the last sum is held here instead.
_kept: list[Any] = []


@dataclass(frozen=True)
class World:
    """This process among those of a run; by default the only one.

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
        # The buffers are batch norm's, equal already. torch renamed the argument that says so.
        parallel: Any = nn.parallel.DistributedDataParallel
        known = inspect.signature(parallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return parallel(net, **{name: False})
