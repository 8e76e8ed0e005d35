"""NIR: an exported network comes back as the same network, and what has no counterpart is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extras import needs
from networks import assert_same, differing, dyadic, images, network, own_counts
from nir_simulators import T, by_nirtorch, by_sinabs, counts_of, file_of
from test_convert import Block
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import calibrate, convert, freeze, from_nir, to_nir
from tandem_snn.errors import UserError
from tandem_snn.frozen.stages import CannotLower

nir = needs("nir")


def pooled() -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 8, 3, padding=1, leak=0.75),
        tnn.AvgPool2d(2),
        tnn.Residual(nn.Sequential(tnn.Conv2d(8, 4, 3, padding=1), tnn.Conv2d(4, 8, 1, v_init=0.0))),
        tnn.Residual(
            tnn.Conv2d(8, 6, 3, 2, 1, threshold=torch.tensor([0.5, 1.0] * 3), gain="threshold"), tnn.Conv2d(8, 6, 1, 2)
        ),
        tnn.AvgPool2d(2, spiking=False),
        tnn.Flatten(),
        tnn.Readout(6, 3),
    )
    return dyadic(net), torch.randint(0, 16, (4, 1, 8, 8)) / 4


def thirds() -> tuple[nn.Module, Any]:
    pools = tnn.AvgPool2d(3, 2, 1), tnn.AvgPool2d((1, 3))
    return dyadic(
        nn.Sequential(
            tnn.Encoder(T), tnn.Conv2d(1, 8, 3, padding=1), pools[0], tnn.Conv2d(8, 4, 1), pools[1], tnn.Flatten(),
            tnn.Readout(16, 3),
        )
    ), torch.randint(0, 16, (4, 1, 8, 8)) / 4  # fmt: skip


def line() -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        tnn.Conv1d(2, 6, 3, dilation=2, padding="same"),
        tnn.Conv1d(6, 6, 5, stride=2, groups=2, threshold=torch.tensor([0.5, 1.0, 2.0, 1.0, 0.25, 4.0])),
        tnn.Flatten(),
        tnn.Readout(6 * 4, 3),
    )
    return dyadic(net), te.SpikeTrain.from_dense(torch.rand(T, 4, 2, 12).lt(0.4).float())


def wide() -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 4, (1, 5), padding=(0, 2), dilation=(1, 2)),
        tnn.Conv2d(4, 3, (5, 3), stride=2, padding=1),
        tnn.Flatten(),
        tnn.Readout(18, 3),
    )
    return dyadic(net), torch.randint(0, 16, (4, 1, 8, 8)) / 16


def vector(mode: str = "direct", steps: int = T) -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        tnn.Encoder(steps, mode), tnn.Flatten(), tnn.Linear(16, 12), tnn.Linear(12, 9), tnn.Readout(9, 3)
    )
    return dyadic(net), torch.randint(0, 16, (4, 1, 4, 4)) / (16 if mode == "direct" else 2)


def powers_of_two(*shape: int) -> Tensor:
    return 2.0 ** torch.randint(-2, 2, shape)


def converted(pool: nn.Module) -> tuple[nn.Module, Any]:
    """An ANN with residual blocks, whose layers have thresholds of their own."""
    stem = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    blocks = Block(8, 8, 1), Block(8, 12, 2), nn.AvgPool2d(2), Block(12, 12, 1)
    ann = nn.Sequential(*stem, *blocks, pool, nn.Flatten(), nn.Linear(12, 5))
    net = convert(dyadic(ann), T, timing="step", v_init=0.0)
    for layer in net.modules():
        if isinstance(layer, tnn.SpikingLayer):
            layer.threshold = powers_of_two() / 8
    return net, torch.randint(0, 16, (4, 1, 8, 8)) / 8


def image_pools() -> tuple[nn.Module, Any]:
    """Pooling of what is real-valued: the image before and after its encoder, and means of means."""
    net = nn.Sequential(
        tnn.AdaptiveAvgPool2d(8),
        tnn.Encoder(T, gain=0.5),
        tnn.AvgPool2d(2),
        tnn.Conv2d(1, 6, 3, padding=1, threshold=0.5, gain="threshold"),
        tnn.AvgPool2d(2, spiking=False),
        tnn.AdaptiveAvgPool2d(1),
        tnn.Flatten(),
        tnn.Readout(6, 4),
        tnn.Readout(4, 3),
    )
    return dyadic(net), torch.randint(0, 16, (4, 1, 16, 16)) / 8


def events() -> tuple[nn.Module, Any]:
    """Spikes at once into an average, a shortcut, and a projection with thresholds per channel."""
    body = tnn.Conv2d(2, 2, 3, padding=1, threshold=powers_of_two(2), gain=2.0)
    grown = nn.Sequential(tnn.Conv2d(2, 4, 3, padding=1, gain=0.25), tnn.Conv2d(4, 4, 1, threshold=powers_of_two(4)))
    net = nn.Sequential(
        tnn.Encoder(T, "events"),
        tnn.AvgPool2d(2),
        tnn.Residual(body),
        tnn.Residual(grown, nn.Sequential(tnn.Conv2d(2, 3, 1, gain=4.0), tnn.Conv2d(3, 4, 1))),
        tnn.Flatten(),
        tnn.Residual(tnn.Linear(64, 64, threshold=powers_of_two(64), gain=0.5)),
        tnn.Readout(64, 3),
    )
    return dyadic(net), te.SpikeTrain.from_dense(torch.rand(T, 4, 2, 8, 8).lt(0.5).float())


def few_bits() -> tuple[nn.Module, Any]:
    """Rounded weights, largest 7/64 in every row."""
    net = create(tnn, "FC12", (1, 4, 4), 3, T, norm=False, weight_bits=4)
    for layer in dyadic(net).modules():
        if isinstance(layer, (tnn.Linear, tnn.Readout)):
            layer.weight.data = torch.randint(-12, 13, layer.weight.shape) / 128
            layer.weight.data[:, 0] = 7 / 64
    return net, torch.randint(0, 16, (4, 1, 4, 4)) / 4


class Named(nn.Module):
    """Its layers have the names that nodes would have."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.first = tnn.Encoder(T), tnn.Linear(8, 8, gain=0.5)
        self.second_shortcut, self.second = tnn.Linear(8, 8), tnn.Linear(8, 8, threshold=powers_of_two(8))
        self.second_neurons, self.readout = tnn.Linear(8, 8), tnn.Readout(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.encoder(x))
        x = self.second(x, self.second_shortcut(x, fire=False))
        return self.readout(self.second_neurons(x))


