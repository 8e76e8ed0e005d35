"""Pixels are counts: the first layer reads them exactly, in the ANN's units."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_ext.rule import fixed_point
from tandem_snn import ann

NORMALISATIONS = [{}, {"gain": 2.0, "std": 0.5}, {"mean": 0.3, "std": 0.5}, {"std": [0.2, 0.3, 0.25]},
                  {"mean": [0.4, 0.5, 0.3], "std": [0.2, 0.3, 0.25]}]  # fmt: skip


def conv(m, **given):
    layers = m.MaxPool2d(2), m.Conv2d(3, 16, (5, 3), 2, padding=2, timing="window"), m.AdaptiveAvgPool2d((3, 1))
    return nn.Sequential(m.Encoder(8, "pixels", **given), *layers, m.Flatten(), m.Readout(48, 10))


def padded(m, **given):
    layers = m.Conv2d(3, 8, 3, padding="same", norm=True, timing="window"), m.Flatten(), m.Readout(8 * 120, 10)
    return nn.Sequential(m.Encoder(8, "pixels", **given), *layers)


def mlp(m, **given):
    layers = m.Flatten(), m.Linear(360, 20, norm=True, timing="window"), m.Readout(20, 10)
    return nn.Sequential(m.Encoder(8, "pixels", **given), *layers)


def pair(make, given):
    """A network, its twin with the same parameters, and images."""
    net, twin = make(tnn, **given), make(ann, **given)
    x = torch.randint(0, 256, (5, 3, 12, 10), dtype=torch.uint8)
    for _ in range(2):
        net.train()(x)
    twin.load_state_dict(net.state_dict())
    return net.eval(), twin.eval(), x


@pytest.mark.parametrize("given", NORMALISATIONS)
@pytest.mark.parametrize("make", [conv, padded, mlp])
def test_the_first_layer_has_the_currents_of_the_normalised_image(make, given):
    net, twin, x = pair(make, given)
    at = next(n for n, layer in enumerate(net) if isinstance(layer, tnn.SpikingLayer))
    image = (x.float() / 255).movedim(1, -1)
    image = (
        given.get("gain", 1.0) * (image - torch.tensor(given.get("mean", 0.0))) / torch.tensor(given.get("std", 1.0))
    )
    torch.testing.assert_close(twin[0](x), image.movedim(-1, 1))
    layer = net[at]
    layer.neurons = False
    current = layer(net[:at](x)).total
    torch.testing.assert_close(current, layer.preactivation(twin[:at](x)), rtol=1e-5, atol=2e-5)
    layer.neurons = True
    train = net[: at + 1](x)
    assert (train.T, train.network_T) == (8, 8)
    expected = (current / train.gain + 0.5).floor().clamp(0, 8)
    assert (train.counts != expected).double().mean() < 0.01
    assert torch.equal(ts.to_ann(net).eval()(x), twin(x))


@pytest.mark.kernels
@pytest.mark.parametrize("given", NORMALISATIONS)
@pytest.mark.parametrize("make", [conv, padded, mlp])
@pytest.mark.parametrize("bits", [None, 4])
@torch.no_grad()
def test_frozen_networks_files_and_streams_have_the_same_logits(make, given, bits, tmp_path):
    net, _, x = pair(make, given)
    frozen = ts.freeze(net, weight_bits=bits, example=x)
    expected = frozen.net(x)
    assert frozen.why_slow is None
    assert bits is not None or torch.equal(expected, net(x))
    frozen.save(tmp_path / "net.tandem")
    for one in (frozen, ts.load(tmp_path / "net.tandem")):
        assert torch.equal(one(x), expected)
        assert torch.equal(one(x.contiguous(memory_format=torch.channels_last)), expected)
        assert torch.equal(torch.cat([one(image) for image in x.split(1)]), expected)
        assert torch.equal(one.settle(x)[0], expected)
        assert torch.equal(one.settle(x.flip(0))[0], expected.flip(0))


@pytest.mark.kernels
def test_the_mean_of_a_padded_image_is_exact():
    """It is a constant of each place, summed in float64 from a mean of 22 bits and rounded once."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    layer = tnn.Conv2d(3, 4, 3, padding=1, timing="window", neurons=False, bias=False)
    x = torch.randint(0, 256, (2, 3, 6, 7), dtype=torch.uint8)
    gain = 1 / (255 * torch.tensor(std, dtype=torch.float64)).view(-1, 1, 1)
    weight = fixed_point((layer.weight.detach() * gain).float())
    offset = (-255 * torch.tensor(mean, dtype=torch.float64) * 2**15).round() / 2**15  # below 2^7
    constant = F.conv2d(offset.view(1, 3, 1, 1).expand(1, 3, 6, 7), weight, padding=1)
    exact = F.conv2d(x.double(), weight, padding=1).float() + constant.float()
    assert torch.equal(layer(tnn.Encoder(4, "pixels", mean=mean, std=std)(x)).total, exact)


