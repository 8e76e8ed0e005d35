"""Currents between layers: what is written with them trains as the ANN, and freezes with the same bits."""

import resource
from functools import partial

import child
import numpy as np
import pytest
import torch
from networks import Net, at_the_counts, check_frozen, trained, with_own_T
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.instruction import INPUT, Instruction
from tandem_snn.frozen.stages import Stage, Stages


class PreActivation(nn.Module):
    def __init__(self, channels, timing):
        super().__init__()
        self.fire = nn.ModuleList(tnn.Neurons(channels, norm=True, timing=timing) for _ in range(2))
        options = {"padding": 1, "bias": False, "neurons": False, "timing": timing}
        self.conv = nn.ModuleList(tnn.Conv2d(channels, channels, 3, **options) for _ in range(2))

    def forward(self, x):
        for fire, conv in zip(self.fire, self.conv, strict=True):
            x = x + conv(fire(x))
        return x


class InvertedBottleneck(nn.Module):
    def __init__(self, channels, timing):
        super().__init__()
        options = {"norm": True, "timing": timing}
        self.expand = tnn.Conv2d(channels, 3 * channels, 1, **options)
        self.depthwise = tnn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, **options)
        self.project = tnn.Conv2d(3 * channels, channels, 1, neurons=False, **options)

    def forward(self, x):
        return x + self.project(self.depthwise(self.expand(x)))


class Dense(nn.Module):
    def __init__(self, channels, timing):
        super().__init__()
        self.fire = tnn.Neurons(channels, norm=True, timing=timing)
        self.conv = tnn.Conv2d(channels, 8, 3, padding=1, neurons=False, timing=timing)
        self.again = tnn.Neurons(channels + 8, norm=True, timing=timing, v_init=torch.rand(channels + 8))
        self.last = tnn.Conv2d(channels + 8, channels, 1, neurons=False, timing=timing, weight_bits=4)

    def forward(self, x):
        return self.last(self.again(te.cat([x, self.conv(self.fire(x))], 1))) * 0.5


class Both(nn.Module):
    """Spikes and currents in a sum, averages of currents, a product of currents as a residual."""

    def __init__(self, channels, timing):
        super().__init__()
        self.fire = tnn.Neurons(channels, timing=timing, threshold=torch.rand(channels) + 0.5)
        self.conv = tnn.Conv2d(channels, channels, 3, padding=1, timing=timing)
        self.average = tnn.AvgPool2d(3, 1, 1, spiking=False)
        self.shortcut = tnn.Conv2d(channels, channels, 1, neurons=False, timing=timing, norm=True)

    def forward(self, x):
        spikes = self.fire(x)
        return self.conv(spikes, self.shortcut(self.average(x))) + (spikes + x)


class Joined(nn.Module):
    """Spikes and currents side by side, and constants."""

    def __init__(self, channels, timing):
        super().__init__()
        self.fire = tnn.Neurons(channels, timing=timing)
        self.conv = tnn.Conv2d(3 * channels, channels, 1, neurons=False, timing=timing)

    def forward(self, x):
        spikes = self.fire(x)
        return self.conv(te.cat([spikes, x, tnn.currents_of(spikes)], 1)) + 0.25


class Differences(nn.Module):
    """Differences of currents, spikes and constants, in both orders."""

    def __init__(self, channels, timing):
        super().__init__()
        self.fire = tnn.Neurons(channels, timing=timing)
        self.conv = tnn.Conv2d(channels, channels, 1, neurons=False, timing=timing)

    def forward(self, x):
        spikes = self.fire(x)
        u = 2 * self.conv(spikes) - spikes
        return -(-x - (spikes - u)) - 0.5 + (1 - u)


class Scaled(nn.Module):
    """Currents times numbers and a learned factor."""

    def __init__(self, channels, timing):
        super().__init__()
        self.fire = tnn.Neurons(channels, timing=timing)
        self.conv = tnn.Conv2d(channels, channels, 1, neurons=False, timing=timing)
        self.factor = nn.Parameter(torch.rand(()))

    def forward(self, x):
        u = self.conv(self.fire(x))
        return x + self.factor * u / 2 + u * torch.tensor(0.25) + x / self.factor.exp()


