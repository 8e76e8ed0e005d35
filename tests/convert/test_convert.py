"""convert, calibrate and to_ann: an ANN and its spiking twin share Parameters, units and gradients."""

import copy
import importlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import Net, settled, trained
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tandem_ext as te
import tandem_snn.nn as tnn
from architectures import create
from tandem_snn import ann, calibrate, convert, freeze, to_ann

calibration = importlib.import_module("tandem_snn.convert.calibrate")  # the name in the package is the function


def functional():
    """Everything as functions and methods, with what surrounds the network: a standardised input, a log-softmax."""

    def forward(m, x):
        x = F.relu(F.max_pool2d(m.conv1(x - m.mean), 2))  # pooled before the ReLU, with which maximum commutes
        x = torch.relu(m.conv2(x)).contiguous()
        y = m.bn2(m.conv4(m.relu(m.bn1(m.conv3(x)))))
        y += x
        x = F.avg_pool2d(m.relu(y), (2, 2), stride=2)
        x = F.dropout(x, 0.1, m.training)
        x = x.view(x.size(0), -1)
        return F.log_softmax(m.fc2(m.bn(m.fc1(m.skip(x))).relu()), dim=1)

    layers = {"conv1": nn.Conv2d(2, 6, 3, padding=1), "conv2": nn.Conv2d(6, 8, 3, groups=2), "skip": nn.Identity()}
    block = {"conv3": nn.Conv2d(8, 8, 3, 1, 1, bias=False), "conv4": nn.Conv2d(8, 8, 3, padding="same")}
    norms = {"bn1": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(8), "bn": nn.BatchNorm1d(20)}
    net = Net(
        forward, **layers, **block, **norms, relu=nn.ReLU(inplace=True), fc1=nn.Linear(8 * 9, 20), fc2=nn.Linear(20, 5)
    )
    net.register_buffer("mean", torch.tensor(0.3))
    return net, torch.rand(6, 2, 16, 16)


class OwnLinear(nn.Linear):
    pass


def products():
    """Products as functions of Parameters, and a class of the user's own."""

    def forward(m, x):
        x = F.relu(m.bn(F.conv2d(x, m.kernel, m.offset, stride=2, padding=1)))
        return m.fc2(F.relu(m.fc1(x.flatten(1))))

    net = Net(forward, bn=nn.BatchNorm2d(6), fc1=OwnLinear(96, 8), fc2=OwnLinear(8, 4))
    net.kernel, net.offset = nn.Parameter(torch.randn(6, 2, 3, 3) / 3), nn.Parameter(torch.zeros(6))
    return net, torch.rand(6, 2, 8, 8)


NETWORKS = {
    "functional": functional, "products": products,
    "sequential": lambda: (nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), nn.MaxPool2d(2, ceil_mode=True),
        nn.Dropout(0.2), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(108, 10),
    ), torch.rand(6, 1, 18, 18)),
    "line": lambda: (nn.Sequential(
        nn.Conv1d(2, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(84, 8), nn.ReLU(), nn.Linear(8, 3),
    ), torch.rand(6, 2, 32)),
    "a module called twice": lambda: (Net(
        lambda m, x: m.b(torch.relu(m.a(torch.relu(m.a(x))))), a=nn.Linear(4, 4), b=nn.Linear(4, 2),
    ), torch.rand(3, 4)),
    "layers of tandem_snn.ann": lambda: (create(ann, "8C3-16C3s2-FC24", (2, 8, 8), 5), torch.rand(6, 2, 8, 8)),
    "resnet": lambda: (pytest.importorskip("torchvision.models").resnet18(num_classes=10), torch.rand(3, 3, 32, 32)),
}  # fmt: skip


def strided():
    net, x = NETWORKS["resnet"]()
    net.maxpool = nn.Identity()  # the OR of spike trains is more than the largest of their counts, at any T
    return net, x


