"""Networks of SpikingJelly as ours and back, and NIR files in other simulators: the same spikes, or a refusal."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from networks import differing, dyadic, images, meeting, network, own_counts, stepped
from nir_simulators import by_nirtorch, by_sinabs, by_snntorch, by_spikingjelly, counts_of, file_of
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.convert import CannotConvert
from tandem_snn.frozen.stages import CannotLower

pytestmark = pytest.mark.clients

T = 8
assert_same = partial(networks.assert_same, least=2)


@pytest.fixture
def sj() -> Any:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer

    neuron.layer, neuron.functional = layer, functional
    return neuron


def sj_fires(name: str, module: nn.Module) -> bool:
    return type(module).__name__ in ("IFNode", "LIFNode", "ParametricLIFNode")


class SJResidual(nn.Module):
    """Projection, and the spikes themselves, into one neuron with other currents."""

    def __init__(self, sj: Any, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        layer = sj.layer
        self.first, self.sn1 = layer.Conv2d(1, 6, 3, padding=1), neuron()
        self.body, self.norm, self.sn2 = layer.Conv2d(6, 6, 3, padding=1), layer.BatchNorm2d(6), neuron()
        self.path, self.shortcut, self.sn3 = layer.Conv2d(6, 8, 3, 2, 1), layer.Conv2d(6, 8, 1, 2), neuron()
        self.flatten, self.fc = layer.Flatten(), layer.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sn1(self.first(x))
        x = self.sn2(self.norm(self.body(x)) + x)
        x = self.sn3(self.shortcut(x) + self.path(x))
        return self.fc(self.flatten(x))


def rounding(sj: Any) -> nn.Module:
    """Neurons that start at half their threshold."""
    node = sj.IFNode(v_reset=None)
    node.set_reset_value("v", 0.5)
    node.reset()
    return node


def sj_chain(sj: Any, neuron: Callable[[], nn.Module]) -> nn.Module:
    layer = sj.layer
    return nn.Sequential(
        *(layer.Conv2d(1, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), neuron(), layer.MaxPool2d(2)),
        *(layer.Conv2d(8, 12, 3, padding=1), neuron(), layer.AvgPool2d(2), rounding(sj)),
        *(layer.Flatten(), layer.Dropout(0.5), nn.Linear(48, 20), nn.BatchNorm1d(20), neuron()),
    )


class Added(nn.Module):
    """Spikes plus spikes, which are no spikes."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.fire, self.b, self.fire_b, self.c, self.fire_c = (
            *(nn.Linear(4, 4), neuron(), nn.Linear(4, 4)),
            *(neuron(), nn.Linear(4, 4), neuron()),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.fire(self.a(x))
        return self.fire_c(self.c(self.fire_b(self.b(x)) + x))