class Placed(nn.Module):
    """Constants of each place, of each channel and of each feature, and answers with some."""

    def __init__(self, timing):
        super().__init__()
        self.first, self.fire = tnn.Conv2d(3, 8, 3, padding=1, neurons=False, timing=timing), tnn.Neurons(timing=timing)
        shapes = (9, 7), (1, 8, 1, 1), (8, 9, 7), (5, 9, 7), (8, 1, 1)
        self.constant = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.encoder, self.readout = tnn.Encoder(6), tnn.ReadoutConv2d(8, 5, 1)

    def forward(self, x):
        first, second, third, last, factor = self.constant
        u = second + (first + self.first(self.encoder(x)) + third)
        return self.readout(self.fire(factor * u)) + last


BLOCKS = [PreActivation, InvertedBottleneck, Dense, Both, Joined, Differences, Scaled]


def network(block, timing, channels=16, T=6, inputs=3):
    return nn.Sequential(
        tnn.Encoder(T), tnn.Conv2d(inputs, channels, 3, padding=1, norm=True, neurons=False, timing=timing),
        block(channels, timing), block(channels, timing), tnn.Neurons(channels, norm=True, timing=timing),
        tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(channels, 5),
    )  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_currents_freeze(block, timing, tmp_path):
    net, x = network(block, timing), torch.rand(4, 3, 9, 7)
    frozen = check_frozen(trained(net, x), x, tmp_path, timing)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(frozen(x[:1]), frozen(x[:1]))
    torch.set_num_threads(1)


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_are_the_ann_s_at_the_counts(block, timing):
    net = network(block, timing).double()
    x, target = torch.rand(4, 3, 9, 7, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    net.train()
    for _ in range(2):
        net(x)
    for layer in net.modules():
        if isinstance(layer, tnn.SpikingLayer):
            layer.gate = "relu"  # as the twin's
    answers = net(x), at_the_counts(net, x)
    torch.testing.assert_close(*answers)
    parameters = [p for name, p in net.named_parameters() if not name.endswith("last.weight")]
    torch.testing.assert_close(*(torch.autograd.grad((y * target).sum(), parameters) for y in answers))


def test_constants_of_places(timing, tmp_path):
    net, x = Placed(timing), torch.rand(4, 3, 9, 7)
    check_frozen(trained(net, x), x, tmp_path, timing, x)
    net.zero_grad()
    net(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.constant)
    torch.testing.assert_close(ts.to_ann(net)(x).std(), net(x).std(), rtol=0.2, atol=0)


def test_few_bits(timing, tmp_path):
    net, x = network(InvertedBottleneck, timing), torch.rand(4, 3, 9, 7)
    frozen = ts.freeze(trained(net, x), weight_bits=8)
    assert torch.equal(frozen(x), frozen.net(x))
    frozen.save(tmp_path / "net.tandem")
    assert torch.equal(ts.load(tmp_path / "net.tandem")(x), frozen(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", BLOCKS)
def test_half_types(block, dtype, timing, tmp_path):
    net, x = network(block, timing), torch.rand(4, 3, 9, 7)
    check_frozen(trained(net, x).to(dtype), x.to(dtype), tmp_path, timing)
    for training in (False, True):
        answer = net.train(training)(x.to(dtype))
        assert answer.dtype == dtype
        answer.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_means_do_not_depend_on_gradients(dtype, timing):
    layers = tnn.Conv2d(3, 16, 3, neurons=False, timing=timing), tnn.Neurons(timing=timing)
    net = nn.Sequential(tnn.Encoder(3), *layers, tnn.AdaptiveAvgPool2d(1), tnn.Flatten()).to(dtype).eval()
    x = torch.rand(2, 3, 8, 8).to(dtype)
    with torch.no_grad():
        expected = net(x)
    assert net(x).dtype == expected.dtype == dtype
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("move", ["upsample", "largest", "join"])
def test_a_residual_has_the_gains_of_what_moved(move, dtype, timing, tmp_path):
    """In the type of the network: their quotients by a default threshold round in it."""
    one, two = (tnn.Conv2d(3, 8, 3, padding=1, timing=timing, threshold=torch.rand(8) + 0.1) for _ in range(2))
    moves = {"upsample": tnn.Upsample(scale_factor=2), "largest": tnn.AdaptiveMaxPool2d(5), "join": nn.Identity()}
    joined = Net(lambda net, x: te.cat([net.one(x), net.two(x)], 1), one=one, two=two)
    channels, moved = (16, joined) if move == "join" else (8, one)
    body = tnn.Conv2d(channels, channels, 3, padding=1, timing=timing)
    layers = moved, moves[move], tnn.Residual(body), tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(channels, 4)
    x = torch.randn(64, 3, 8, 7).to(dtype)
    check_frozen(nn.Sequential(tnn.Encoder(9), *layers).eval().to(dtype), x, tmp_path, timing, example=x)


def test_events(timing, tmp_path):
    net = network(PreActivation, timing, inputs=2)
    net[0] = tnn.Encoder(6, mode="events")
    x = te.SpikeTrain.from_dense((torch.rand(6, 4, 2, 9, 7) < 0.3).float())
    frozen = ts.freeze(trained(net, x))
    assert torch.equal(frozen(x), net(x))
    if timing == "window":
        assert torch.equal(frozen.settle(x)[0], net(x))


def test_answers_for_each_pixel(timing, tmp_path):
    down = tnn.Conv2d(3, 16, 3, padding=1, norm=True, timing=timing)
    net = nn.Sequential(tnn.Encoder(6), down, tnn.ReadoutConv2d(16, 5, 3, padding=1))
    x = torch.rand(4, 3, 9, 7)
    frozen = check_frozen(trained(net, x), x, tmp_path, timing)
    assert frozen(x).shape == (4, 5, 9, 7)


def halved(u, constant):
    v = torch.sub(torch.add(u, constant), torch.mul(0.25, torch.add(constant, u)))
    return torch.div(torch.sub(constant, v), 0.5)


@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_convolutions_of_currents_have_thresholds_of_channels(groups, timing, tmp_path):
    options = {"timing": timing, "threshold": torch.rand(24) + 0.5, "groups": groups}
    up = tnn.Upsample(scale_factor=2, mode="bilinear"), tnn.ConvTranspose2d(16, 24, 3, stride=2, padding=1, **options)
    net = nn.Sequential(
        tnn.Encoder(6), tnn.Conv2d(3, 16, 3, padding=1, timing=timing), *up, tnn.ReadoutConv2d(24, 4, 1)
    )
    x = torch.randn(3, 3, 8, 8)
    check_frozen(net.eval(), x, tmp_path, timing, x)


@pytest.mark.kernels
def test_torchs_functions_are_operators(tmp_path):
    layer, fire = tnn.Linear(6, 5, neurons=False, timing="window"), tnn.Neurons(timing="window")
    net = Net(lambda m, x: m.readout(m.fire(halved(m.layer(m.encoder(x)), m.constant))), encoder=tnn.Encoder(4))
    net.layer, net.fire, net.readout, net.constant = layer, fire, tnn.Readout(5, 2), nn.Parameter(torch.rand(5))
    x = torch.rand(3, 6)
    u = net.layer(net.encoder(x))
    assert torch.equal(halved(u, net.constant).total, halved(u.total, net.constant))
    check_frozen(net.eval(), x, tmp_path, "window", x)


def test_errors():
    u = tnn.Linear(4, 4, neurons=False)(te.ConstantInput(torch.rand(2, 4), 3))
    with pytest.raises(ValueError, match="T: the trains of a sum have different numbers of steps"):
        u + te.SpikeTrain.from_dense(torch.ones(5, 2, 4))
    v = 1 - u
    torch.testing.assert_close(v.steps(0, 3).expand(3, 2, 4).sum(0), v.total.detach())
    for wrong in (lambda: u + "1", lambda: u - "1", lambda: "1" - u):
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong()
    for wrong in (lambda: torch.add(u, u, alpha=2), lambda: torch.div(u, 2, rounding_mode="floor")):
        with pytest.raises(TypeError, match=r"expected two operands alone: write it with"):
            wrong()
    with pytest.raises(TypeError, match="torch's div takes no Currents"):
        torch.div(u, u)
    train = te.SpikeTrain.from_dense(torch.ones(5, 2, 4))
    for wrong in (lambda: -train, lambda: 2 * train):
        with pytest.raises(TypeError, match="the value of a spike is its gain"):
            wrong()
    with pytest.raises(TypeError, match="spikes are 0 and 1, and cannot be added"):
        train - train
    for wrong in (lambda: u * torch.tensor(1j), lambda: u + torch.ones(4, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="a real constant, got torch"):
            wrong()
    for wrong in (lambda: u * u, lambda: np.ones(4) * u, lambda: u * 1j):
        with pytest.raises(TypeError, match=r"\*: currents are multiplied by a number or a tensor, got"):
            wrong()
    for constant in (torch.ones(2, 4), torch.ones(1, 1, 4), torch.ones(3)):
        with pytest.raises(ValueError, match=r"\+: expected currents or a constant that broadcasts with a sample"):
            u + constant
    with pytest.raises(ValueError, match=r"x has 4 features .*, but weight"):
        tnn.Linear(5, 4)(u)
    with pytest.raises(ValueError, match=r"\+: expected currents of one shape, got \[2, 4\] and \[2, 1\]"):
        u + tnn.Linear(4, 1, neurons=False)(te.ConstantInput(torch.rand(2, 4), 3))
    with pytest.raises(ValueError, match="x: expected 5 channels, got shape"):
        tnn.Neurons(5)(u)
    with pytest.raises(ValueError, match="weight_bits: a setting of synapses"):
        tnn.Neurons(4, weight_bits=4)
    with pytest.raises(ValueError, match="size: expected either a size or a scale_factor"):
        tnn.Upsample()
    with pytest.raises(ValueError, match="channels: batch norm needs their number"):
        tnn.Neurons(norm=True)
    mixed = nn.Sequential(
        tnn.Encoder(4), tnn.Linear(4, 4, neurons=False), tnn.Neurons(4, timing="window"), tnn.Readout(4, 2)
    )
    with pytest.raises(ValueError, match='"window", but it reads currents with timing "step"'):
        ts.freeze(mixed).save("none")


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("example", [False, True])
def test_vectors_are_joined_by_a_negative_dimension_too(dim, example, timing, tmp_path):
    def forward(m, x):
        x = m.encoder(x)
        return m.readout(m.both(te.cat([m.first(x), m.second(x)], dim)))

    options = {"timing": timing}
    first, second = tnn.Linear(6, 24, **options), tnn.Linear(6, 17, norm=True, **options)
    both, readout = tnn.Linear(41, 16, **options), tnn.Readout(16, 3)
    net = Net(forward, encoder=tnn.Encoder(5), first=first, second=second, both=both, readout=readout).eval()
    x = torch.rand(3, 6)
    check_frozen(net, x, tmp_path, timing, x if example else None)


def test_images_with_one_learned_threshold_a_layer_are_joined(timing, tmp_path):
    thresholds = [nn.Parameter(torch.tensor(t)) for t in (0.4, 0.7, 0.4)]
    first, second, last = (
        tnn.Conv2d(channels, outputs, 3, padding=1, threshold=threshold, norm=True, timing=timing)
        for (channels, outputs), threshold in zip([(3, 16), (3, 24), (40, 8)], thresholds, strict=True)
    )
    both = lambda m, x: te.cat([m.first(x), m.second(x)], 1)  # noqa: E731
    net = nn.Sequential(tnn.Encoder(5), Net(both, first=first, second=second), last, tnn.Flatten(), tnn.Readout(504, 3))
    x = torch.rand(4, 3, 9, 7)
    net(x).square().sum().backward()
    assert all(threshold.grad.abs() > 0 for threshold in thresholds)
    check_frozen(net.eval(), x, tmp_path, timing)


def test_images_are_joined_by_a_negative_dimension_too(timing, tmp_path):
    options = {"padding": 1, "timing": timing}
    layers = {"first": tnn.Conv2d(3, 16, 3, **options), "second": tnn.Conv2d(3, 24, 3, **options)}
    last = tnn.Conv2d(40, 8, 3, timing=timing)
    both = lambda m, x: te.cat([m.first(x), m.second(x)], -3)  # noqa: E731
    net = nn.Sequential(
        tnn.Encoder(5), Net(both, **layers), last, tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(8, 3)
    ).eval()
    check_frozen(net, torch.rand(2, 3, 9, 7), tmp_path, timing)


@pytest.mark.parametrize("dim", [2, -1])
def test_images_are_joined_side_by_side(dim, timing, tmp_path):
    def forward(m, x):
        x = m.first(x)
        return m.last(te.cat([x, m.pool(x)], dim))

    def net(**options):
        layers = {"first": tnn.Conv2d(3, 16, 3, padding=1, timing=timing, **options), "pool": tnn.MaxPool2d(3, 1, 1)}
        wide = Net(forward, **layers, last=tnn.Conv2d(16, 8, 3, timing=timing))
        ends = tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(8, 3)
        return nn.Sequential(tnn.Encoder(5), wide, *ends).eval()

    x = torch.rand(2, 3, 9, 7)
    check_frozen(net(), x, tmp_path, timing, x)
    with pytest.raises(ValueError, match="'cat' cannot be saved: it depends on the size of the input"):
        ts.freeze(net()).save(tmp_path / "none")
    gains = ts.freeze(net(threshold=torch.rand(16) + 0.5), example=x)
    assert str(gains.why_slow) == f"cat: it joins trains along dimension {dim} whose gains differ along another one"


@pytest.mark.parametrize(("forward", "reason"), [
    (lambda m, x: m.readout(m.conv(m.encoder(x))).mean(2), "it uses 'mean' of an answer or means"),
    (lambda m, x: m.readout(m.conv(m.encoder(x.abs()))), "it uses 'abs' of the input"),
    (lambda m, x: m.readout(m.conv(m.encoder(x)).map(torch.sin)), "it uses 'map' of currents"),
])  # fmt: skip
def test_what_is_no_layer_is_named(forward, reason):
    conv = tnn.Conv2d(3, 8, 3, neurons=False, timing="window")
    net = Net(forward, encoder=tnn.Encoder(4), conv=conv, readout=tnn.ReadoutConv2d(8, 2, 1))
    with pytest.warns(UserWarning, match=rf"net: its forward is more than layers of tandem_snn.nn .*\({reason}\)"):
        ts.freeze(net.eval(), example=torch.rand(2, 3, 6, 6))


class Fired(nn.Module):
    """Neurons, a residual block of spikes, and currents again."""

    def __init__(self, channels, timing):
        super().__init__()
        options = {"timing": timing, "norm": True}
        body = nn.Sequential(*(tnn.Conv2d(channels, channels, 3, padding=1, groups=4, **options) for _ in range(2)))
        last = tnn.Conv2d(channels, channels, 3, padding="same", neurons=False, timing=timing)
        self.layers = nn.Sequential(tnn.Neurons(channels, timing=timing), tnn.Residual(body), last)

    def forward(self, x):
        return self.layers(x)


class Pooled(nn.Module):
    def __init__(self, channels, timing):
        super().__init__()
        self.pool = tnn.MaxPool2d(3, 2, 1) if timing == "window" else tnn.AvgPool2d(3, 2, 1, spiking=False)

    def forward(self, x):
        return self.pool(x) * 1.5


def random_network(seed):
    torch.manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), ()))]

    timing, channels, T = pick("step", "window"), pick(16, 24, 32), pick(1, 3, 4, 8, 9, 17)
    bits, size = pick(None, None, 8, 4), (pick(7, 8, 14), pick(7, 9, 16))
    options = {"norm": pick(True, False), "neurons": False, "timing": timing}
    blocks = [pick(*BLOCKS, Fired, Pooled)(channels, timing) for _ in range(pick(1, 2, 3))]
    end = [tnn.ReadoutConv2d(channels, 3, pick(1, 3), padding=1)]
    if pick(True, False):
        end = [tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(channels, 5)]
    net = nn.Sequential(
        tnn.Encoder(T, mode=pick("direct", "zero_expand")), tnn.Conv2d(3, channels, 3, padding=1, **options), *blocks,
        tnn.Neurons(channels, norm=True, timing=timing), *end,
    )  # fmt: skip
    for layer in net.modules():
        if isinstance(layer, (tnn.SpikingLayer, tnn.Readout)) and not isinstance(layer, tnn.Neurons):
            layer.weight_bits = bits
    with_own_T(net, (pick(1, 2, 4, 8, 16, 32, 255, 1 + seed % 255) for _ in net.modules()))
    return net, torch.rand(pick(1, 2, 5), 3, *size), timing


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 1000), marks=pytest.mark.slow)], ids=len)
def test_random_networks(seeds, tmp_path):
    for seed in seeds:
        net, x, timing = random_network(seed)
        if len(x) == 1:
            net.eval()
        check_frozen(trained(net, x.repeat(2, 1, 1, 1)), x, tmp_path, timing)


