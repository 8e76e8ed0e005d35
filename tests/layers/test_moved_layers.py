"""Layers that move features before their product or maximum, against torch on the same counts: exact."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import freeze, load, to_ann
from tandem_snn.measure import synops

PRACTICE = [  # in, out, kernel, stride, padding, output_padding, groups, dilation
    (64, 32, 2, 2, 0, 0, 1, 1), (32, 16, 3, 2, 1, 1, 1, 1), (16, 8, 4, 2, 1, 0, 1, 1), (8, 8, 3, 1, 1, 0, 8, 1),
]  # fmt: skip


def train(*shape, T=5, gain=1.0, timing="step"):
    x = te.SpikeTrain.from_dense((torch.rand(T, *shape) < 0.4).float(), gain=gain)
    return x.replace(stored=x.stored_as(timing), timing=timing)


def whole(layer):
    """Give a layer weights for which sums are exact in any order."""
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randint(-3, 4, p.shape))
    return layer


def geometries(seed):
    draw = random.Random(seed)
    for geometry in PRACTICE:
        yield geometry
        groups, dilation, kernel, stride = (draw.randint(1, most) for most in (2, 2, 4, 3))
        more = draw.randrange(max(stride, dilation))
        yield 2 * groups, 4 * groups, kernel, stride, draw.randint(0, dilation * (kernel - 1)), more, groups, dilation


@pytest.mark.parametrize("axes", [1, 2])
def test_transposed_convolutions_are_torchs(axes, timing):
    ours, theirs = (getattr(m, f"ConvTranspose{axes}d") for m in (tnn, nn))
    for inputs, outputs, kernel, stride, padding, more, groups, dilation in geometries(axes):
        arguments = (inputs, outputs, kernel, stride, padding, more, groups, True, dilation)
        expected = whole(theirs(*arguments))
        x = train(2, inputs, *(7, 5)[:axes], timing=timing)
        layer = ours(*arguments, timing=timing, neurons=False)
        layer.load_state_dict(expected.state_dict())
        u = layer(x)
        assert torch.equal(u.total, expected(x.counts)), arguments
        torch.testing.assert_close(u.steps(0, 5).sum(0), u.total, msg=str(arguments))
        (u.total.square().sum()).backward()
        expected(x.counts).square().sum().backward()
        assert torch.equal(layer.weight.grad, expected.weight.grad), arguments
        layer.neurons = True
        assert torch.equal(layer.preactivation(x), expected(x.counts))
        twin = to_ann(nn.Sequential(layer))
        assert torch.equal(twin(x.counts), expected(x.counts).relu())
        layer.weight_bits = 3
        assert torch.equal(to_ann(nn.Sequential(layer))(x.counts), layer.preactivation(x).relu())


@pytest.mark.parametrize("neurons", [False, True])
@pytest.mark.parametrize("axes", [1, 2])
def test_gradients_of_transposed_convolutions_are_torchs(axes, neurons, timing):
    """Of the same product, to the bit, for any weights: as a product with zeros it rounds otherwise."""
    for arguments in PRACTICE:
        inputs, outputs, kernel, stride, padding, more, groups, dilation = arguments
        geometry = inputs, outputs, kernel, stride, padding, more, groups, True, dilation
        layer, expected = (getattr(m, f"ConvTranspose{axes}d")(*geometry) for m in (tnn, nn))
        layer.timing, layer.neurons, layer.threshold, layer.gate = timing, neurons, 1.0, "relu"
        expected.load_state_dict(layer.state_dict())
        x = train(2, inputs, *(7, 5)[:axes], timing=timing)
        counts, twins = (x.counts.clone().requires_grad_() for _ in range(2))
        x = te.SpikeTrain.unchecked(x.stored, x.T, counts, 1.0, torch.float32, timing)
        z = expected(twins)
        grad = torch.randn(z.movedim(1, -1).shape).movedim(-1, 1)
        z.backward(grad * (z > 0) if neurons else grad)
        y = layer(x)
        (y.counts if neurons else y.total).backward(grad)
        assert torch.equal(counts.grad, twins.grad), arguments
        assert torch.equal(layer.weight.grad, expected.weight.grad), arguments


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_are_torchs(mode, timing):
    cases = (2, 1, 3, 1), (2, (3, 2), (7, 5), 2), (2, "same", 4, 1), (1, 2, 5, 2), (1, 0, 3, 1)
    for axes, padding, kernel, stride in cases:
        ours, theirs = (getattr(m, f"Conv{axes}d") for m in (tnn, nn))
        expected = whole(theirs(4, 6, kernel, stride, padding, padding_mode=mode, groups=2))
        layer = ours(4, 6, kernel, stride, padding, padding_mode=mode, groups=2, timing=timing, neurons=False)
        layer.load_state_dict(expected.state_dict())
        x = train(2, 4, *(8, 9)[:axes], timing=timing)
        assert torch.equal(layer(x).total, expected(x.counts)), (axes, padding)
        assert torch.equal(to_ann(nn.Sequential(layer))(x.counts), expected(x.counts))


@pytest.mark.kernels
@pytest.mark.parametrize("norm", [False, True])
def test_tokens_are_rows(norm, timing):
    for space in ((196,), (7, 5), (1,)):
        x = train(3, *space, 16, timing=timing, gain=0.5)
        rows = x.replace(stored=x.stored.flatten(1, -2))
        layer, other = (tnn.Linear(16, 8, norm=norm, threshold=torch.arange(1, 9) / 4, timing=timing) for _ in range(2))
        other.load_state_dict(layer.state_dict())
        y, expected = layer(x), other(rows)
        assert torch.equal(y.counts.flatten(0, -2), expected.counts)
        assert torch.equal(y.gain.flatten(0, -2)[0], expected.gain)
        y.counts.square().sum().backward()
        expected.counts.square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-2)
        if norm:
            assert torch.equal(layer.norm.running_mean, other.norm.running_mean)
        layer.eval()
        other.eval()
        v = layer.potentials(x)
        assert torch.equal(v.flatten(1, -2), other.potentials(rows))
        second = tnn.Linear(8, 4, timing=timing)
        assert torch.equal(second(layer(x)).counts.flatten(0, -2), second(other(rows)).counts)
        twin = to_ann(nn.Sequential(layer, second)).eval()
        assert twin(x.counts).shape == (3, *space, 4)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_repeated_spikes_are_torchs(mode, timing):
    x = train(2, 3, 5, 7, T=8, timing=timing)
    for options in ({"scale_factor": 2}, {"size": (9, 15)}, {"scale_factor": (1.5, 3.0)}, {"size": 4}):
        y = tnn.Upsample(**options, mode=mode)(x)
        assert y.timing == timing
        assert torch.equal(y.counts, F.interpolate(x.counts, **options, mode=mode)), options
    line = train(2, 3, 5, timing=timing)
    assert torch.equal(tnn.Upsample(scale_factor=2)(line).counts, F.interpolate(line.counts, scale_factor=2))


@pytest.mark.parametrize("align_corners", [False, True])
def test_interpolated_currents_are_torchs(align_corners):
    x, layer = train(2, 3, 5, 7, gain=0.5), tnn.Upsample((9, 15), mode="bilinear", align_corners=align_corners)
    expected = F.interpolate(x.counts / 2, (9, 15), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(layer(x).total, expected)
    torch.testing.assert_close(layer(x).steps(0, 5).sum(0), expected)
    torch.testing.assert_close(to_ann(nn.Sequential(layer))(x.counts / 2), expected)


def test_pools_of_lines_and_adaptive_maxima_are_torchs():
    x, image = train(3, 4, 11, timing="window"), train(3, 4, 11, 7, timing="window")
    for layer, expected, y in (
        (tnn.MaxPool1d(3, 2, 1, ceil_mode=True), nn.MaxPool1d(3, 2, 1, ceil_mode=True), x),
        (tnn.MaxPool1d(2, dilation=3), nn.MaxPool1d(2, dilation=3), x),
        (tnn.AvgPool1d(3, 2, 1, spiking=False), nn.AvgPool1d(3, 2, 1), x),
        (tnn.AdaptiveMaxPool1d(4), nn.AdaptiveMaxPool1d(4), x),
        (tnn.AdaptiveMaxPool2d((3, 7)), nn.AdaptiveMaxPool2d((3, 7)), image),
        (tnn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool2d(1), image),
    ):
        z = layer(y)
        assert torch.equal(z if isinstance(z, torch.Tensor) else z.counts, expected(y.counts)), layer
        assert torch.equal(to_ann(nn.Sequential(layer))(y.counts), expected(y.counts))
        counts = y.counts.detach().clone().requires_grad_()
        z = layer(y.replace(counts=counts))
        (z if isinstance(z, torch.Tensor) else z.counts).sum().backward()
        other = counts.detach().clone().requires_grad_()
        expected(other).sum().backward()
        torch.testing.assert_close(counts.grad.flatten(2).sum(-1), other.grad.flatten(2).sum(-1))
    x = train(2, 3, 12, T=8)
    image = x.map(lambda t: t.unsqueeze(-2))
    assert torch.equal(tnn.AvgPool1d(4)(x).counts, tnn.AvgPool2d((1, 4))(image).counts[:, :, 0])


NETWORKS = {
    "u-net": (lambda **o: (
        tnn.Conv2d(3, 6, 3, 2, 1, norm=True, **o), tnn.ConvTranspose2d(6, 4, 2, 2, groups=2, norm=True, **o),
        tnn.ConvTranspose2d(4, 4, 3, 2, 1, 1, **o), tnn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", **o),
        tnn.Upsample(scale_factor=2), tnn.AdaptiveMaxPool2d((5, 7)), tnn.ReadoutConv2d(4, 2, 1),
    ), (3, 8, 10)),
    "currents": (lambda **o: (
        tnn.Conv2d(3, 6, 3, 2, 1, threshold=torch.arange(1, 7) / 4, **o), tnn.Upsample(scale_factor=2, mode="bilinear"),
        tnn.ConvTranspose2d(6, 4, 2, 2, neurons=False, **o), tnn.Upsample((11, 17), None, "bilinear", True),
        tnn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", **o), tnn.Flatten(), tnn.Readout(4 * 11 * 17, 2),
    ), (3, 8, 8)),
    "tokens": (lambda **o: (
        tnn.Linear(8, 7, norm=True, **o),
        tnn.Residual(tnn.Linear(7, 7, threshold=torch.arange(1, 8) / 4, norm=True, **o)),
        tnn.Linear(7, 5, neurons=False, norm=True, **o), tnn.Linear(5, 5, **o), tnn.Flatten(), tnn.Readout(9 * 5, 2),
    ), (9, 8)),
    "image": (lambda **o: (
        tnn.Upsample(scale_factor=2), tnn.ConvTranspose2d(3, 6, 3, 2, 1, threshold=torch.arange(1, 7) / 4, **o),
        tnn.Conv2d(6, 2, 3, padding=1, padding_mode="replicate", **o),
        tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(2, 2),
    ), (3, 4, 4)),
    "line": (lambda **o: (
        tnn.Conv1d(3, 6, 3, padding=1, padding_mode="reflect", **o), tnn.MaxPool1d(3, 2, 1),
        tnn.ConvTranspose1d(6, 4, 4, 2, 1, **o), tnn.AvgPool1d(2, timing=o["timing"]), tnn.Flatten(),
        tnn.Readout(20, 2),
    ), (3, 9)),
}  # fmt: skip


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_networks_files_and_streams(name, bits, timing, tmp_path):
    layers, shape = NETWORKS[name]
    for x in (torch.rand(3, *shape), train(3, *shape)):
        first = [tnn.Encoder(5)] if isinstance(x, torch.Tensor) else []
        net = nn.Sequential(*first, *layers(timing=timing)).eval()
        frozen = freeze(net, bits, T=5, example=x)
        assert frozen.why_slow is None, frozen.why_slow
        expected = frozen(x)
        assert torch.equal(expected, frozen.net(x))
        assert bits is not None or torch.equal(expected, net(x))
        frozen.save(tmp_path / "net.tandem")
        assert torch.equal(load(tmp_path / "net.tandem")(x), expected)
        if timing == "window":
            assert torch.equal(frozen.settle(x)[0], expected)
            moved = x.flip(0) if isinstance(x, torch.Tensor) else x[[2, 1, 0]]
            assert torch.equal(frozen.settle(moved)[0], frozen(moved))
        else:
            for t in range(5):
                step = x if isinstance(x, torch.Tensor) else te.SpikeTrain.from_dense(x.to_dense()[t : t + 1])
                answer = frozen.step(step)
            assert torch.equal(answer, expected)


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["currents", "tokens"])
@pytest.mark.filterwarnings("ignore:freeze")
def test_the_first_input_is_an_example(name):
    layers, shape = NETWORKS[name]
    net = nn.Sequential(tnn.Encoder(5), *layers(timing="window")).eval()
    frozen, x = freeze(net), torch.rand(2, *shape)
    assert torch.equal(frozen(x), net(x))
    assert frozen.why_slow is None
    assert torch.equal(frozen.settle(x)[0], net(x))


def test_a_move_and_its_way_back_are_no_instruction():
    net = nn.Sequential(tnn.Encoder(4), tnn.Linear(8, 6), tnn.Linear(6, 6), tnn.Flatten(), tnn.Readout(54, 2))
    frozen = freeze(net, example=torch.rand(1, 9, 8))
    kinds = [stage.instruction.kind for stage in frozen._program_for(1.0).layers.stages]
    assert kinds == ["gather", "layer", "layer", "gather", "flatten", "readout"]


def test_operations_are_those_of_the_spikes():
    x = train(2, 3, 6, 6)
    net = nn.Sequential(tnn.ConvTranspose2d(3, 4, 3, 2, 1, 1), tnn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"),
                        tnn.Linear(12, 2), tnn.Flatten(), tnn.Readout(120, 3)).eval()  # fmt: skip
    ops = synops(net, x).layers
    y = net[0](x)
    assert ops["0"].acs == F.conv_transpose2d(x.counts, torch.ones(3, 4, 3, 3), None, 2, 1, 1).sum() / 2
    padded = F.pad(y.counts, (1, 1, 1, 1), "reflect")
    assert ops["1"].acs == F.conv2d(padded, torch.ones(5, 4, 3, 3)).sum() / 2
    assert ops["2"].acs == net[1](y).counts.sum() * 2 / 2


@pytest.mark.parametrize(("make", "message"), [
    (lambda: tnn.Conv2d(1, 2, 3, padding_mode="mirror"), "padding_mode: expected"),
    (lambda: tnn.ConvTranspose2d(1, 2, 3, output_padding=1), "output_padding: expected less than stride or dilation"),
    (lambda: tnn.Upsample(2, mode="bicubic"), "mode: expected"),
    (lambda: tnn.Upsample(2, align_corners=True), "align_corners: only mode .bilinear. has corners, got True"),
    (lambda: tnn.AdaptiveMaxPool2d(0), "output_size: expected"),
    (lambda: tnn.MaxPool1d(2)(train(1, 2, 3, 4)), r"x: MaxPool1d takes \[B, C, L\]"),
    (lambda: tnn.Linear(2, 2)(train(1, 2, 2, 2, 2)), "x: Linear takes"),
    (lambda: tnn.Linear(3, 2)(train(1, 2, 3, gain=torch.ones(2))), "one for each token"),
])  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MOVES = {
    "transposed": [tnn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, timing="window")],
    "turned": [tnn.Permute([0, 1, 3, 2]), tnn.Conv2d(8, 4, 3, timing="window")],
}


@pytest.mark.parametrize("move", MOVES)
def test_gains_of_channels_move_when_frozen(move):
    torch.manual_seed(0)
    x = te.SpikeTrain.from_counts(torch.randint(9, (2, 3, 8, 6)), 8)
    layers = [tnn.Conv2d(3, 8, 3, padding=1, gain=torch.randn(8), timing="window"), *MOVES[move], tnn.Flatten()]
    net = nn.Sequential(*layers)
    net.append(tnn.Readout(net(x).shape[1], 5)).eval()
    frozen = freeze(net, T=8, example=x)
    assert torch.equal(frozen(x), net(x))
