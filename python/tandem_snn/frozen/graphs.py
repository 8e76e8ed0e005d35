"""A frozen network on a GPU as a CUDA graph."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain
from tandem_ext._torch import pytree

from .stages import Stage

MOST_KEPT = 8  # graphs, which keep the memory of one evaluation, and programs, which have their own packed weights


def key_of(inputs: Sequence[Tensor | SpikeTrain]) -> Hashable:
    """Return the key of a graph that these inputs can use, or None if there can be no graph for them."""
    keys = tuple(map(_key_of, inputs))
    return None if None in keys else keys


def _key_of(x: Tensor | SpikeTrain) -> Hashable:
    if not isinstance(x, SpikeTrain):
        return x.device, tuple(x.shape), x.dtype
    return None if isinstance(x.gain, Tensor) else (x.device, tuple(x.shape), x.T, x.gain, x.timing)


class Graph:
    """A CUDA graph that evaluates the network for inputs like these, without gradients and on one stream at a time."""

    def __init__(self, net: nn.Module, inputs: Sequence[Tensor | SpikeTrain]) -> None:
        self._inputs, device = [*map(_copy_of, inputs)], inputs[0].device
        now, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(now)
        with torch.cuda.stream(side):  # a first call, so that allocations by libraries are not part of the graph
            net(*self._inputs)
        now.wait_stream(side)
        self._graph, self._side = torch.cuda.CUDAGraph(), side

    def record(self, net: nn.Module) -> None:
        # Other threads, such as a DataLoader's that pins memory, may do meanwhile what a capture forbids.
        with torch.cuda.graph(self._graph, stream=self._side, capture_error_mode="thread_local"):
            self._answer = net(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor | SpikeTrain]) -> Any:
        for own, x in zip(self._inputs, inputs, strict=True):
            _values(own).copy_(_values(x))
        self._graph.replay()
        return pytree.tree_map(torch.clone, self._answer)


def capture(net: nn.Module, inputs: Sequence[Tensor | SpikeTrain]) -> Graph | None:
    """Return the graph, or None if the network cannot be captured, for example because it waits for the GPU."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 4:  # the layout that the kernels need; otherwise every replay would copy the weights
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    for stage in net.modules():
        if isinstance(stage, Stage):
            stage.prepare()
    graph = Graph(net, inputs)
    try:
        graph.record(net)
    except RuntimeError:  # but it ran before
        return None
    return graph


def _values(x: Tensor | SpikeTrain) -> Tensor:
    return x.stored if isinstance(x, SpikeTrain) else x


@torch.inference_mode(False)  # so that it can be written to outside of that mode, too
def _copy_of(x: Tensor | SpikeTrain) -> Tensor | SpikeTrain:
    if isinstance(x, SpikeTrain):
        return x.replace(stored=x.stored.clone(memory_format=torch.preserve_format), counts=None, bad=None)
    return x.detach().clone(memory_format=torch.preserve_format)