def test_calibration_sets_thresholds_from_activations():
    net, x = NETWORKS["sequential"]()
    settled(net, x)
    snn = convert(net, T=8, v_init=0.25)
    assert calibrate(snn, [(x, None), (x, None)], percentile=100) is snn
    largest = torch.relu(net[0](x)).amax((0, 2, 3))
    first = snn.get_submodule("0.0")
    assert torch.equal(first.threshold, largest / 8)
    torch.testing.assert_close(first.v_init, 0.25 * first.threshold)
    again = copy.deepcopy(snn)
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again(x), snn(x))
    calibrate(snn, [x], percentile=50)
    assert (first.threshold < largest / 8).all()
    calibrate(snn, [x])
    assert (first.threshold <= largest / 8).all()
    one = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3, threshold=0.5), tnn.Linear(3, 3), tnn.Readout(3, 2))
    calibrate(one, [torch.rand(9, 4)])
    assert isinstance(one[1].threshold, float)
    assert one[2].threshold.shape == (3,)


def small():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize("call", [calibrate, lambda snn, data: convert(small(), T=8, data=data)], ids=["later", "now"])
@pytest.mark.parametrize(("data", "error", "message"), [
    ([], ValueError, "data: expected at least one sample, got none"),
    ([torch.rand(0, 4)], ValueError, r"expected at least one sample, (got none|\[B, \*features\], got .*\[0, 4\])"),
    ([{"images": 1}], TypeError, r"data: expected tensors or SpikeTrains.*got dict"),
    (torch.rand(2, 4), TypeError, r"data: expected an iterable of batches, such as \[x\], got a tensor"),
    ([torch.rand(2, 4), torch.full((2, 4), torch.inf)], ValueError, r"in a batch the activations of '0' are infinite"),
])  # fmt: skip
def test_data_that_cannot_be(data, error, message, call):
    with pytest.raises(error, match=message):
        call(convert(small(), T=8), data)


def test_a_layer_s_own_T_is_calibrated():
    net, x = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)), torch.rand(40, 6)
    nn.init.constant_(net[0].bias, 0.5)  # no channel is silent
    snn = convert(net, T=4, data=[x])
    snn.get_submodule("0").T = 16
    calibrate(snn, [x], percentile=100)
    activations = net[:2](x)
    torch.testing.assert_close(snn.get_submodule("0").threshold, activations.amax(0) / 16)
    train = snn.get_submodule("0")(snn.encoder(x))
    assert (train.T, train.network_T, int(train.counts.max())) == (16, 4, 16)
    assert ((train.counts * train.gain - activations).abs() <= 0.5001 * train.gain).all()
    assert torch.equal(freeze(snn)(x), snn.eval()(x))


def test_activations_are_sampled_from_all_places(monkeypatch):
    """Every seventh would be the first column of each image."""
    monkeypatch.setattr(calibration, "_SAMPLE", 600)
    images = torch.arange(7.0).expand(20, 4, 7, 7)
    values = calibration.sample_by_channel(images)
    assert values.shape == (4, 140)
    assert set(values[0].tolist()) == set(range(7))
    assert calibration.sample_by_channel(torch.rand(1, 2000)).shape == (2000, 1)


@pytest.mark.kernels
def test_initial_potentials_follow_the_threshold_of_each_channel():
    layers = [tnn.Conv2d(3, 16, 3, timing="window", v_init=v_init) for v_init in (None, 0.5)]
    layers[0].weight.data *= torch.logspace(-1, 1, 16).view(-1, 1, 1, 1)
    layers[1].load_state_dict(layers[0].state_dict())
    x, answers = torch.rand(8, 3, 8, 8), []
    for layer in layers:
        net = nn.Sequential(tnn.Encoder(8), layer, tnn.AdaptiveAvgPool2d(1)).eval()
        for _ in range(2):
            calibrate(net, [x])
        answers.append(net(x))
        assert torch.equal(layer.initial_potential, layer.threshold / 2)
        assert torch.equal(freeze(net, example=x)(x), net(x))
    assert torch.equal(*answers)


