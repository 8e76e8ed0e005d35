"""A CUDA graph that can do without a GPU: it remembers the calls of operators, and does them again in the same memory
when it is replayed."""

import contextlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tandem_ext import checks

# What a capture does not allow: to wait for a value, or to bring one from the host.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "item", "masked_select")


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in FORBIDDEN):
            raise RuntimeError(f"{func.name()} is not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class FakeGraph:
    def __init__(self) -> None:
        self.recorder = Recorder()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # it knows nothing of gradients and views
            self._replay()

    def _replay(self) -> None:
        for func, args, kwargs, out in self.recorder.calls:
            given = {t.untyped_storage().data_ptr() for t in tensors(args, kwargs)}
            again = func(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if old.untyped_storage().data_ptr() not in given:  # else a view, or written in place
                    old.copy_(new)


def tensors(*values: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


class FakeStream:
    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, other: "FakeStream") -> None: ...


def record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch.cuda capture what runs on the CPU."""
    monkeypatch.setattr(checks, "_readable", lambda _: False)  # values are checked on the CPU only
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph.recorder)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
