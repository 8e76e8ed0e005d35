"""NIR: an exported network comes back as the same network, and what has no counterpart is named."""

import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from between import BETWEEN, converted, separable
from networks import Net, assert_same, differing, dyadic, images, in_windows, network, own_counts
from nir_simulators import T, file_of, simulated
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import calibrate, convert, freeze, from_nir, to_nir
from tandem_snn.frozen.instruction import CannotLower

nir = pytest.importorskip("nir")
CONV, FLAT = tnn.Conv2d(1, 2, 3, padding=1), tnn.Flatten()


def image(unit, *shape):
    return torch.randint(0, 16, shape or (4, 1, 8, 8)) / unit


def encoded(*layers):
    return dyadic(nn.Sequential(tnn.Encoder(T), *layers))


def powers_of_two(*shape):
    return 2.0 ** torch.randint(-2, 2, shape)


def pooled():
    body = nn.Sequential(tnn.Conv2d(8, 4, 3, padding=1), tnn.Conv2d(4, 8, 1, v_init=0.0))
    grown = tnn.Conv2d(8, 6, 3, 2, 1, threshold=torch.tensor([0.5, 1.0] * 3))
    return encoded(
        tnn.Conv2d(1, 8, 3, padding=1, leak=0.75), tnn.AvgPool2d(2), tnn.Residual(body),
        tnn.Residual(grown, tnn.Conv2d(8, 6, 1, 2)), tnn.AvgPool2d(2, spiking=False), tnn.Flatten(), tnn.Readout(6, 3),
    ), image(4)  # fmt: skip


def line():
    threshold = torch.tensor([0.5, 1.0, 2.0, 1.0, 0.25, 4.0])
    grouped = tnn.Conv1d(6, 6, 5, stride=2, groups=2, threshold=threshold)
    layers = tnn.Conv1d(2, 6, 3, dilation=2, padding="same"), grouped, tnn.Flatten(), tnn.Readout(6 * 4, 3)
    return dyadic(nn.Sequential(*layers)), te.SpikeTrain.from_dense(torch.rand(T, 4, 2, 12).lt(0.4).float())


def vector(mode="direct", steps=T):
    layers = tnn.Flatten(), tnn.Linear(16, 12), tnn.Linear(12, 9), tnn.Readout(9, 3)
    return dyadic(nn.Sequential(tnn.Encoder(steps, mode), *layers)), image(16 if mode == "direct" else 2, 4, 1, 4, 4)


def image_pools():
    """Pooling of what is real-valued: the image before and after its encoder, and means of means."""
    conv = tnn.Conv2d(1, 6, 3, padding=1, threshold=0.5)
    means = tnn.AvgPool2d(2, spiking=False), tnn.AdaptiveAvgPool2d(1), tnn.Flatten()
    layers = tnn.AdaptiveAvgPool2d(8), tnn.Encoder(T, gain=0.5), tnn.AvgPool2d(2), conv, *means
    return dyadic(nn.Sequential(*layers, tnn.Readout(6, 4), tnn.Readout(4, 3))), image(8, 4, 1, 16, 16)


def events():
    """Spikes at once into an average, a shortcut, and a projection with thresholds per channel."""
    body = tnn.Conv2d(2, 2, 3, padding=1, threshold=powers_of_two(2), gain=2.0)
    grown = nn.Sequential(tnn.Conv2d(2, 4, 3, padding=1, gain=0.25), tnn.Conv2d(4, 4, 1, threshold=powers_of_two(4)))
    past = nn.Sequential(tnn.Conv2d(2, 3, 1, gain=4.0), tnn.Conv2d(3, 4, 1))
    dense = tnn.Residual(tnn.Linear(64, 64, threshold=powers_of_two(64), gain=0.5)), tnn.Readout(64, 3)
    layers = tnn.AvgPool2d(2), tnn.Residual(body), tnn.Residual(grown, past), tnn.Flatten(), *dense
    net = dyadic(nn.Sequential(tnn.Encoder(T, "events"), *layers))
    return net, te.SpikeTrain.from_dense(torch.rand(T, 4, 2, 8, 8).lt(0.5).float())


def few_bits():
    net = create(tnn, "FC12", (1, 4, 4), 3, T, norm=False, weight_bits=4)
    for layer in dyadic(net).modules():
        if isinstance(layer, (tnn.Linear, tnn.Readout)):
            layer.weight.data = torch.randint(-12, 13, layer.weight.shape) / 128
            layer.weight.data[:, 0] = 7 / 64
    return net, image(4, 4, 1, 4, 4)


