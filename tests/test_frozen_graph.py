"""Frozen networks as CUDA graphs, by the recording graph of recorded.py."""

import copy
from typing import Any

import pytest
import torch
from cases import train
from networks import Net, conv, in_windows, lif, line, mlp, projection, residual, trained
from recorded import record
from torch import nn

import tandem_snn
import tandem_snn.nn as tnn
from tandem_snn.frozen.program import MOST_KEPT, Graph


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    record(monkeypatch)


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("make", [mlp, lif, conv, residual, projection, line])
def test_a_graph_is_the_evaluation(make: Any, timing: str) -> None:
    """On inputs it has not seen: nothing of the first one is left in it."""
    torch.manual_seed(0)
    net, x = make()
    net = in_windows(net) if timing == "window" else net
    trained(net, x)
    frozen = tandem_snn.freeze(net)
    with torch.inference_mode():
        for seen in (x, x.flip(0), torch.zeros_like(x), x):
            assert torch.equal(frozen._replay(seen), net(seen))
    (graph,) = frozen._graphs.values()
    assert isinstance(graph, Graph)
    assert graph._graph.replays == 4


def test_trains_have_graphs_too() -> None:
    net = nn.Sequential(tnn.Linear(30, 60), tnn.Linear(60, 20), tnn.Readout(20, 5)).eval()
    frozen = tandem_snn.freeze(net)
    with torch.inference_mode():
        for T in (8, 11, 8):
            x = train(T, 7, 30)
            assert torch.equal(frozen._replay(x), net(x))
            half = type(x)(x.planes, T, gain=0.5)
            assert torch.equal(frozen._replay(half), net(half))
    assert len(frozen._graphs) == 4


def test_an_answer_is_the_callers() -> None:
    frozen = tandem_snn.freeze(nn.Sequential(tnn.Encoder(4), tnn.Linear(3, 5), tnn.Readout(5, 2)))
    with torch.inference_mode():
        first = frozen._replay(torch.ones(2, 3))
        kept = first.clone()
        frozen._replay(torch.zeros(2, 3))
    assert torch.equal(first, kept)


def test_shapes_do_not_pile_up() -> None:
    frozen = tandem_snn.freeze(nn.Sequential(tnn.Encoder(4), tnn.Linear(3, 5), tnn.Readout(5, 2)))
    with torch.inference_mode():
        for batch in range(1, MOST_KEPT + 4):
            assert frozen._replay(torch.rand(batch, 3)).shape == (batch, 2)
    assert len(frozen._graphs) == MOST_KEPT


def test_what_cannot_be_captured_runs_layer_by_layer() -> None:
    waits = Net(lambda m, x: x if x.sum().item() > 1e9 else x + 0)  # it reads a value back
    net = nn.Sequential(waits, tnn.Encoder(4), tnn.Linear(3, 5), tnn.Readout(5, 2)).eval()
    frozen = tandem_snn.freeze(net)
    x = torch.rand(2, 3)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(frozen._replay(x), net(x))
    assert list(frozen._graphs.values()) == [None]


def test_other_errors_are_raised() -> None:
    def fails(m: Any, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    frozen = tandem_snn.freeze(nn.Sequential(Net(fails), tnn.Encoder(4), tnn.Linear(3, 5), tnn.Readout(5, 2)).eval())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="illegal memory access"):
        frozen._replay(torch.rand(2, 3))


def test_copies_and_moves_leave_the_graphs_behind() -> None:
    frozen = tandem_snn.freeze(nn.Sequential(tnn.Encoder(4), tnn.Linear(3, 5), tnn.Readout(5, 2)))
    with torch.inference_mode():
        frozen._replay(torch.rand(2, 3))
    assert not copy.deepcopy(frozen)._graphs
    frozen.float()
    assert not frozen._graphs
