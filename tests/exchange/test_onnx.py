"""ONNX: the exported step, or window, run by onnxruntime, gives the same spike counts and the same answer."""

import warnings
from itertools import product

import networks
import pytest
import torch
from any_window import FIRST, counts_of, drawn, of_pixels
from between import BETWEEN, converted, grown
from heads import STRUCTURES, Heads
from networks import NETWORKS, Net, dyadic, images, in_windows, network, of_timing, own_counts, spiking, trained
from tokens import transformer
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.answers import named

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
T = 8


def inputs_of(x):
    return (x * 16).round() / 16


def assert_the_same(net, x, path, differing=0.0):
    """Counts, but for this share of the neurons, and the answers of the stream."""
    frozen, (ours, expected) = ts.freeze(net, T=x.T if isinstance(x, te.SpikeTrain) else None), own_counts(net, x)
    ts.to_onnx(frozen, path / "net.onnx", x)
    counts, answers = networks.by_onnxruntime(path / "net.onnx", x)
    assert len(ours) == len(counts)
    for c, other in zip(ours, counts, strict=True):
        assert c.sum() > 0
        assert (c != other).float().mean() <= differing
    # torch's product, and a batch norm's scale, round otherwise.
    assert torch.equal(frozen(x), expected)
    torch.testing.assert_close(answers[-1], expected, atol=1e-4, rtol=1e-4)
    if len(answers) > 1:
        torch.testing.assert_close(torch.stack(answers), frozen.readouts(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "lif", "conv", "residual", "projection", "line", "average"])
def test_every_layer(name, tmp_path):
    net, x = getattr(networks, name)()
    assert_the_same(dyadic(trained(net, x)), inputs_of(x), tmp_path, 1e-3 if name == "lif" else 0)  # λ = 0.9


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("make", [*BETWEEN.values(), grown])
def test_currents_between_layers(make, timing, tmp_path):
    torch.manual_seed(0)
    net, x = converted(make, timing)
    assert_the_same(net, x, tmp_path)
    weights = ts.freeze(net, weight_bits=8)
    ts.to_onnx(weights, tmp_path / "bits.onnx", x)
    counts, answers = networks.by_onnxruntime(tmp_path / "bits.onnx", x)
    assert max(networks.differing(own_counts(weights.net, x)[0], counts)) < 0.01  # steps that are no powers of two
    torch.testing.assert_close(answers[-1], weights(x), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("bits", "timing"), [*product([2, 4, 5, 8], ["step"]), (4, "window"), (8, "window")])
def test_weights_of_few_bits(bits, timing, tmp_path):
    """The file holds the integers; where the steps are powers of two, sums are exact and the counts the same."""
    net, x = network(), images(1797)
    net = in_windows(net) if timing == "window" else net
    largest = 2 ** (bits - 1) - 1
    for layer in (m for m in net.modules() if isinstance(m, (tnn.SpikingLayer, tnn.Readout))):
        q = torch.randint(-largest, largest + 1, layer.weight.shape)
        q.view(len(q), -1)[:, 0] = largest
        layer.weight.data = q * 2.0 ** (2 - bits)
    frozen = ts.freeze(net, weight_bits=bits)
    expected = frozen(x)
    ts.to_onnx(frozen, tmp_path / "net.onnx", x)
    model = onnx.load(tmp_path / "net.onnx")
    kind = onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8
    weights = {t.name: t for t in model.graph.initializer if t.name.endswith(".weight")}
    assert [t.data_type for t in weights.values()] == [kind] * 4
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 4
    counts, answers = networks.by_onnxruntime(tmp_path / "net.onnx", x)
    for c, other in zip(own_counts(frozen.net, x)[0], counts, strict=True):
        assert torch.equal(c, other)
    assert torch.equal(answers[-1], expected)


@pytest.mark.kernels
@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 1000), marks=pytest.mark.slow)])
def test_windows_of_few_bits_are_thresholds_of_integers(seeds, tmp_path):
    """No count differs, whatever the scales are."""
    for seed in seeds:
        frozen, x = drawn(seed)
        ts.to_onnx(frozen, tmp_path / "net.onnx", x)
        counts, (answer,) = networks.by_onnxruntime(tmp_path / "net.onnx", x)
        for (name, c), other in zip(counts_of(frozen, x).items(), counts, strict=True):
            assert torch.equal(c.float(), other), (seed, name)
        torch.testing.assert_close(answer, frozen(x))