def test_gradients_are_the_ann_s_at_the_pixels():
    net, twin, x = pair(padded, NORMALISATIONS[-1])
    z, other = net[1].train().preactivation(twin[0](x)), twin[1].train()
    train = net[1](net[0](x))
    weights = torch.randn_like(train.counts)
    (train.counts * train.gain * weights).sum().backward()
    pre = other.norm(F.conv2d(twin[0](x), other.weight, other.bias, padding="same"))
    (pre * weights * ((z > 0) & (z < train.gain * 8))).sum().backward()
    scale = other.weight.grad.abs().max()
    torch.testing.assert_close(net[1].weight.grad / scale, other.weight.grad / scale, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: tnn.Encoder(8, mean=0.5), ValueError, "mean: only mode"),
    (lambda: tnn.Encoder(4, "events", gain=3.0), ValueError, "gain: trains have their own, expected 1 with mode"),
    (lambda: ts.ann.Encoder(4, "events", gain=3.0), ValueError, "gain: trains have their own, expected 1 with mode"),
    (lambda: tnn.Encoder(8, "pixels", std=0.0), ValueError, "std: .*positive"),
    (lambda: tnn.Encoder(8, "pixels")(torch.rand(2, 3)), TypeError, "pixels are uint8"),
    (lambda: tnn.Encoder(8, "pixels", mean=[0.1, 0.2])(torch.zeros(2, 3, dtype=torch.uint8)), ValueError,
     r"x: expected 2 channels, each with a mean or std, got shape \[3\]"),
    (lambda: tnn.Linear(3, 2)(tnn.Encoder(8, "pixels")(torch.zeros(2, 3, dtype=torch.uint8))), ValueError, "step"),
    (lambda: tnn.Encoder(8, "pixels")(te.SpikeTrain.from_counts(torch.ones(1, 2), T=8)), TypeError, "events"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def normalised(*layers, make=nn.Sequential):
    """A network of pixels with a mean, and one of the same layers that reads the normalised image."""
    pixels = tnn.Encoder(8, "pixels", mean=[0.5, 0.125, 0.875], std=0.25)
    return make(pixels, *layers), make(tnn.Encoder(8), *layers)


def image(x):
    return (x.double() / 255 - torch.tensor([0.5, 0.125, 0.875], dtype=torch.float64).view(3, 1, 1)) / 0.25


MOVED = {
    "reflected": [tnn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", timing="window")],
    "upsampled": [tnn.Upsample(scale_factor=2), tnn.Conv2d(3, 8, 3, timing="window")],
    "turned": [tnn.Permute([0, 1, 3, 2]), tnn.Conv2d(3, 8, 3, timing="window")],
    "transposed": [tnn.ConvTranspose2d(3, 8, 2, stride=2, timing="window")],
    "tokens": [tnn.Permute([0, 2, 3, 1]), tnn.Linear(3, 8, timing="window")],
}


@pytest.mark.kernels
@pytest.mark.parametrize("layers", MOVED.values(), ids=MOVED)
def test_a_mean_goes_with_pixels_that_move(layers):
    x = torch.randint(256, (2, 3, 8, 6), dtype=torch.uint8)
    net, expected = normalised(*layers)
    counts = net(x).counts
    near = counts != expected(image(x).float()).counts  # within rounding of a threshold
    assert near.float().mean() < 0.01
    assert counts.unique().numel() > 2
    net.extend([tnn.Flatten(), tnn.Readout(counts[0].numel(), 5)]).eval()
    frozen = ts.freeze(net, example=x)
    assert "one call" in repr(frozen)
    assert torch.equal(frozen(x), net(x))


class Paths(nn.Module):
    """Pixels with a mean where others have spikes: joined with spikes and with pixels, and as a residual."""

    def __init__(self):
        super().__init__()
        self.encoder = tnn.Encoder(8, "pixels", mean=[0.5, 0.125, 0.875], std=0.25)
        self.other = tnn.Encoder(8, "pixels")
        self.first = tnn.Conv2d(3, 5, 3, padding=1, timing="window")
        self.second = tnn.Conv2d(11, 6, 3, padding=1, timing="window")
        self.shortcut = tnn.Conv2d(6, 3, 1, timing="window")
        self.readout = nn.Sequential(tnn.Flatten(), tnn.Readout(3 * 48, 5))

    def forward(self, x):
        x, plain = self.encoder(x), self.other(x)
        y = self.second(te.cat([x, self.first(x), plain], 1))
        return self.readout(self.shortcut(y, residual=x))


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [None, 8])
def test_pixels_with_a_mean_are_joined_and_added_like_spikes(bits):
    net, x = Paths().eval(), torch.randint(256, (3, 3, 8, 6), dtype=torch.uint8)
    if bits is None:
        train, plain = net.encoder(x), net.other(x)
        joined = te.cat([train, net.first(train), plain], 1)
        expected = [image(x), net.first(train).counts * net.first(train).gain, x.double() / 255]
        u = F.conv2d(torch.cat(expected, 1), net.second.weight.double(), net.second.bias.double(), padding=1)
        net.second.neurons = False
        torch.testing.assert_close(net.second(joined).total, u.float(), rtol=1e-5, atol=2e-5)
        net.second.neurons = True
        torch.testing.assert_close(net.shortcut.preactivation(net.second(joined), train),
                                   net.shortcut.preactivation(net.second(joined)) + image(x).float())  # fmt: skip
    frozen = ts.freeze(net, weight_bits=bits, example=x)
    assert "one call" in repr(frozen)
    assert torch.equal(frozen(x), frozen.net(x))
    assert torch.equal(frozen.settle(x)[0], frozen(x))


@pytest.mark.kernels
@pytest.mark.parametrize("layers", [
    [tnn.Flatten(), tnn.Readout(144, 5)],
    [tnn.Conv2d(3, 8, 3, padding=1, neurons=False, timing="window"), tnn.Neurons(8, norm=True, timing="window"),
     tnn.Flatten(), tnn.Readout(384, 5)],
    [tnn.Conv2d(3, 8, 2, stride=2, neurons=False, timing="window"), tnn.Neurons(timing="window"), tnn.Flatten(),
     tnn.Readout(96, 5)],
    [tnn.Conv2d(3, 9, 3, padding=1, groups=3, timing="window"), tnn.Flatten(), tnn.Readout(432, 5)],
    [tnn.AvgPool2d(3, 2, 1, timing="window"), tnn.Flatten(), tnn.Linear(36, 8, timing="window"), tnn.Readout(8, 5)],
    [tnn.Neurons(timing="window"), tnn.Flatten(), tnn.Readout(144, 5)],
])  # fmt: skip
def test_what_else_reads_a_mean(layers):
    net, direct = normalised(*layers)
    x = torch.randint(256, (4, 3, 8, 6), dtype=torch.uint8)
    net.eval()
    if len(layers) == 2:
        torch.testing.assert_close(net(x), direct(image(x).float()), rtol=1e-5, atol=1e-5)
    frozen = ts.freeze(net, example=x)
    with torch.no_grad():
        assert torch.equal(frozen(x), net(x))
    assert torch.equal(frozen(x), net(x))
    assert frozen.why_slow is None


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_networks_of_pixels_compile(backend, dynamic):
    net, _, x = pair(conv, NORMALISATIONS[-1])
    for mode in False, True:
        torch._dynamo.reset()
        copy = deepcopy(net.train(mode))
        torch.testing.assert_close(torch.compile(net, backend=backend, fullgraph=True, dynamic=dynamic)(x), copy(x))


def test_trains_of_one_batch_have_one_offset():
    encoder = tnn.Encoder(8, "pixels", mean=0.5)
    a, b = (encoder(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)) for _ in range(2))
    assert te.cat([a, a]).offset is a.offset
    with pytest.raises(ValueError, match="signals: expected one offset in all signals, got several"):
        te.cat([a, b])
    with pytest.raises(ValueError, match="x: expected a train without an offset"):
        ts.freeze(nn.Sequential(tnn.Flatten(), tnn.Linear(192, 4, timing="window"), tnn.Readout(4, 2)), T=8)(
            te.SpikeTrain.from_counts(torch.ones(2, 3, 8, 8), 8).replace(offset=a.offset)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_offset_is_any_number(dtype):
    """The functions read it too: potentials, gates and gradients are those of counts plus offset."""
    offset, weight = torch.randn(1, 20, dtype=torch.float64), torch.randint(-32, 33, (9, 20)).to(dtype) / 64
    planes = te.SpikeTrain.from_counts(torch.randint(9, (6, 20)), 8).planes
    x = te.SpikeTrain(planes, 8, timing="window", offset=(offset * 64).round() / 64, gain=0.5)
    weight.requires_grad_()
    z = 0.5 * (x.counts.double() + x.offset) @ weight.detach().double().T
    train, v = te.functional.linear_if(x, weight, timing="window", gate="clip", return_v=True)
    assert torch.equal(train.counts.double(), (z + 0.5).floor().clamp(0, 8))
    assert torch.equal(v.double() + train.counts, z + 0.5)
    grad_z = ((z > 0) & (z < 8)).to(dtype)
    (grad,) = torch.autograd.grad(train.counts.sum(), weight)
    torch.testing.assert_close(grad.double(), 0.5 * grad_z.double().T @ (x.counts + x.offset), rtol=1e-2, atol=1e-1)
    with torch.no_grad():
        assert torch.equal(te.functional.linear_if(x, weight, timing="window").stored, train.stored)
    for wrong, words in (
        (lambda: te.SpikeTrain(planes, 8, offset=offset), "offset: only trains with timing='window'"),
        (lambda: te.SpikeTrain(planes, 8, timing="window", offset=offset[:, :3]), "offset"),
        (lambda: te.functional.linear_if(x, weight), "timing: neurons with timing 'step' read spikes"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


def test_channels_must_fit_also_if_each_has_its_gain():
    x = tnn.Conv2d(3, 16, 3, gain=torch.rand(16))(te.SpikeTrain.from_counts(torch.ones(2, 3, 8, 8), 8))
    for layer in (tnn.Conv2d(8, 4, 3), tnn.ReadoutConv2d(8, 4, 1), nn.Sequential(tnn.Flatten(), tnn.Linear(288, 4))):
        with pytest.raises(ValueError, match="8"):
            layer(x)