TO_AND_FRO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "digits": lambda: (network(), images()), "pooled": pooled, "thirds": thirds, "line": line, "wide": wide,
    "vector": vector,
    "zero_expand": lambda: vector("zero_expand"), "a long window": lambda: vector(steps=256),
    "named": lambda: (dyadic(Named()), torch.randint(0, 16, (4, 8)) / 4),
    "converted, mean pooling": lambda: converted(nn.AvgPool2d(2)),
    "converted, adaptive pooling": lambda: converted(nn.AdaptiveAvgPool2d(1)), "image_pools": image_pools,
    "events": events, "few_bits": few_bits,
    "no neurons": lambda: (dyadic(nn.Sequential(tnn.Encoder(T, gain=0.5), tnn.Readout(4, 3))), torch.ones(2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("form", ["IF", "primitives"])
@pytest.mark.parametrize("name", TO_AND_FRO)
def test_every_network_comes_back_and_again(name: str, form: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net, x = TO_AND_FRO[name]()
    ours = own_counts(net, x)
    # A file has its nodes in another order, and so the counts of paths side by side.
    given = to_nir(net, x, neurons=form) if name == "events" else file_of(net, x, tmp_path, neurons=form)
    back = from_nir(given).eval()
    assert_same(ours, own_counts(back, x))
    assert_same(ours, own_counts(from_nir(to_nir(back, x, neurons=form)), x))


READERS = {
    "ours": lambda path, x: own_counts(from_nir(path), x),
    "nirtorch": lambda path, x: counts_of(*by_nirtorch(path), x),
}


@pytest.mark.parametrize("reader", ["ours", pytest.param("nirtorch", marks=pytest.mark.clients)])
def test_an_initial_potential_and_batch_norm_by_primitives(reader: str, tmp_path: Path) -> None:
    """A converted ANN: gains, thresholds, batch norm and v_init, all folded; not dyadic, so nearly always equal."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    x = images()
    ann = nn.Sequential(*layers).train()
    with torch.no_grad():
        for _ in range(20):
            ann(x)
    net = calibrate(convert(ann.eval(), T, timing="step"), [x])
    with pytest.raises(CannotLower, match="primitives"):
        to_nir(net, x)
    path = file_of(freeze(net), x, tmp_path, neurons="primitives")
    ours, model = own_counts(net, x), READERS[reader](path, x)
    assert differing(ours[0], model[0])[0] < 1e-4
    torch.testing.assert_close(model[1], ours[1], atol=0.2, rtol=1e-3)


def test_averages_of_thirds_are_sums(tmp_path: Path) -> None:
    """1/9 would be rounded; sums are exact in every simulator that knows them."""
    net, x = thirds()
    graph = to_nir(net, x)
    assert type(graph.nodes["n2"]).__name__ == type(graph.nodes["n4"]).__name__ == "SumPool2d"
    assert np.unique(graph.nodes["n2_neurons"].v_threshold) == 9
    assert [type(m).__name__ for m in from_nir(graph).children()].count("AvgPool2d") == 2
    net = dyadic(
        nn.Sequential(
            tnn.Encoder(T),
            tnn.Conv2d(1, 8, 3),
            tnn.AvgPool2d(3),
            tnn.Conv2d(8, 4, 1),
            tnn.Flatten(),
            tnn.Readout(16, 3),
        )
    )
    ours = own_counts(net, x)
    assert_same(ours, counts_of(*by_nirtorch(file_of(net, x, tmp_path, neurons="primitives")), x))
    assert_same(ours, counts_of(*by_sinabs(file_of(net, x, tmp_path), len(x)), x))


@pytest.mark.parametrize("dt", [2**-10, 0.3])  # the inverse of the second is rounded
@pytest.mark.parametrize("form", ["IF", "primitives"])
def test_another_dt(form: str, dt: float) -> None:
    torch.manual_seed(2)
    net, x = pooled()
    graph = to_nir(net, x, neurons=form, dt=dt)
    integrators = [node for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert {r for node in integrators for r in np.unique(node.r)} <= {np.float32(1 / dt)}
    assert_same(own_counts(net, x), own_counts(from_nir(graph), x))


def test_the_reset_is_not_guessed(tmp_path: Path) -> None:
    net, x = vector()
    graph = to_nir(net, x)
    for node in graph.nodes.values():
        node.metadata = {}
    with pytest.raises(ValueError, match=r"'n2_neurons': IF resets to v_reset.*reset=\"subtract\""):
        from_nir(graph)
    assert_same(own_counts(net, x), own_counts(from_nir(graph, reset="subtract"), x))
    nir.write(tmp_path / "old.nir", graph)
    of_version(tmp_path / "old.nir", "1.0.4")
    assert_same(own_counts(net, x), own_counts(from_nir(tmp_path / "old.nir"), x))


@pytest.mark.parametrize("shape", [(3, 4, 4), (6,)])
def test_lif_of_other_tools_leaks_its_reset(shape: tuple[int, ...], tmp_path: Path) -> None:
    """NIR's formula: v ← v + dt/τ·(r·I - v), a spike if v ≥ ϑ, then v ← v - ϑ."""
    torch.manual_seed(0)
    weight = (
        torch.randint(-8, 17, (6, 6)) / 16 if len(shape) == 1 else torch.randint(-8, 17, (3, 2, 3, 3)) / 16
    ).numpy()
    bias = np.full(shape[0], 0.25, np.float32)
    first = nir.Affine(weight, bias) if len(shape) == 1 else nir.Conv2d((4, 4), weight, 1, 1, 1, 1, bias)
    half, one = np.full(shape, 0.5, np.float32), np.ones(shape, np.float32)
    lif = nir.LIF(tau=2 * one, r=2 * one, v_leak=0 * one, v_threshold=half, v_reset=0 * one)
    size = {"input": np.array(shape if len(shape) == 1 else (2, 4, 4))}
    nodes = {"input": nir.Input(size), "first": first, "lif": lif, "output": nir.Output({"output": np.array(shape)})}
    edges = [("input", "first"), ("first", "lif"), ("lif", "output")]
    graph = nir.NIRGraph(nodes, edges, metadata={"T": T, "input": "events"})
    x = te.SpikeTrain.from_dense((torch.rand(T, 5, *size["input"]) < 0.5).float())
    with pytest.raises(ValueError, match=r"'lif': LIF resets to v_reset.*reset=\"subtract\""):
        from_nir(graph)
    nir.write(tmp_path / "old.nir", graph)
    of_version(tmp_path / "old.nir", "1.0.4")
    v, spikes, given = torch.zeros(5, *shape), [], (torch.from_numpy(weight), torch.from_numpy(bias))
    for step in x.to_dense():
        current = (
            nn.functional.linear(step, *given) if len(shape) == 1 else nn.functional.conv2d(step, *given, padding=1)
        )
        v = v / 2 + current
        spikes.append((v >= 0.5).float())
        v = v - 0.5 * spikes[-1]
    for net in (from_nir(graph, reset="subtract"), from_nir(tmp_path / "old.nir")):
        assert torch.equal(net(x).to_dense(), torch.stack(spikes))


def of_version(path: Path, version: str) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        del file["version"]
        file["version"] = version


def narrowed(values: Tensor) -> Tensor:
    half = values.bfloat16()  # which NumPy does not have
    return half if torch.equal(half.float(), values) else values.double()


@pytest.mark.parametrize("kind", [Tensor.clone, nn.Parameter, narrowed])
def test_graphs_in_memory_may_have_tensors(kind: Callable[[Tensor], Tensor]) -> None:
    net, x = pooled()
    graph = to_nir(net, x)
    for node in graph.nodes.values():
        for name, value in vars(node).items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32:
                setattr(node, name, kind(torch.from_numpy(value)))
    assert_same(own_counts(net, x), own_counts(from_nir(graph), x))


def test_the_gain_of_the_example_is_not_part_of_the_graph() -> None:
    torch.manual_seed(1)
    net, x = line()
    halves = x.replace(gain=0.5)
    for given in (x, halves):
        back = from_nir(to_nir(net, given))
        assert_same(own_counts(net, x), own_counts(back, x))
        assert_same(own_counts(net, halves), own_counts(back, halves))


def test_means_of_the_input_alone_are_named() -> None:
    means = nn.Sequential(tnn.Encoder(T), tnn.AvgPool2d(2, spiking=False), tnn.Flatten(), tnn.Readout(4, 2))
    with pytest.raises(CannotLower, match="nothing in the network spikes"):
        to_nir(means, torch.rand(1, 1, 4, 4))


def test_a_scale_before_an_affine_map_is_that_of_its_columns() -> None:
    torch.manual_seed(7)
    net, x = network(), images()[:20]
    graph, factors = to_nir(net, x), powers_of_two(12, 3, 3)
    graph.nodes["factors"] = nir.Scale(factors.numpy())
    graph.edges = [("factors", "n4") if edge == ("n2_neurons", "n4") else edge for edge in graph.edges]
    graph.edges.append(("n2_neurons", "factors"))
    net[5].weight.data *= factors.flatten()
    assert_same(own_counts(net, x), own_counts(from_nir(graph), x))


def test_what_has_no_counterpart_is_named(tmp_path: Path) -> None:
    x = torch.rand(1, 1, 8, 8)

    conv, flat = tnn.Conv2d(1, 2, 3, padding=1), tnn.Flatten()
    for layers, message in (
        ([conv, tnn.MaxPool2d(2), flat, tnn.Readout(32, 2)], "n2: NIR has no MaxP"),
        ([tnn.Conv2d(1, 2, 2, padding="same"), flat, tnn.Readout(128, 2)], "both"),
        ([conv], "Readout"),
        (
            [tnn.Conv2d(1, 2, (1, 2)), flat, tnn.Readout(112, 2)],
            "n1: nir 1.0.8 infers a wrong shape for .* 1x2",
        ),
    ):
        with pytest.raises(CannotLower, match=message):
            to_nir(nn.Sequential(tnn.Encoder(4), *layers), x)
    net, x = vector()
    for keywords in ({"neurons": "LIF"}, {"dt": 0.0}):
        with pytest.raises(ValueError, match=next(iter(keywords))):
            to_nir(net, x, **keywords)

    graph = to_nir(net, x)
    with pytest.raises(ValueError, match="reset"):
        from_nir(graph, reset="zero")
    graph.nodes["n3"] = nir.Delay(np.array([1.0]))
    with pytest.raises(ValueError, match="'n3'"):
        from_nir(graph)
    graph = to_nir(net, x)
    graph.nodes["n3_neurons"].v_threshold[0] = 2.0
    assert from_nir(graph).n3_neurons.threshold.tolist()[:2] == [2.0, 1.0]
    graph.metadata = {}
    with pytest.raises(ValueError, match="T: give"):
        from_nir(graph)
    with pytest.raises(UserError, match="no file"):
        from_nir(tmp_path / "none.nir")
    (tmp_path / "bad.nir").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a NIR file"):
        from_nir(tmp_path / "bad.nir")
