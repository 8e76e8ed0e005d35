"""Frozen networks of layers that integrate a window, then fire: one call, pipeline and file give the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Net, average, conv, image_paths, impulse_paths, line, mlp, projection, residual, trained
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


def pipeline(frozen: ts.FrozenNetwork, steps: list[Tensor], windows: int) -> list[Tensor]:
    """The readouts of each step of the windows that are given one after the other, the last one until all have left."""
    late, T = frozen.latency - len(steps) // windows, len(steps) // windows
    frozen.reset()
    answers = [frozen.step(steps[min(n, len(steps) - T + n % T)]) for n in range(len(steps) + late)]
    assert all(answer.isnan().all() for answer in answers[:late])
    return answers[late:]


@pytest.mark.parametrize("mixed", ["", "even", "odd"])
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("make", [*NETWORKS, average])
def test_one_call_is_the_evaluation_and_the_pipeline(make: Any, T: int, mixed: str) -> None:
    net, x = of_timing(make, T, mixed)
    frozen = ts.freeze(net)
    expected = net(x).detach()
    assert torch.equal(frozen(x), expected)
    program = next(iter(frozen._programs.values()))
    assert program.refusal is None
    readouts = frozen.readouts(x)
    assert torch.equal(readouts[-1], expected)
    if T == 200:
        x, expected, readouts = x[:1], frozen(x[:1]), frozen.readouts(x[:1])
    other = x.flip(0) * 0.5
    answers = pipeline(frozen, [x] * T + [other] * T, 2)
    assert torch.equal(torch.stack(answers[:T]), readouts)
    assert torch.equal(torch.stack(answers[T:]), frozen.readouts(other))


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


@pytest.mark.parametrize("T", LENGTHS)
def test_spikes_in(T: int) -> None:
    net, spikes = spiking(), torch.rand(2 * T, 3, 3, 9).lt(0.4).float()
    first, second = (te.SpikeTrain.from_dense(s) for s in spikes.split(T))
    frozen = ts.freeze(net, T=T)
    assert frozen.latency == 4 * T
    answers = pipeline(frozen, list(spikes), 2)
    for x, answer in (first, answers[T - 1]), (second, answers[-1]):
        assert torch.equal(answer, frozen(x))
        assert torch.equal(answer, net(x))


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
        assert torch.equal(frozen.readouts(x)[-1], net(x))


@pytest.mark.parametrize("timing", ["step", "window"])
def test_early_answers_are_those_of_the_last_window(timing: str) -> None:
    net, x = of_timing(mlp, 8) if timing == "window" else mlp()
    trained(net, x)
    frozen = ts.freeze(net)
    logits, steps = frozen.anytime(x, confidence=1.0)
    assert torch.equal(logits, frozen(x))
    assert steps.tolist() == [8] * len(x)
    frozen.reset()
    answers = torch.stack([frozen.step(x) for _ in range(frozen.latency)])[-8:]
    sure = answers.softmax(2).amax(2) >= 0.15
    sure[-1] = True
    logits, steps = frozen.anytime(x, confidence=0.15)
    assert torch.equal(steps, sure.int().argmax(0) + 1)
    assert torch.equal(logits, answers[steps - 1, torch.arange(len(x))])


def test_another_t_begins_another_stream() -> None:
    frozen, spikes = ts.freeze(spiking(), T=4), torch.ones(1, 3, 9)
    frozen.step(spikes)
    frozen(te.SpikeTrain.from_dense(spikes.expand(5, 1, 3, 9)))
    with pytest.raises(ValueError, match=r"T: 4 in the steps before, now 5; reset\(\)"):
        frozen.step(spikes)
    frozen.reset()
    assert frozen.step(spikes).isnan().all()


def test_an_image_that_is_read_a_window_later_is_named() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.encoder(x)
        return m.readout(m.second(x, residual=m.first(x)))

    layers = {name: tnn.Linear(5, 5, timing="window") for name in ("first", "second")}
    net, x = Net(forward, encoder=tnn.Encoder(4), **layers, readout=tnn.Readout(5, 2)).eval(), torch.rand(2, 5)
    frozen = ts.freeze(net)
    assert torch.equal(frozen(x), net(x))
    with pytest.raises(ValueError, match="instruction 1: a stream does not keep a real-valued input for a later"):
        frozen.step(x)


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