def test_what_cannot_be_calibrated():
    snn = convert(small(), T=8)
    for net, percentile, message in (
        (snn, 0, "percentile"),
        (freeze(snn), None, "net: a frozen network has no ANN twin"),
        (create(tnn, "mlp", (4,), 2, 4, gain=1.0), None, "gain"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(net, [torch.rand(2, 4)], percentile)


@pytest.mark.parametrize(("factor", "worst"), [(1e-2, "'[2-8].0.norm', .* deviation of 0.0032"), (1e2, "'8.0.norm'")])
def test_statistics_that_training_will_not_have_are_named(factor, worst):
    """Initial ones, of an ANN that was never trained. Those of the data, of any batches, are right."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(9)]
    net, x = nn.Sequential(*blocks, nn.Linear(16, 4)).eval(), torch.randn(64, 16)
    for block in blocks:
        block[0].weight.data.mul_(factor)
    with pytest.warns(UserWarning, match=f"9 of 9 batch norms, most of all {worst}"):
        snn = convert(net, T=8, data=[x])
    torch.optim.swa_utils.update_bn([x], net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in [x], x.split(1), x.split(5):
            calibrate(snn, data)


def test_convert_calibrates_on_data():
    """All batches count, also of what can be read once; the first one is the example."""
    net, x = NETWORKS["sequential"]()
    settled(net, x)
    with pytest.warns(UserWarning, match=r"thresholds are not calibrated.*convert\(ann, T, data=batches\)"):
        plain = convert(net, T=8)
    batches = [(x, 0), (2 * x, 1)]
    calibrate(plain, batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(net, T=8, threshold=0.5)
        told = convert(net, T=8, data=iter(batches))
    assert torch.equal(plain(x), told(x))
    first = told.get_submodule("0.0")
    assert torch.equal(first.initial_potential, first.threshold / 2)
    rows = Net(
        lambda m, x: m.b(torch.relu(m.a(x.flatten(2)).view(x.shape[0], 12))), a=nn.Linear(6, 4), b=nn.Linear(12, 2)
    )
    images = torch.rand(5, 3, 2, 3)
    assert convert(rows, T=8, data=[images])(images).shape == (5, 2)


@pytest.mark.parametrize("wrapped", [nn.DataParallel, AveragedModel])
def test_what_wraps_an_ann_is_left_out(wrapped):
    net, x = NETWORKS["sequential"]()
    outer = wrapped(settled(net, x)).eval()  # an average has its own copies
    snn = convert(outer, T=8, data=[x])
    assert torch.equal(snn(x), convert(outer.module, T=8, data=[x])(x))
    assert {id(p) for p in snn.parameters()} == {id(p) for p in outer.parameters()}


def test_calibration_keeps_a_limited_number_of_activations(monkeypatch):
    """A whole training set fits: of what is too much, evenly spaced activations."""
    net, x = NETWORKS["sequential"]()
    settled(net, x)
    batches, kept = [torch.rand(64, 1, 18, 18) for _ in range(12)], list[int]()
    wanted = convert(net, T=8, data=batches)
    least_error = calibration.least_error

    def counting(values, T, start):
        kept.append(values.numel())
        return least_error(values, T, start)

    monkeypatch.setattr(calibration, "_KEPT", 40_000)
    monkeypatch.setattr(calibration, "least_error", counting)
    given = convert(net, T=8, data=batches)
    assert max(kept) <= 40_000
    for name in wanted.meta["ways"]:
        ours, expected = (each.get_submodule(name).threshold for each in (given, wanted))
        assert (ours / expected - 1).abs().median() < 0.05


def test_thresholds_that_cover():
    """Least squared error of what saturates and what is rounded, against a search."""
    a = torch.randn(5, 4000).relu() * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(-1, 1)
    for T, start in (4, 0.5), (8, 0.5), (64, 0.5), (8, 0.0):
        best, error = calibration.covering(a, T, start), []
        for factor in 0.9, 1.0, 1.1:
            unit = (factor * best / T).view(-1, 1)
            error.append(((a / unit + start).floor().clamp(0, T) * unit - a).square().mean())
        assert error[1] < min(error[0], error[2])
        torch.testing.assert_close(best / best[0], torch.arange(1.0, 6.0), atol=0.5, rtol=0.1)
    few = torch.cat([a[:1, :64], torch.zeros(1, 64)])
    assert (calibration.covering(few, 8, 0.5) > 0).all(), "a channel that was silent"
    layer = tnn.Conv2d(2, 5, 3, threshold=torch.ones(5), v_init=torch.full((5,), 0.25))
    calibration.set_threshold(layer, torch.arange(1.0, 6.0))
    torch.testing.assert_close(layer.v_init, 0.25 * torch.arange(1.0, 6.0))


@pytest.mark.parametrize(("mode", "v_init", "rtol"), [("zero_expand", 0.0, 0.2), ("events", 0.5, 0.02)])
def test_every_encoding_approaches_the_ann(mode, v_init, rtol):
    net, x = NETWORKS["line"]()
    settled(net, x)
    given = x
    if mode == "events":
        given = te.SpikeTrain.from_dense(torch.rand(200, *x.shape).lt(0.4).float(), gain=1 / 200)
        x = given.counts / 200
    snn = convert(net, T=200, mode=mode, v_init=v_init)
    assert torch.equal(to_ann(snn)(x), net(x))
    calibrate(snn, [given], percentile=100)
    torch.testing.assert_close(snn(given), net(x), atol=rtol / 2, rtol=rtol)


@pytest.mark.parametrize("given", ["data", "example"])
def test_pixels_are_examples(given):
    """uint8 images, which the spiking network takes, stand for the real numbers that the ANN takes."""
    net, x = NETWORKS["line"]()
    pixels = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    settled(net, pixels / 255)
    snn = convert(net, T=200, mode="pixels", **{given: [pixels] if given == "data" else pixels[:1]}, threshold=0.02)
    assert torch.equal(to_ann(snn)(pixels), net(pixels / 255))
    calibrate(snn, [pixels], percentile=100)
    torch.testing.assert_close(snn(pixels), net(pixels / 255), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("options", [
    {}, {"threshold": 0.5}, {"threshold": torch.rand(16) + 0.5}, {"gain": 0.7}, {"gain": torch.rand(16) + 0.5},
    {"weight_bits": 3},
])  # fmt: skip
def test_the_twin_of_any_spiking_network(options):
    """Activations count as spikes do: ρ(z)/ϑ times the gain; weights of few bits are rounded."""
    bits, x = {key: options[key] - 1 for key in ("weight_bits",) if key in options}, torch.rand(5, 6)
    layers = [tnn.Linear(6, 16, norm=True, **options), tnn.Residual(tnn.Linear(16, 16)), tnn.Dropout(0.5)]
    net = trained(nn.Sequential(tnn.Encoder(T=8), *layers, tnn.Readout(16, 3, **bits)), x)
    twin = to_ann(net)
    threshold = options.get("threshold", tnn.default_threshold(8))
    gain = options.get("gain", threshold)
    a = torch.relu(net[1].norm(F.linear(x, net[1].used_weight(), net[1].bias))) * gain / threshold
    a = torch.relu(F.linear(a, net[2].body.weight, net[2].body.bias) + a)
    torch.testing.assert_close(twin(x), F.linear(a, net[4].used_weight(), net[4].bias))
    assert {id(p) for p in twin.parameters()} == {id(p) for p in net.parameters()}
    assert not any(isinstance(m, tnn.SpikingLayer) for m in twin.modules())
    assert any(isinstance(m, ann.Linear) for m in twin.modules())


class Shuffle(nn.Module):
    """A layer of a user's own, of trains alone."""

    def forward(self, x):
        return x.map(lambda t: t.flip(-1) if t.dim() else t)


def test_the_twin_of_a_layer_that_only_maps_trains():
    """It may be copied, compiled and exported."""
    net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(4, 5), nn.Sequential(Shuffle()), tnn.Readout(5, 3))
    x = torch.rand(2, 4)
    twin = to_ann(net)
    expected = F.linear(torch.relu(F.linear(x, net[1].weight, net[1].bias)).flip(-1), net[3].weight, net[3].bias)
    for same in twin, copy.deepcopy(twin), torch.export.export(twin, (x,)).module():
        torch.testing.assert_close(same(x), expected)
    twin(x).sum().backward()
    assert net[1].weight.grad.any()
    assert not hasattr(x, "map")
    own = nn.Sequential(net[:2], Net(lambda m, x: te.functional.couple(x, x.counts)), net[3])
    with pytest.raises(ValueError, match=r"'1' \(Net\) fails on activations .*: unless it only uses train.map, put"):
        to_ann(own)(x)


def test_a_learned_threshold_gets_both_gradients():
    """ϑ moves the counts and what each is worth; through an open gate the two cancel, for gain·a = ρ(z) whatever ϑ."""
    threshold = nn.Parameter(torch.tensor(0.5))
    layer = tnn.Linear(30, 20, threshold=threshold, v_init=0.4, gate="relu")
    readout = tnn.Readout(20, 1)
    x = te.ConstantInput(torch.rand(4, 30), T=8, gain=1 / 8)
    train = layer(x)
    readout(train).sum().backward()
    closed = layer.preactivation(x) <= 0
    torch.testing.assert_close(threshold.grad, (readout.weight * train.counts * closed).sum(), atol=1e-4, rtol=1e-4)