def test_another_size_is_lowered_anew_or_refused(tmp_path):
    """Layers that move features have an index for one size."""
    layers = tnn.Upsample(scale_factor=2), tnn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
    net = nn.Sequential(tnn.Encoder(4), tnn.Conv2d(1, 3, 3), *layers, tnn.ReadoutConv2d(3, 2, 1)).eval()
    frozen = ts.freeze(net, example=torch.rand(2, 1, 6, 6))
    for size in (6, 8, 5, 6):
        x = torch.rand(2, 1, size, size)
        assert torch.equal(frozen(x), net(x))
        assert frozen.why_slow is None
    frozen.save(tmp_path / "net.tandem")
    loaded = ts.load(tmp_path / "net.tandem")
    assert torch.equal(loaded(x), net(x))
    for call in (loaded, loaded.step, loaded.settle):
        with pytest.raises(
            ValueError, match=r"x: expected samples of shape \[1, 6, 6\], for which the network was made"
        ):
            call(torch.rand(2, 1, 9, 9))


MEANS = tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(8, 5)
SIZED = {
    "reflected": ((3, 6, 8), lambda: (tnn.Encoder(4), conv(3, padding=1, padding_mode="reflect"), *MEANS)),
    "enlarged": ((8, 6, 8), lambda: (tnn.Encoder(4), conv(8), tnn.Upsample(scale_factor=2), conv(8), *MEANS)),
    "normalised pixels": ((3, 6, 8), lambda: (tnn.Encoder(4, "pixels", mean=0.4), conv(3, padding=1), *MEANS)),
    "constants of rows": ((3, 6, 8), lambda: (tnn.Encoder(4), conv(3, neurons=False), Shifted(4, 1), FIRE, *MEANS)),
    "tokens": ((6, 8), lambda: (tnn.Encoder(4), tnn.Linear(8, 4, timing="window"), tnn.Readout(4, 5))),
}
FIRE = tnn.Neurons(timing="window")


