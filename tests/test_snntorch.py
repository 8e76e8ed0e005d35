"""Networks of snnTorch as ours and back: the same spikes, and a refusal where they cannot be."""

from typing import Any

import pytest
import torch
from networks import dyadic, images, meeting, own_counts, stepped
from test_simulators import T, assert_same
from torch import Tensor, nn

import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.convert import CannotConvert
from tandem_snn.frozen.stages import CannotLower

pytestmark = pytest.mark.clients


@pytest.fixture
def snn() -> Any:
    return pytest.importorskip("snntorch", reason="snnTorch is not installed")


def snn_fires(name: str, module: nn.Module) -> bool:
    return type(module).__name__ == "Leaky"


def snn_chain(snn: Any, beta: float) -> nn.Module:
    options = {"init_hidden": True}
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), snn.Leaky(beta, 0.5, **options), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 40), snn.Leaky(beta, **options)),
        *(nn.Linear(40, 10), snn.Leaky(beta, output=True, **options)),
    )


class Stateful(nn.Module):
    """As snnTorch's tutorials write a step."""

    def __init__(self, snn: Any, beta: float) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 40), snn.Leaky(beta)
        self.fc2, self.lif2 = nn.Linear(40, 10), snn.Leaky(beta)

    def forward(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


@pytest.mark.parametrize("beta", [1.0, 0.75, 0.5])
def test_snntorch_as_ours_and_back(beta: float, snn: Any) -> None:
    from snntorch import utils

    x = images(100)
    theirs = dyadic(snn_chain(snn, beta))
    expected = stepped(theirs, [x] * T, snn_fires)
    ours = ts.from_snntorch(theirs, T)
    assert_same(own_counts(ours, x), expected)
    back = ts.to_snntorch(ours, x)
    for _ in range(2):
        assert_same(own_counts(ours, x), stepped(back, [x] * T, snn_fires))
        utils.reset(back)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_snntorchs_tutorial_with_pooling_before_the_neurons(beta: float, snn: Any) -> None:
    def leaky(**options: Any) -> nn.Module:
        return snn.Leaky(beta, init_hidden=True, **options)

    theirs = nn.Sequential(
        *(nn.Conv2d(1, 12, 3), nn.MaxPool2d(2), leaky()),
        *(nn.Conv2d(12, 16, 2), nn.MaxPool2d(2), leaky()),
        *(nn.Flatten(), nn.Linear(16, 10), leaky(output=True)),
    )
    x = images(100)
    expected, answer = stepped(dyadic(theirs), [x] * T, snn_fires)
    for example in None, x[:1]:
        counts, other = own_counts(ts.from_snntorch(theirs, T, example=example), x)
        assert all(torch.equal(c, d) for c, d in zip(counts, expected, strict=True))
        assert torch.equal(other.counts, answer)


def test_potentials_that_go_in_and_out(snn: Any) -> None:
    x = images(100)
    theirs = dyadic(Stateful(snn, 0.75))
    state = [torch.zeros(()), torch.zeros(())]
    total = torch.zeros(())
    for _ in range(T):
        spikes, *state = theirs(x, *state)
        total = total + spikes
    assert torch.equal(ts.from_snntorch(theirs, T)(x).counts, total)


@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_snntorch_where_potentials_equal_the_threshold(leak: float, snn: Any) -> None:
    """It fires at v > ϑ. The potential of average pooling is a multiple of 1/4, and often ϑ."""
    x = images(100)
    ours = nn.Sequential(
        tnn.Encoder(T),
        *(tnn.Conv2d(1, 8, 3, padding=1, threshold=0.5, leak=leak), tnn.AvgPool2d(2)),
        *(tnn.Conv2d(8, 8, 3, padding=1), tnn.AvgPool2d(2), tnn.Flatten(), tnn.Readout(32, 5)),
    )
    expected = own_counts(meeting(ours), x)
    there = ts.to_snntorch(ours, x)
    assert_same(expected, stepped(there, [x] * T, snn_fires))
    back = ts.from_snntorch(there, T)
    assert_same(expected, own_counts(back, x))
    assert sum(isinstance(m, tnn.AvgPool2d) for m in back.modules()) == 2

    options = {"init_hidden": True}
    theirs = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), snn.Leaky(leak, 0.5, **options), nn.AvgPool2d(2), snn.Leaky(1.0, **options)),
        *(nn.Flatten(), nn.Linear(128, 10), snn.Leaky(leak, torch.tensor([0.5, 1.0] * 5), output=True, **options)),
    )
    expected = stepped(meeting(theirs), [x] * T, snn_fires)
    assert_same(own_counts(ts.from_snntorch(theirs, T), x), expected)


def test_what_snntorch_has_and_we_have_not_is_named(snn: Any) -> None:
    def chain(neuron: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), neuron)

    for neuron, message in (
        (snn.Leaky(0.9, reset_mechanism="zero", init_hidden=True), "module '1': .*reset_mechanism='zero'"),
        (snn.Leaky(0.9, reset_mechanism="none", init_hidden=True), "reset_mechanism='none'"),
        (snn.Leaky(0.9, reset_delay=False, init_hidden=True), "reset_delay=False"),
        (snn.Leaky(0.9, inhibition=True, init_hidden=True), "inhibition"),
        (snn.Leaky(torch.tensor([0.5, 0.6, 0.7]), init_hidden=True), "differs between neurons"),
        (snn.Synaptic(0.9, 0.8, init_hidden=True), "snnTorch's Synaptic is not supported: use Leaky"),
    ):
        with pytest.raises(CannotConvert, match=message):
            ts.from_snntorch(chain(neuron), T)

    class Potential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(0.9)

        def forward(self, x: Tensor, mem: Tensor) -> Tensor:
            return 2 * self.lif(self.fc(x), mem)[1]

    class New(Potential):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.lif(self.fc(x), self.lif.init_leaky())[0]

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 3), snn.Leaky(0.9, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.lif(self.fc(step)) for step in x])

    for theirs, message in (
        (Potential(), "a membrane potential"), (Loop(), "without a loop over time"),
        (New(), r"its forward makes new potentials.*potentials must be hidden, or its inputs and outputs"),
    ):  # fmt: skip
        with pytest.raises(CannotConvert, match=message):
            ts.from_snntorch(theirs, T)
    net = nn.Sequential(tnn.Encoder(T), tnn.Linear(4, 3, v_init=0.5), tnn.Readout(3, 2))
    with pytest.raises(CannotLower, match="n1: snnTorch's neurons have no initial potential"):
        ts.to_snntorch(net, torch.rand(1, 4))
