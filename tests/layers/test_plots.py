"""Pictures in one line: what is drawn is what happened."""

import pytest
import torch

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

pytest.importorskip("matplotlib").use("agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = tnn.Conv2d(1, 4, 3, norm=True), tnn.Flatten(), tnn.Linear(64, 5, norm=True), tnn.Readout(5, 2)
    return torch.nn.Sequential(tnn.Encoder(T=6), *layers).eval()


@pytest.fixture(scope="module")
def monitor(net):
    with ts.measure.Monitor(net, potentials=True) as monitor:
        net(torch.rand(7, 1, 6, 6, generator=torch.Generator().manual_seed(0)))
    return monitor


def points(axes):
    return {tuple(map(int, point)) for drawn in axes.collections for point in drawn.get_offsets()}


def test_a_raster_has_a_mark_for_each_spike():
    spikes = torch.rand(200, 3, 2, 15, generator=torch.Generator().manual_seed(0)) < 0.1
    axes = ts.plots.raster(te.SpikeTrain.from_dense(spikes), sample=1)
    steps, neurons = spikes[:, 1].flatten(1).nonzero(as_tuple=True)
    assert points(axes) == set(zip((steps + 1).tolist(), neurons.tolist(), strict=True))  # steps count from 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time step", "neuron")
    assert axes.get_xticks().tolist() == [1, 50, 100, 150, 200]
    axes = ts.plots.raster(te.SpikeTrain.from_dense(torch.ones(3, 1, 500)), neurons=100)
    assert {neuron for _, neuron in points(axes)} == set(range(0, 500, 5))
    assert axes.get_ylabel() == "neuron, 1 of 5 shown"
    moves = torch.tensor([[1, 0, -1], [0, 1, 1]], dtype=torch.int8).unsqueeze(1)
    rises, falls = ts.plots.raster(moves).collections
    assert rises.get_offsets().tolist() == [[1, 0], [2, 1], [2, 2]]
    assert falls.get_offsets().tolist() == [[1, 2]]


def test_potentials_are_lines_with_their_spikes(monitor):
    axes = ts.plots.potentials(monitor["3"], sample=2, neurons=3)
    layer = monitor["3"]
    lines = axes.get_lines()
    assert len(lines) == 3
    for line, marks in zip(lines, axes.collections, strict=True):
        neuron = int(line.get_label().removeprefix("neuron "))
        assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
        assert line.get_ydata() == pytest.approx(layer.potentials[:, 2, neuron].tolist())
        fired = layer.train.to_dense()[:, 2, neuron].nonzero().flatten() + 1
        assert [x for x, _ in marks.get_offsets()] == fired.tolist()
        assert all(y > line.get_ydata().max() for _, y in marks.get_offsets())
    assert (axes.get_ylabel(), axes.get_xticks().tolist()) == ("membrane potential v", [1, 2, 3, 4, 5, 6])


def test_counts_beside_activations_rates_as_bars_and_given_axes(net, monitor):
    x = torch.rand(9, 1, 6, 6)
    axes = ts.plots.counts_against_activations(net, x, points=20)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["layer 1", "layer 3"]
    assert all(len(drawn.get_offsets()) == 20 for drawn in axes.collections)
    one = ts.plots.counts_against_activations(net, x, layer="3")
    counts, a = (getattr(ts.measure.activations(net, x)[1], name).flatten() for name in ("counts", "a"))
    drawn = sorted((round(float(x), 4), round(float(y))) for x, y in one.collections[0].get_offsets())
    assert drawn == sorted((round(x, 4), int(y)) for x, y in zip(a.relu().tolist(), counts.tolist(), strict=True))
    axes = ts.plots.rates(net, x)
    found = ts.measure.firing_rates(net, x)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 * rate for rate in found.values()])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found)
    given, x = pyplot.subplots(1, 4)[1], torch.rand(2, 1, 6, 6)
    assert ts.plots.raster(monitor["1"], given[0], sample=6) is given[0]
    assert len(points(given[0])) == monitor["1"].counts[6].sum()
    assert ts.plots.potentials(monitor["3"], given[1]) is given[1]
    assert ts.plots.counts_against_activations(net, x, given[2]) is given[2]
    assert ts.plots.rates(net, x, given[3]) is given[3]


def test_what_cannot_be_drawn_is_said(net, monitor):
    with ts.measure.Monitor(net) as without:
        net(torch.rand(2, 1, 6, 6))
    for draw, said in (
        (lambda: ts.plots.raster(torch.ones(3, 1, 2)), "train: expected a SpikeTrain, a Recording or int8 moves, got"),
        (lambda: ts.plots.raster(monitor["1"], sample=9), "9 is out of range"),
        (lambda: ts.plots.raster(monitor["1"], neurons=0), "neurons: expected a positive int, got 0"),
        (lambda: ts.plots.potentials(without["1"]), r"Monitor\(net, potentials=True\)"),
        (lambda: ts.plots.potentials(monitor), "recording: expected that of a layer, such as monitor.*got Monitor"),
        (lambda: ts.plots.potentials(monitor["1"], neurons=0), "neurons: expected a positive int, got 0"),
        (lambda: ts.plots.counts_against_activations(net, torch.rand(2, 1, 6, 6), layer="x"), "expected one of 1, 3"),
        (lambda: ts.plots.rates(torch.nn.Linear(2, 2), torch.rand(1, 2)), "found none"),
    ):
        with pytest.raises((TypeError, ValueError, IndexError), match=said):
            draw()


def test_monitors_and_recordings_are_one_line(net, monitor):
    assert repr(monitor) == "Monitor(left; 1: 7 samples, 3: 7 samples)"
    assert repr(ts.measure.Monitor(net, "1")) == "Monitor(left; nothing recorded of 1)"
    assert repr(monitor["3"]).startswith("Recording(7 samples, T=6, neurons [5], firing rate ")
    assert repr(monitor["3"]).endswith(" %, with potentials)")
    assert "\n" not in repr(monitor["3"])
