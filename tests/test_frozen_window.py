"""Frozen networks of layers that integrate a window, then fire, as one call; test_following.py runs them by steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import average, conv, image_paths, impulse_paths, line, mlp, projection, residual, trained
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

LENGTHS = [1, 2, 8, 200]


def zero_expand() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.Encoder(T=12, mode="zero_expand"),
        tnn.Linear(20, 40, norm=True, threshold=torch.rand(40) + 0.5),
        tnn.Linear(40, 30, v_init=torch.rand(30), gate="clip", gain="threshold", threshold=0.3, weight_bits=5),
        tnn.Linear(30, 20, threshold=nn.Parameter(torch.rand(20) / 4 + 0.1)),
        tnn.Readout(20, 10),
    )
    return net, torch.rand(6, 20) * 4


def depthwise() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.Encoder(T=8),
        tnn.Conv2d(2, 16, 3, padding="same", v_init=0.5),
        tnn.Residual(
            nn.Sequential(tnn.Conv2d(16, 16, 3, padding=1, groups=16, norm=True), tnn.Conv2d(16, 16, 1, v_init=0.5))
        ),
        tnn.MaxPool2d(2),
        tnn.AvgPool2d(3, 1, 1, v_init=0.5),
        tnn.AdaptiveAvgPool2d(2),
        tnn.Flatten(),
        tnn.Readout(64, 5),
    )
    return net, torch.rand(4, 2, 9, 8)


NETWORKS = [mlp, conv, residual, projection, image_paths, impulse_paths, line, zero_expand, depthwise]


def of_timing(make: Any, T: int, mixed: str = "") -> tuple[nn.Module, Any]:
    """The network for T steps with window timing: "mixed" leaves every other layer, "last" the last one, as it is."""
    torch.manual_seed(0)
    net, x = make()
    layers = [m for m in net.modules() if isinstance(m, (tnn.SpikingLayer, tnn.AvgPool2d))]
    for number, layer in enumerate(layers):
        if not (mixed == "even" and number % 2) and not (mixed == "odd" and number % 2 == 0):
            layer.timing = "window"
    for m in net.modules():
        if isinstance(m, tnn.Encoder):
            m.T = T
        if isinstance(m, tnn.Residual) and m.shortcut is not None:  # which has the timing of its neurons
            body, shortcut = ([p for p in path.modules() if isinstance(p, tnn.SpikingLayer)] for path in m.children())
            shortcut[-1].timing = body[-1].timing
    return trained(net, x), x


@pytest.mark.parametrize("mixed", ["", "even", "odd"])
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("make", [*NETWORKS, average])
def test_one_call_is_the_evaluation(make: Any, T: int, mixed: str) -> None:
    net, x = of_timing(make, T, mixed)
    frozen = ts.freeze(net)
    assert torch.equal(frozen(x), net(x))
    assert next(iter(frozen._programs.values())).refusal is None


def spiking() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        tnn.Conv1d(3, 8, 3, timing="window", v_init=0.5),
        tnn.Residual(nn.Sequential(tnn.Conv1d(8, 8, 1, timing="window"), tnn.Conv1d(8, 8, 3, padding=1))),
        tnn.Flatten(),
        tnn.Linear(8 * 7, 20, timing="window", v_init=0.75),
        tnn.Readout(20, 5),
    )
    return net.eval()


@pytest.mark.parametrize("waits", [[0], [1], [0, 1]])
def test_trains_of_both_forms_in(waits: list[int]) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(tnn.Residual(tnn.Linear(30, 30)), tnn.Linear(30, 20), tnn.Readout(20, 4)).eval()
    for number in waits:
        next(m for m in net[number].modules() if isinstance(m, tnn.Linear)).timing = "window"
    counts = torch.randint(0, 12, (5, 30))
    burst = te.SpikeTrain.from_counts(counts, 11)
    frozen = ts.freeze(net)
    for x in burst, te.SpikeTrain(burst.planes, 11), te.SpikeTrain.from_dense(burst.to_dense().flip(0)):
        assert torch.equal(frozen(x), net(x))
        if len(waits) == 2:
            assert torch.equal(frozen.readouts(x)[-1], net(x))


@pytest.mark.parametrize("make", [mlp, residual, depthwise])
def test_compiled_exported_and_frozen_are_the_same(make: Any, tmp_path: Path) -> None:
    net, x = of_timing(make, 8, "even")
    expected = ts.freeze(net)(x)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(net, fullgraph=True, backend="aot_eager")(x), expected)
        torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
        assert torch.equal(torch.export.load(tmp_path / "net.pt2").module()(x), expected)


def test_a_frozen_network_inside_of_a_compiled_function() -> None:
    net, x = of_timing(mlp, 8)
    frozen = ts.freeze(net)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: frozen(x).softmax(1), backend="aot_eager")
    assert torch.equal(compiled(x), frozen(x).softmax(1))