def conv(channels, size=3, **options):
    return tnn.Conv2d(channels, 8, size, timing="window", **options)


class Shifted(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.constant = nn.Parameter(torch.rand(shape))

    def forward(self, u):
        return u + self.constant


@pytest.mark.kernels
@pytest.mark.parametrize("name", SIZED)
def test_as_many_features_of_another_shape(name, tmp_path):
    (*channels, height, width), make = SIZED[name]
    net, path = nn.Sequential(*make()).eval(), tmp_path / "net.tandem"
    shapes = [(*channels, width, height), (*channels, height * 2, width // 2), (2, *channels, height // 2, width)]
    kind = torch.uint8 if net[0].mode == "pixels" else torch.float32
    inputs = [(torch.rand(2, *shape) * 255).to(kind) for shape in ((*channels, height, width), *shapes)]
    frozen = ts.freeze(net, example=inputs[0])
    frozen.save(path)
    loaded = ts.load(path)
    assert torch.equal(loaded(inputs[0]), net(inputs[0]))
    for x in inputs[1:]:
        for call in (loaded, loaded.settle, partial(ts.to_onnx, loaded, path)):
            with pytest.raises(ValueError, match="x: expected samples of shape"):
                call(x)


def test_a_sample_that_is_not_a_number_spoils_itself(timing):
    net = nn.Sequential(
        tnn.Encoder(12), tnn.Linear(3, 4, timing=timing), tnn.Linear(4, 4, neurons=False, timing=timing),
        tnn.Neurons(4, timing=timing), tnn.Readout(4, 2),
    ).eval()  # fmt: skip
    x = torch.rand(3, 3)
    expected = net(x)
    x[1, 0] = torch.nan
    for each in (net, ts.freeze(net)):
        assert each(x)[1].isnan().all()
        assert torch.equal(each(x)[[0, 2]], expected[[0, 2]])


def test_without_gradients_currents_have_none():
    layer, x = tnn.Linear(3, 4, neurons=False), te.SpikeTrain.from_dense(torch.ones(4, 2, 3))
    with torch.no_grad():
        u = layer(x)
    assert not tnn.Neurons()(u).counts.requires_grad
    assert tnn.Neurons()(layer(x)).counts.requires_grad


def test_hostile_streams():
    """Currents of steps in a stream whose neurons follow, and samples without features."""
    of_steps = Stage("sum", Instruction("sum", INPUT, outputs=1, timing="step"))
    counts = Stage("count", Instruction("popcount", INPUT))
    layer = Stage("layer", Instruction("layer", 1, timing="window"), weight=torch.ones(1, 1))
    readout = Stage("readout", Instruction("readout", 2), weight=torch.ones(1, 1))
    frozen = ts.freeze(Stages([of_steps, counts, layer, readout], "events", None), T=200)
    x = te.SpikeTrain.from_dense(torch.ones(200, 2, 1))
    with pytest.raises(ValueError, match="timing: a network runs step by step if all"):
        frozen.settle(x)
    moved = [Stage("sum", Instruction("sum", INPUT, outputs=1)), Stage("flat", Instruction("flatten", 0))]
    mean = Stage("mean", Instruction("adaptive_mean", INPUT, kernel=(1, 1)))
    empty = ts.freeze(Stages([*moved, mean], "events", None), T=3)
    assert empty(te.SpikeTrain.from_dense(torch.ones(3, 2, 1, 0, 5))).isnan().all()


@pytest.mark.parametrize("bits", [None, 4])
def test_readouts_of_currents(bits, tmp_path):
    options = {"timing": "window", "norm": True}
    pixels = nn.Sequential(
        tnn.Encoder(6), tnn.Conv2d(3, 16, 3, **options), tnn.Conv2d(16, 8, 3, neurons=False, **options),
        tnn.ReadoutConv2d(8, 5, 3, weight_bits=bits),
    )  # fmt: skip
    rows = nn.Sequential(*pixels[:3], tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(8, 5, weight_bits=bits))
    x = torch.rand(4, 3, 9, 7)
    for net in (pixels, rows):
        check_frozen(trained(net, x), x, tmp_path, "window")
        assert ts.measure.synops(net, x).snn > 0
    for layer in net[1:3]:
        layer.timing = "step"
    with pytest.warns(UserWarning, match="a readout of the currents of steps"):
        slow = ts.freeze(net)
    assert torch.equal(slow(x), net(x))


@pytest.mark.parametrize("block", BLOCKS)
def test_currents_of_steps_are_made_in_pieces_of_eight(block, tmp_path):
    x = torch.rand(2, 3, 9, 7)
    for T, mode in zip((7, 8, 9, 100), ("direct", "zero_expand", "zero_expand", "direct"), strict=True):
        net = network(block, "step", T=T)
        net[0] = tnn.Encoder(T, mode)
        check_frozen(trained(net, x), x, tmp_path, "step")


def peak(T):
    """How much the memory of the process grows in a call, in bytes."""
    net = network(PreActivation, "step", T=T).eval()
    frozen, x = ts.freeze(net), torch.rand(1, 3, 64, 64)
    frozen(x[..., :16, :16])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frozen(x)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_memory_of_a_call_does_not_grow_with_the_number_of_steps():
    short, long = (float(child.run("-c", f"import test_currents; print(test_currents.peak({T}))")) for T in (16, 256))
    assert long < short + 8 * 2**20  # one current of 256 steps is 64 MiB


@pytest.mark.parametrize("pool", [tnn.MaxPool2d(3, 2, 1), tnn.AdaptiveMaxPool2d(3)])
def test_maxima_of_the_currents_of_steps_run_layer_by_layer(pool):
    net = nn.Sequential(
        tnn.Encoder(9, mode="zero_expand"), tnn.Conv2d(3, 8, 3), tnn.Conv2d(8, 8, 3, neurons=False), pool,
        tnn.Neurons(8), tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(8, 3),
    ).eval()  # fmt: skip
    x = torch.rand(2, 3, 12, 11)
    with pytest.warns(
        UserWarning, match="'?3'?: the maximum of the currents of steps is the growth of the largest sum"
    ):
        frozen = ts.freeze(net, example=x)
    assert torch.equal(frozen(x), net(x))