class Offset(Added):
    """A constant beside the synapses' own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fire_c(self.fire(self.a(x)) + self.c.bias)


class Averaged(nn.Module):
    """Averages and maxima of what is no spike: of spikes, of sums of spikes, of currents."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.fire = nn.Conv2d(1, 6, 3, padding=1), neuron()
        self.b, self.norm, self.fire_b = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), neuron()
        self.c, self.fire_c, self.fc = nn.Conv2d(6, 4, 1), neuron(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fire(nn.functional.max_pool2d(self.a(x), 2))
        x = self.fire_b(nn.functional.max_pool2d(self.norm(self.b(x)), 3, 1, 1)) + x
        return self.fc(self.fire_c(self.c(nn.functional.avg_pool2d(x, 2))).flatten(1))


class Heads(nn.Module):
    """A second linear map, whose bias counts at every step too; multiples and sums of answers."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.fire, self.pool = nn.Conv2d(1, 6, 3), neuron(), nn.AdaptiveAvgPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(24, 12), nn.Linear(12, 4), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        means = (0.5 * self.pool(self.fire(self.conv(x)))).flatten(1)
        return (self.fc2(self.fc1(means)) + self.fc3(means)) / 4


NEURONS = {
    "IF": lambda sj: sj.IFNode(0.5, v_reset=None),
    "LIF": lambda sj: sj.LIFNode(2.0, v_threshold=0.5, v_reset=None),
    "LIF, whole input": lambda sj: sj.LIFNode(4.0, decay_input=False, v_reset=None),
    "parametric LIF": lambda sj: sj.ParametricLIFNode(2.0, v_threshold=0.25, v_reset=None),
}


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("make", [sj_chain, SJResidual])
def test_spikingjelly_as_ours_and_back(make: Any, name: str, sj: Any) -> None:
    x = images(100)
    theirs = dyadic(make(sj, lambda: NEURONS[name](sj)))
    expected = stepped(theirs, [x] * T, sj_fires)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    ours = ts.from_spikingjelly(theirs, T)
    assert_same(own_counts(ours, x), expected)
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())
    sj.functional.set_step_mode(theirs, "m")
    assert_same(own_counts(ts.from_spikingjelly(theirs, T), x), expected)

    back = ts.to_spikingjelly(ours, x)
    for _ in range(2):
        assert_same(own_counts(ours, x), stepped(back, [x] * T, sj_fires))
        sj.functional.reset_net(back)


@pytest.mark.parametrize("name", NEURONS)
def test_any_sums_of_linear_maps_of_spikes(name: str, sj: Any) -> None:
    x = images(100)
    for theirs, given in (
        (Averaged(lambda: NEURONS[name](sj)), x),
        (Added(lambda: NEURONS[name](sj)), x.flatten(1)[:, :4]),
        (nn.Sequential(nn.Conv2d(1, 4, 3), NEURONS[name](sj), NEURONS["IF"](sj)), x),
        (Heads(lambda: NEURONS[name](sj)), x),
        (nn.Sequential(nn.Linear(64, 12), NEURONS[name](sj), sj.layer.VotingLayer(4)), x.flatten(1)),
    ):
        expected = stepped(dyadic(theirs), [given] * T, sj_fires)
        ours = ts.from_spikingjelly(theirs, T)
        counts, answer = own_counts(ours, given)
        assert len(counts) == len(expected[0])
        assert all(torch.equal(c, other) for c, other in zip(counts, expected[0], strict=True))
        torch.testing.assert_close(getattr(answer, "counts", answer), expected[1], atol=1e-4, rtol=1e-5)
        output = ours(given)
        getattr(output, "counts", output).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
        sj.functional.reset_net(theirs)


def test_a_layers_own_bias_in_a_function_counts_once_a_step(sj: Any) -> None:
    class Functions(Added):
        def forward(self, x: Tensor) -> Tensor:
            return self.fire_c(self.c(self.fire(nn.functional.linear(x, self.a.weight, self.a.bias))))

    x, theirs = images().flatten(1)[:, 10:14], dyadic(Functions(lambda: sj.IFNode(0.5, v_reset=None)))
    expected = stepped(theirs, [x] * T, sj_fires)
    with pytest.warns(UserWarning, match="b takes no part"):
        assert_same(own_counts(ts.from_spikingjelly(theirs, T), x), expected)


def test_spikes_into_spikingjelly_and_out(sj: Any) -> None:
    theirs = dyadic(nn.Sequential(sj.layer.Conv2d(2, 6, 3), sj.IFNode(v_reset=None), nn.Flatten(), nn.Linear(96, 4)))
    x = te.SpikeTrain.from_dense(torch.rand(T, 5, 2, 6, 6).lt(0.4).float())
    expected = stepped(theirs, x.to_dense(torch.float32), sj_fires)
    ours = ts.from_spikingjelly(theirs, T, mode="events")
    assert_same(own_counts(ours, x), expected)
    assert_same(expected, stepped(ts.to_spikingjelly(ours, x), x.to_dense(torch.float32), sj_fires))


@pytest.mark.parametrize(("family", "name", "options", "layers", "tolerance"), [
    ("spiking_resnet", "spiking_resnet18", {}, 17, 1e-2), ("sew_resnet", "sew_resnet18", {"cnf": "ADD"}, 20, 2e-2),
    ("spiking_vgg", "spiking_vgg11_bn", {}, 10, 2e-2),
])  # fmt: skip
def test_spikingjellys_own_models(family: str, name: str, options: Any, layers: int, tolerance: float, sj: Any) -> None:
    """They ask their layers for the step mode."""
    models = pytest.importorskip(f"spikingjelly.activation_based.model.{family}")
    theirs = getattr(models, name)(**options, num_classes=5, spiking_neuron=sj.IFNode, v_reset=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
    x = torch.rand(2, 3, 32, 32)
    expected, answer = stepped(theirs, [x] * 4, sj_fires)
    counts, other = own_counts(ts.from_spikingjelly(theirs, 4), x)
    assert len(counts) == len(expected) == layers
    for c, d in zip(counts, expected, strict=True):
        assert (c != d).float().mean() < tolerance / 10
    torch.testing.assert_close(other, answer, atol=tolerance, rtol=tolerance)


def test_spikingjellys_products_of_spikes_are_refused(sj: Any) -> None:
    models = pytest.importorskip("spikingjelly.activation_based.model.sew_resnet")
    theirs = models.sew_resnet18(cnf="IAND", num_classes=5, spiking_neuron=sj.IFNode, v_reset=None)
    with pytest.raises(CannotConvert, match=r"'rsub' .*adds a constant at every step"):
        ts.from_spikingjelly(theirs, 4)


def test_shortcuts_that_are_worth_something(sj: Any) -> None:
    """Gains, thresholds per channel: in the weights, so that there are only layers and neurons, and the way back."""
    x = images(100)
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 6, 3, padding=1, gain=0.5, threshold=0.5),
        tnn.Residual(tnn.Conv2d(6, 6, 3, padding=1, v_init=0.25, gain=2.0)),
        tnn.Residual(
            tnn.Conv2d(6, 8, 3, 2, 1, threshold=torch.tensor([0.5, 1.0] * 4), gain="threshold"), tnn.Conv2d(6, 8, 1, 2)
        ),
        tnn.AvgPool2d(2, spiking=False),
        tnn.Flatten(),
        tnn.Readout(32, 5),
    )
    expected = own_counts(dyadic(net), x)
    theirs = ts.to_spikingjelly(net, x)
    assert_same(expected, stepped(theirs, [x] * T, sj_fires))
    sj.functional.reset_net(theirs)
    assert_same(expected, own_counts(ts.from_spikingjelly(theirs, T), x))


def test_what_spikingjelly_has_and_we_have_not_is_named(sj: Any) -> None:
    def chain(*modules: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3), *modules)

    def plain() -> nn.Module:
        return sj.IFNode(v_reset=None)

    twice = plain()
    for net, message in (
        (chain(sj.IFNode()), r"module '1': SpikingJelly's IFNode with the hard reset v_reset=0.0.*v_reset=None"),
        (chain(sj.EIFNode()), "module '1': SpikingJelly's EIFNode is not supported: use IFNode"),
        (chain(sj.layer.SynapseFilter()), "module '1': SpikingJelly's SynapseFilter is not supported: use IFNode"),
        (chain(nn.ReLU()), "module '1', ReLU.*a ReLU: only networks of spiking neurons"),
        (chain(nn.Sigmoid(), plain()), "not supported"),
        (chain(twice, nn.Linear(3, 3), twice), "module '1': its neurons are used twice"),
        (chain(plain(), nn.Linear(3, 3), nn.Softmax(1)), "module '3', Softmax.*do not add up over the steps"),
        (chain(nn.Softmax(1), plain()), "module '1', Softmax.*not supported: one time step may have"),
        (Offset(plain), "node 'add'.*adds a constant at every step"),
    ):
        with pytest.raises(CannotConvert, match=message):
            ts.from_spikingjelly(net, T)
    net = nn.Sequential(tnn.Encoder(T), tnn.Linear(4, 3, v_init=torch.tensor([0.0, 0.25, 0.5])), tnn.Readout(3, 2))
    with pytest.raises(CannotLower, match="n1: an initial potential"):
        ts.to_spikingjelly(net, torch.rand(1, 4))
    for layer in (tnn.Linear(4, 3, gate="resu"), tnn.Dropout()):
        with pytest.raises(CannotLower, match=r"resu|Readout"):
            ts.to_spikingjelly(nn.Sequential(tnn.Encoder(T), layer), torch.rand(1, 4))


def test_nirtorch_runs_the_primitives_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path, neurons="primitives")
    networks.assert_same(own_counts(net, x), counts_of(*by_nirtorch(path), x))


SIMULATORS = {
    "SpikingJelly": (by_spikingjelly, min),  # its import resets to 0
    "snnTorch": (by_snntorch, min),  # leaks a tenth
    "sinabs": (lambda path, **options: by_sinabs(path, len(images()), **options), max),  # fires several times a step
}


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_runs_the_file_to_the_same_counts(name: str, tmp_path: Path) -> None:
    """With its neurons put right; as its import makes them, the counts are others."""
    run, least = SIMULATORS[name]
    net, x = network(), images()
    path, ours = file_of(net, x, tmp_path), own_counts(net, x)
    networks.assert_same(ours, counts_of(*run(path), x))
    assert least(differing(ours[0], counts_of(*run(path, soft=False), x)[0])) > 0.01


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_has_the_same_counts_where_potentials_equal_the_threshold(name: str, tmp_path: Path) -> None:
    net, x = meeting(network()), images()
    networks.assert_same(own_counts(net, x), counts_of(*SIMULATORS[name][0](file_of(net, x, tmp_path)), x))