@pytest.mark.kernels
@pytest.mark.parametrize("given", [{}, {"mean": [0.4, 0.5, 0.3], "std": 0.5}])
@pytest.mark.parametrize("first", FIRST)
def test_pixels(first, given, tmp_path):
    frozen, x = of_pixels(first, given)
    ts.to_onnx(frozen, tmp_path / "net.onnx", x)
    (counts,), (answer,) = networks.by_onnxruntime(tmp_path / "net.onnx", x.float())
    assert torch.equal(counts, *(c.float() for c in counts_of(frozen, x).values()))
    torch.testing.assert_close(answer, frozen(x))


@pytest.mark.kernels
@pytest.mark.parametrize("bias", [0.0, 50000.0, -50000.0])
def test_sums_that_floats_cannot_hold_are_split(bias, tmp_path):
    layer = tnn.Linear(700, 8, timing="window", threshold=1.0, v_init=0.0)
    layer.weight.data = layer.weight.sign() * (1 + torch.rand(8, 700) / 4)
    layer.weight.data[:4].abs_()
    layer.bias.data.fill_(bias)
    x = te.SpikeTrain.from_counts(torch.cat([torch.full((1, 700), 255), torch.randint(256, (3, 700))]), T=255)
    frozen = ts.freeze(nn.Sequential(layer, tnn.Readout(8, 3)).eval(), weight_bits=8, T=255)
    ts.to_onnx(frozen, tmp_path / "net.onnx", x)
    assert [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node].count("Gemm") > 2
    (counts,), _ = networks.by_onnxruntime(tmp_path / "net.onnx", x)
    assert torch.equal(counts, counts_of(frozen, x)["n0"].float())


@pytest.mark.parametrize(("make", "T", "shape"), [
    (lambda: nn.Sequential(tnn.Conv2d(2, 4, 3), tnn.MaxPool2d(2), tnn.Flatten(), tnn.Readout(36, 3)), 11, (2, 8, 8)),
    *((lambda: in_windows(spiking()), T, (3, 9)) for T in (1, 11, 200)),
])  # fmt: skip
def test_spikes_in(make, T, shape, tmp_path):
    x = te.SpikeTrain.from_dense(torch.rand(T, 3, *shape).lt(0.3).float())
    assert_the_same(dyadic(make()), x, tmp_path)


