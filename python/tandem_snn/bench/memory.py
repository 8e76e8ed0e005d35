"""How much memory a call takes: what it keeps for the backward pass, and its peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..memory import forget_peak, resident
from .rivals.model import Output, values


def kept_for_backward(step: Callable[[], Output], parameters: Sequence[Tensor]) -> int:
    """Bytes that the graph of a training step holds, each storage once, without the parameters and the result."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = values(step())
    for tensor in (*parameters, result):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def peak(call: Callable[[], object]) -> int:
    """Bytes by which the process grows during a call, beyond what it holds before: Linux only.

    The allocator must return what is freed to the system, else freed memory hides the growth: see
    :func:`tandem_snn.bench.process.environment`.
    """
    call()
    forget_peak()
    before = resident()
    call()
    return resident("VmHWM") - before
