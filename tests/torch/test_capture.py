"""CUDA graphs of training steps and of frozen networks: nothing waits for a value or brings one from the host, and what
is replayed is what was captured. Without a GPU a graph keeps the calls of operators, and does them again in place.
"""

import contextlib
import copy
import runpy
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from cases import train
from gpu.on_device import capture
from networks import Net, conv, in_windows, lif, line, mlp, projection, residual, trained
from pages import ROOT
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_ext import checks
from tandem_snn.frozen.graphs import MOST_KEPT, Graph
from tandem_snn.nn import quantise

# What a capture does not allow: to wait for a value, or to bring one from the host.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "item", "masked_select")


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in func.name() for name in FORBIDDEN):
            raise RuntimeError(f"{func.name()} is not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class FakeGraph:
    def __init__(self):
        self.recorder = Recorder()
        self.replays = 0

    def replay(self):
        self.replays += 1
        with torch.inference_mode(), torch._C._AutoDispatchBelowAutograd():  # it knows nothing of gradients and modes
            self._replay()

    def _replay(self):
        for func, args, kwargs, out in self.recorder.calls:
            given = {t.untyped_storage().data_ptr() for t in tensors(args, kwargs)}
            again = func(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if old.untyped_storage().data_ptr() not in given:  # else a view, or written in place
                    old.copy_(new)


def tensors(*values):
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def in_this_thread(graph, capture_error_mode="global", **_):
    """In torch's mode "global" a DataLoader's thread that pins memory meanwhile would raise."""
    assert capture_error_mode == "thread_local"
    return graph.recorder


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    """torch.cuda captures what runs on the CPU."""
    monkeypatch.setattr(checks, "readable", lambda _: False)  # values are checked on the CPU only
    monkeypatch.setattr(quantise, "_has_kernel", lambda _: False)  # weights on a GPU are quantised by torch
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", in_this_thread)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())


def few_bits():
    net = nn.Sequential(
        tnn.Encoder(4), tnn.Linear(20, 30, weight_bits=2), tnn.Linear(30, 30, weight_bits=4, norm=True),
        tnn.Readout(30, 10, weight_bits=3),
    )  # fmt: skip
    return net, torch.rand(6, 20)


def step_of(net, x, labels):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@pytest.mark.parametrize("make", [mlp, lif, conv, residual, projection, line, few_bits])
def test_a_graph_trains_as_the_step_does(make, timing):
    """On batches that it has not seen, bit for bit."""
    net, x = make()
    net = in_windows(net) if timing == "window" else net
    labels = torch.arange(len(x)) % 4
    twin, seen = copy.deepcopy(net), x.clone()
    step, eager = step_of(net, x, labels), step_of(twin, seen, labels)
    torch.manual_seed(1)
    graph, loss = capture(step)
    torch.manual_seed(1)
    expected = [eager() for _ in range(2)]  # the recording graph does what it records
    assert torch.equal(loss, expected[-1])
    for batch in (x.flip(0), torch.rand_like(x)):
        for given in (x, seen):
            given.copy_(batch)
        torch.manual_seed(2)
        graph.replay()
        torch.manual_seed(2)
        assert torch.equal(loss, eager())
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_the_example():
    """It runs in test_examples.py too, where its graph needs a GPU."""
    example = runpy.run_path(str(ROOT / "python/examples/captured_step.py"))
    net, images, labels, step = example["make_step"]("cpu")
    eager = step_of(copy.deepcopy(net), images, labels)
    captured = example["capture"](step)
    for _ in range(2):
        eager()  # the recording graph does what it records
    for _ in range(2):
        images.copy_(torch.rand_like(images))
        labels.copy_(labels.flip(0))
        assert torch.equal(captured(), eager())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")  # raises where the graph breaks
    assert torch.equal(compiled(images), net(images))


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.nonzero, lambda x: x.new_tensor([1.0])])
def test_what_waits_is_noticed(read):
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), Recorder():
        read(torch.ones(()))


@pytest.mark.parametrize("make", [mlp, lif, conv, residual, projection, line])
def test_a_graph_of_a_frozen_network_is_the_evaluation(make, timing):
    """On inputs it has not seen: nothing of the first one is left in it."""
    net, x = make()
    trained(in_windows(net) if timing == "window" else net, x)
    frozen = ts.freeze(net)
    for seen in (x, x.flip(0), torch.zeros_like(x), x):
        with torch.inference_mode() if seen is x else torch.no_grad():  # it is captured in one, and runs in both
            assert torch.equal(frozen._replay((seen,)), net(seen))
    (graph,) = frozen._graphs.values()
    assert isinstance(graph, Graph)
    assert graph._graph.replays == 4


def test_trains_have_graphs_too():
    layers = tnn.Linear(30, 60, threshold=1.0), tnn.Linear(60, 20, threshold=1.0)
    net = nn.Sequential(*layers, tnn.Readout(20, 5)).eval()
    frozen = ts.freeze(net)
    with torch.inference_mode():
        for T in (8, 11, 8):
            x = train(T, 7, 30)
            assert torch.equal(frozen._replay((x,)), net(x))
            half = type(x)(x.planes, T, gain=0.5)
            assert torch.equal(frozen._replay((half,)), net(half))
    assert len(frozen._graphs) == 4


def small(*first):
    net = nn.Sequential(*first, tnn.Encoder(4), tnn.Linear(3, 5), tnn.Readout(5, 2)).eval()
    return net, ts.freeze(net)


@torch.inference_mode()
def test_answers_are_the_callers_and_shapes_do_not_pile_up():
    _, frozen = small()
    first = frozen._replay((torch.ones(2, 3),))
    kept = first.clone()
    frozen._replay((torch.zeros(2, 3),))
    assert torch.equal(first, kept)
    for batch in range(1, MOST_KEPT + 4):
        assert frozen._replay((torch.rand(batch, 3),)).shape == (batch, 2)
    assert len(frozen._graphs) == MOST_KEPT
    assert not copy.deepcopy(frozen)._graphs
    frozen.float()
    assert not frozen._graphs


@torch.inference_mode()
def test_what_cannot_be_captured_runs_layer_by_layer_and_other_errors_are_raised():
    net, frozen = small(Net(lambda m, x: x if x.sum().item() > 1e9 else x + 0))  # it reads a value back
    x = torch.rand(2, 3)
    for _ in range(2):
        assert torch.equal(frozen._replay((x,)), net(x))
    assert list(frozen._graphs.values()) == [None]
    _, frozen = small(Net(Mock(side_effect=RuntimeError("CUDA error: an illegal memory access was encountered"))))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        frozen._replay((torch.rand(2, 3),))
