"""A training step can be captured as a CUDA graph: it neither waits for a value nor brings one from the host, and what
is replayed trains as the step does. Without a GPU the graph is that of recorded.py."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpu.on_device import capture
from networks import conv, in_windows, lif, line, mlp, projection, residual
from recorded import Recorder, record
from torch import nn

import tandem_snn.nn as tnn
from tandem_snn.nn import quantise

PAGE = Path(__file__).parents[1] / "docs" / "cuda.md"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    record(monkeypatch)
    monkeypatch.setattr(quantise, "_has_kernel", lambda _: False)  # weights on a GPU are quantised by torch


def few_bits() -> tuple[nn.Module, torch.Tensor]:
    net = nn.Sequential(
        tnn.Encoder(4), tnn.Linear(20, 30, weight_bits=2), tnn.Linear(30, 30, weight_bits=4, norm=True),
        tnn.Readout(30, 10, weight_bits=3),
    )  # fmt: skip
    return net, torch.rand(6, 20)


def step_of(net: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("make", [mlp, lif, conv, residual, projection, line, few_bits])
def test_a_graph_trains_as_the_step_does(make: Any, timing: str) -> None:
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


def test_the_example_of_the_page() -> None:
    """It runs in test_docs.py too, where its graph needs a GPU."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    twin = copy.deepcopy(names["net"])
    eager = step_of(twin, names["images"], names["labels"])
    graph, loss = names["capture"](names["step"])
    assert torch.equal(loss, [eager() for _ in range(2)][-1])
    names["images"].copy_(torch.rand_like(names["images"]))
    names["labels"].copy_(names["labels"].flip(0))
    graph.replay()
    assert torch.equal(loss, eager())
    compiled = torch.compile(names["net"], fullgraph=True, backend="aot_eager")  # raises where the graph breaks
    assert torch.equal(compiled(names["images"]), names["net"](names["images"]))


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.nonzero, lambda x: x.new_tensor([1.0])])
def test_what_waits_is_noticed(read: Any) -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), Recorder():
        read(torch.ones(()))