def named():
    """Its layers have the names that nodes would have."""

    def forward(m, x):
        x = m.first(m.encoder(x))
        return m.readout(m.second_neurons(m.second(x, m.second_shortcut(x))))

    layers = {"first": tnn.Linear(8, 8, gain=0.5), "second": tnn.Linear(8, 8, threshold=powers_of_two(8))}
    others = {"second_shortcut": tnn.Linear(8, 8), "second_neurons": tnn.Linear(8, 8), "readout": tnn.Readout(8, 3)}
    return dyadic(Net(forward, encoder=tnn.Encoder(T), **layers, **others)), image(4, 4, 8)


def every_other():
    return in_windows(network(), "even"), images()


GENERAL = {f"{name}, {timing}": lambda make=make, timing=timing: converted(make, timing)
           for name, make in BETWEEN.items() for timing in ("step", "window")}  # fmt: skip
NETWORKS = {
    "digits": lambda: (network(), images()), "pooled": pooled, "line": line, "named": named, "events": events,
    "thirds": lambda: (encoded(
        tnn.Conv2d(1, 8, 3, padding=1), tnn.AvgPool2d(3, 2, 1), tnn.Conv2d(8, 4, 1), tnn.AvgPool2d((1, 3)),
        tnn.Flatten(), tnn.Readout(16, 3),
    ), image(4)),
    "wide": lambda: (encoded(
        tnn.Conv2d(1, 4, (1, 5), padding=(0, 2), dilation=(1, 2)), tnn.Conv2d(4, 3, (5, 3), stride=2, padding=1),
        tnn.Flatten(), tnn.Readout(18, 3),
    ), image(16)),
    "vector": vector, "zero_expand": lambda: vector("zero_expand"), "a long one": lambda: vector(steps=256),
    "image_pools": image_pools, "few_bits": few_bits, **GENERAL,
    "no neurons": lambda: (dyadic(nn.Sequential(tnn.Encoder(T, gain=0.5), tnn.Readout(4, 3))), torch.ones(2, 4)),
    "digits, window": lambda: (in_windows(network()), images()), "every other, window": every_other,
    "pooled, window": lambda: (in_windows(pooled()[0]), image(4)),
    "every other of pooled, window": lambda: (in_windows(pooled()[0], "even"), image(4)),
    "events, window": lambda: (in_windows(events()[0]), events()[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_comes_back_and_again(name, tmp_path):
    torch.manual_seed(3)
    net, x = NETWORKS[name]()
    ours = own_counts(net, x)
    in_order = "events" not in name and name not in GENERAL  # a file's nodes, and so the counts of paths, may not be
    graph = file_of(net, x, tmp_path) if in_order else to_nir(net, x, window=True)
    if name in GENERAL and "step" in name:
        assert_same(ours, simulated(graph, x))
    back = from_nir(graph).eval()
    assert_same(ours, own_counts(back, x))
    assert_same(ours, own_counts(from_nir(to_nir(back, x, window=True)), x))


def batch_normalised():
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    ann, x = nn.Sequential(*layers).train(), images()
    with torch.no_grad():
        for _ in range(20):
            ann(x)
    return ann, x


@pytest.mark.parametrize("make", [batch_normalised, lambda: (separable(), torch.rand(8, 1, 8, 8))])
def test_gains_thresholds_and_batch_norm_are_folded(make, tmp_path):
    """Of a converted ANN, which is not dyadic, so that counts are nearly always equal."""
    torch.manual_seed(4)
    ann, x = make()
    net = calibrate(convert(ann.eval(), T, example=x, timing="step"), [x])
    with pytest.raises(CannotLower, match=r"NIR.s neurons start at potential 0: set v_init=0"):
        to_nir(net, x)
    for layer in net.modules():
        if hasattr(layer, "v_init"):
            layer.v_init = 0.0
    path, ours = file_of(freeze(net), x, tmp_path), own_counts(net, x)
    model = own_counts(from_nir(path), x)
    assert max(differing(ours[0], model[0])) < (1e-4 if make is batch_normalised else 0.01)
    torch.testing.assert_close(model[1], ours[1], atol=0.2, rtol=1e-3)


def test_averages_of_thirds_are_sums():
    """1/9 would be rounded; sums are exact in every simulator that knows them."""
    graph = to_nir(*NETWORKS["thirds"]())
    assert type(graph.nodes["n2"]).__name__ == type(graph.nodes["n4"]).__name__ == "SumPool2d"
    assert np.unique(graph.nodes["n2_neurons"].v_threshold) == 9
    assert [type(m).__name__ for m in from_nir(graph).children()].count("AvgPool2d") == 2


@pytest.mark.parametrize("dt", [2**-10, 0.3])  # the inverse of the second is rounded
def test_another_dt_changes_no_spike(dt):
    torch.manual_seed(2)
    net, x = pooled()
    graph = to_nir(net, x, dt=dt)
    integrators = [node for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert {r for node in integrators for r in np.unique(node.r)} <= {np.float32(1 / dt)}
    assert_same(own_counts(net, x), own_counts(from_nir(graph), x))


def test_the_gain_of_the_example_is_not_part_of_the_graph():
    torch.manual_seed(1)
    net, x = line()
    halves = x.replace(gain=0.5)
    for given in (x, halves):
        back = from_nir(to_nir(net, given))
        assert_same(own_counts(net, x), own_counts(back, x))
        assert_same(own_counts(net, halves), own_counts(back, halves))


def test_frozen_networks_pickles_and_answers():
    torch.manual_seed(6)
    net, x = converted(separable, "step")
    back = from_nir(to_nir(freeze(net), x))
    assert torch.equal(pickle.loads(pickle.dumps(back))(x), net(x))
    back.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in back.parameters())


def two(body, after=lambda y: y):
    def forward(m, x):
        return after(F.relu(body(m, F.relu(m.first(x)))).mean([2, 3]))

    net = Net(forward, first=nn.Conv2d(1, 6, 3, padding=1), c=nn.Conv2d(6, 6, 1)).eval()
    return convert(net, T, example=torch.rand(1, 1, 8, 8), v_init=0.0)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: encoded(CONV, tnn.MaxPool2d(2), FLAT, tnn.Readout(32, 2)), "2: NIR has no MaxP"),
    (lambda: encoded(tnn.Conv2d(1, 2, 2, padding="same"), FLAT, tnn.Readout(128, 2)), "both"),
    (lambda: encoded(CONV), "Readout"),
    (lambda: encoded(tnn.Flatten(2), tnn.Conv1d(1, 2, 3), tnn.AvgPool1d(2), FLAT, tnn.Readout(62, 2)),
     "3: NIR pools images alone, no lines"),
    (lambda: encoded(tnn.Conv2d(1, 2, 3), tnn.AdaptiveAvgPool2d(4), FLAT, tnn.Readout(32, 2)), "2: adaptive pooling"),
    (lambda: encoded(tnn.Conv2d(1, 2, (1, 2)), FLAT, tnn.Readout(112, 2)), "1: nir 1.0.8 infers a wrong .* 1x2"),
    (lambda: encoded(tnn.AvgPool2d(2, spiking=False), FLAT, tnn.Readout(16, 2)), "nothing in the network spikes"),
    (lambda: two(lambda m, x: m.c(F.interpolate(m.c(x), scale_factor=2))), "no node that moves the neurons of an im"),
    (lambda: two(lambda m, x: m.c(m.c(F.max_pool2d(x, 2)))), "max_pool2d: NIR has no MaxPool2d: use AvgPool2d or stri"),
    (lambda: two(lambda m, x: m.c(F.pad(m.c(x), [1, 0, 0, 0]))), "NIR has no node that moves the neurons of an image"),
    (lambda: two(lambda m, x: m.c(m.c(x).mean(1, keepdim=True) + x)), "function mean. is not a layer"),
    (lambda: two(lambda m, x: m.c(m.c(x)), lambda y: y.softmax(1)), "function softmax. is not a layer"),
    (lambda: two(lambda m, x: m.c(m.c(x)), lambda y: y * y), "function mul. is not a layer"),
    (lambda: two(lambda m, x: m.c(m.c(x)), lambda y: F.linear(y, y)), "function linear. is not a layer"),
    (lambda: encoded(FLAT, tnn.Linear(64, 2100), tnn.Neurons(2100, norm=True, v_init=0.0), tnn.Readout(2100, 2)),
     "3: NIR has no node for it but one of 4,410,000 weights"),
])  # fmt: skip
def test_what_has_no_counterpart_is_named(make, message):
    with pytest.raises(CannotLower, match=message):
        to_nir(make(), torch.rand(1, 1, 8, 8))


def test_arguments_and_what_readers_are_warned_of():
    net, x = every_other()
    with pytest.warns(UserWarning, match='metadata of timing "window" run other spikes.*window=True'):
        to_nir(freeze(net), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_nir(net, x, window=True)
        to_nir(nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 3), tnn.Readout(3, 2)), torch.rand(1, 4))
    graph = to_nir(net, x, window=True)
    facts = [node.metadata for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert [(one["timing"], "v_init" in one) for one in facts] == [("window", True), ("step", False), ("window", True)]
    assert graph.metadata["timing"] == "window"
    net, x = vector()
    for wrapped in nn.DataParallel(net), torch.compile(net):
        assert list(to_nir(wrapped, x).nodes) == list(to_nir(net, x).nodes)


def test_pixels_are_refused():
    net = nn.Sequential(tnn.Encoder(8, "pixels"), tnn.Linear(4, 3, timing="window"), tnn.Readout(3, 2))
    with pytest.raises(ValueError, match="NIR has no pixels"):
        to_nir(net, torch.zeros(1, 4, dtype=torch.uint8), window=True)