def test_errors_and_shapes_that_a_loaded_network_knows(tmp_path):
    net, x = network(), images(1797)
    with pytest.raises(ValueError, match="Readout"):
        ts.to_onnx(nn.Sequential(tnn.Encoder(T), tnn.Flatten(), tnn.Linear(64, 4)), tmp_path / "net.onnx", x)
    assert not list(tmp_path.iterdir())
    frozen = ts.freeze(net)
    frozen(x)
    frozen.save(tmp_path / "net.tandem")
    loaded = ts.load(tmp_path / "net.tandem")
    ts.to_onnx(loaded, tmp_path / "loaded.onnx", torch.zeros(1, *loaded.shape))
    ts.to_onnx(frozen, tmp_path / "net.onnx", x)
    assert (tmp_path / "loaded.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()


@pytest.mark.parametrize(("T", "every"), [(1, ""), (2, ""), (8, ""), (8, "own")])
@pytest.mark.parametrize("make", NETWORKS)
def test_every_layer_of_windows(make, T, every, tmp_path):
    net, x = of_timing(make, T, every)
    assert_the_same(dyadic(net), inputs_of(x), tmp_path)


@pytest.mark.parametrize(("mixed", "name"), [("even", "2.body.0"), ("odd", "1")])
def test_a_layer_with_another_timing_is_named(mixed, name, tmp_path):
    net, x = of_timing(networks.residual, T, mixed)
    with pytest.raises(ValueError, match=f'{name}: it has timing "step" and others "window"'):
        ts.to_onnx(net, tmp_path / "net.onnx", x)


@pytest.mark.parametrize("T", [1, 8, 200])
def test_a_node_for_each_operation_whatever_t(T, tmp_path):
    net, x = of_timing(networks.conv, T)
    assert_the_same(dyadic(net), inputs_of(x), tmp_path)
    nodes = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert nodes.count("Floor") == nodes.count("Clip") == 4
    assert len(nodes) < 50


@pytest.mark.parametrize("threshold", [0.1, 0.5, 4.0])
def test_thresholds_whose_multiples_are_rounded(threshold, tmp_path):
    """The graph subtracts: division may differ where v is nearly a multiple of ϑ. By powers of two it divides."""
    layer = tnn.Linear(1, 4000, bias=False, threshold=threshold, v_init=0.0, timing="window")
    layer.weight.data = (torch.arange(4000).view(-1, 1) * threshold / 13).float()
    net = nn.Sequential(tnn.Encoder(T=200, mode="zero_expand"), layer, tnn.Readout(4000, 2))
    x = torch.ones(1, 1)
    ts.to_onnx(net, tmp_path / "net.onnx", x)
    (counts,), _ = networks.by_onnxruntime(tmp_path / "net.onnx", x)
    ours = own_counts(net, x)[0][0]
    assert torch.equal(counts, ours)
    divided = (layer.weight.detach().T / threshold).floor().clamp(0, 200)
    assert torch.equal(counts, divided) == (threshold != 0.1)


def tokens_in_steps():
    """Patches as tokens, neurons on them that are moved before the permutation, and linear layers of tokens."""
    layers = [tnn.Conv2d(3, 8, 4, 4), tnn.Flatten(2), tnn.Permute([0, 2, 1]), tnn.Linear(8, 5), tnn.Linear(5, 7)]
    layers.insert(1, tnn.Conv2d(8, 8, 1, neurons=False))
    return nn.Sequential(tnn.Encoder(T), *layers[:4], tnn.Neurons(), *layers[4:], tnn.Flatten(), tnn.Readout(42, 3))


def called_twice():
    def forward(m, x):
        return m.readout(m.body.mix(m.body.mix(m.encoder(x))))

    body = nn.ModuleDict({"mix": tnn.Linear(6, 6, timing="window")})
    return Net(forward, encoder=tnn.Encoder(T), body=body, readout=tnn.Readout(6, 3))


@pytest.mark.kernels
@pytest.mark.parametrize(("make", "shape"), [
    (transformer, (3, 12, 8)), (tokens_in_steps, (3, 12, 8)), (called_twice, (5, 6)),
])  # fmt: skip
def test_neurons_of_tokens_are_named_and_ordered_as_in_torch(make, shape, tmp_path):
    net, x, calls = make(), torch.rand(4, *shape), {}
    net = dyadic(trained(net, x))
    for name, layer in net.named_modules():
        hook = lambda _, __, y, name=name: calls.setdefault(name, []).append(y)  # noqa: E731
        layer.register_forward_hook(hook)
    net(x)
    seen = {}
    for name, trains in calls.items():
        if isinstance(net.get_submodule(name), tnn.SpikingLayer) and isinstance(trains[0], te.SpikeTrain):
            name = ("n" + name if name[0].isdigit() else name).replace(".", "_")
            seen |= {f"{name}{'_again' * k}": train.counts for k, train in enumerate(trains)}
    for layer in net.modules():
        layer._forward_hooks.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # x is the example that freeze asks for
        ts.to_onnx(net, tmp_path / "net.onnx", x)
    outputs = [o.name for o in onnx.load(tmp_path / "net.onnx").graph.output]
    found, _ = networks.by_onnxruntime(tmp_path / "net.onnx", x)
    names = [name for name in outputs if name.endswith((".spikes", ".counts"))]
    found = {name.rpartition(".")[0]: counts for name, counts in zip(names, found, strict=True)}
    assert found.keys() == seen.keys()
    for name, counts in seen.items():
        assert torch.equal(found[name], counts), name


@pytest.mark.kernels
def test_several_answers(timing, tmp_path):
    net, x = trained(Heads(STRUCTURES["nested"], timing), torch.rand(3, 3, 7, 6)), torch.rand(3, 3, 7, 6)
    frozen, path = ts.freeze(net), tmp_path / "net.onnx"
    ts.to_onnx(frozen, path, x)
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [o.name for o in session.get_outputs() if o.name.startswith("answer")]
    assert names == [f"answer.{name}" for name, _ in named(net(x))]
    if timing == "window":
        found = map(torch.from_numpy, session.run(names, {"x": x.numpy()}))
        torch.testing.assert_close([*found], [y for _, y in named(net(x))], atol=1e-4, rtol=1e-4)


@pytest.mark.kernels
@pytest.mark.parametrize("corners", [False, True])
def test_pixels_upsampled_and_padded(corners, tmp_path):
    layers = tnn.Conv2d(3, 8, 3, padding=1, padding_mode="circular", timing="window"), tnn.ReadoutConv2d(8, 2, 1)
    up = tnn.Upsample((9, 11), mode="bilinear", align_corners=corners)
    for net in (nn.Sequential(tnn.Encoder(4), *layers), nn.Sequential(tnn.Encoder(4), *layers, up)):
        x, frozen = torch.rand(3, 3, 6, 5), ts.freeze(net.eval(), example=torch.rand(1, 3, 6, 5))
        assert frozen.why_slow is None
        assert torch.equal(frozen(x), net(x))
        ts.to_onnx(frozen, tmp_path / "net.onnx", x)
        answer = networks.by_onnxruntime(tmp_path / "net.onnx", x)[1][-1]
        torch.testing.assert_close(answer, frozen(x), atol=1e-4, rtol=1e-4)
