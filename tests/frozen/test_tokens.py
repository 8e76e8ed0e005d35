"""Transformers of spikes: evaluation, frozen, from a file, in C++ and at rest they have the same bits."""

import pytest
import torch
from networks import by_onnxruntime, check_frozen, seen_by, trained
from tokens import Block, joins, transformer
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.instruction import INPUT, Instruction
from tandem_snn.frozen.stages import Stage, Stages

pytestmark = pytest.mark.kernels


def images(batch=4, height=12, width=8):
    return torch.rand(batch, 3, height, width)


def test_moves_between_layers_are_none():
    frozen = ts.freeze(trained(transformer(), images()), example=images())
    kinds = [stage.instruction.kind for stage in frozen._program_for(1.0).layers.stages]
    assert kinds.count("gather") == 2  # of the patches, once for spikes and once for currents
    assert kinds.count("attention") == 2


def test_tokens_that_are_given_are_moved_twice(tmp_path):
    """Once for neurons and once for the sum: all that follows stays where the layers of tokens are."""
    mean = tnn.Permute([0, 2, 1]), tnn.AvgPool1d(6, spiking=False), tnn.Flatten()
    options = {"timing": "window", "norm": True, "gate": "clip"}
    blocks = [Block(tnn, 24, 3, **options) for _ in range(2)]
    net = nn.Sequential(*blocks, tnn.Neurons(timing="window"), *mean, tnn.Readout(24, 5))
    x = te.SpikeTrain.from_counts(torch.randint(5, (4, 6, 24)), T=4)
    frozen = ts.freeze(trained(net, x), T=4, example=x)
    kinds = [stage.instruction.kind for stage in frozen._program_for(1.0).layers.stages]
    assert kinds.count("gather") == 2
    assert torch.equal(frozen(x), net(x))
    assert torch.equal(frozen.settle(x)[0], net(x))
    frozen.save(tmp_path / "net.tandem")
    assert torch.equal(ts.load(tmp_path / "net.tandem")(x), net(x))


def test_a_large_batch_in_pieces():
    x = images(128, 32, 32)
    net = trained(transformer(dim=64, heads=4, tokens=64), x)
    assert torch.equal(ts.freeze(net, example=x)(x), net(x))


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_few_bits(bits, tmp_path):
    net, x = trained(transformer(weight_bits=bits), images()), images()
    check_frozen(net, x, tmp_path, "window", x)
    frozen = ts.freeze(net, weight_bits=8)
    assert torch.equal(frozen(x), frozen.net(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, tmp_path):
    check_frozen(trained(transformer(), images()).to(dtype), images().to(dtype), tmp_path, "window", images().to(dtype))


def test_calibrated(tmp_path):
    """Tokens get one threshold: attention, and what reads channels that were tokens, take one gain."""
    net, x = trained(transformer(), images(16)), images(16)

    def error():
        return (net(x) - ts.to_ann(net)(x)).square().mean()

    before = error()
    with pytest.warns(UserWarning, match="calibrate: thresholds fit evaluation"):
        ts.calibrate(net, [x])
    assert error() < before / 2
    check_frozen(net, x, tmp_path, "window", x)


def test_events(tmp_path):
    net = nn.Sequential(tnn.Encoder(6, mode="events"), *transformer()[1:])
    x = te.SpikeTrain.from_dense((torch.rand(6, 4, 3, 12, 8) < 0.3).float())
    frozen = ts.freeze(trained(net, x))
    assert torch.equal(frozen(x), net(x))
    assert torch.equal(frozen.settle(x)[0], net(x))


@pytest.mark.parametrize("T", [4, 255])
def test_sums_that_need_float64(T, tmp_path):
    net = nn.Sequential(tnn.Encoder(T), *transformer(dim=64, heads=1)[1:])
    for block in net.modules():
        if isinstance(block, tnn.SelfAttention):
            block.qkv.T = 255
    check_frozen(trained(net, images()), images(), tmp_path, "window", images())
    attended = tnn.Attention(1)(te.SpikeTrain.from_counts(torch.full((1, 60, 192), 255), T=255))
    assert attended.total[0, 0, 0] * 2**9 == 60 * 64 * 255**3 // 128 * 128  # rounded to 24 bits


def random_transformer(seed):
    torch.manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), ()))]

    heads, channels = pick(1, 2, 3, 4), pick(4, 8, 16)
    height, width = pick(8, 12, 16), pick(4, 8, 16)
    options = {"norm": pick(True, True, False), "weight_bits": pick(None, None, 8, 4), "depth": pick(1, 2)}
    options |= {"threshold": pick(None, None, 0.5, torch.nn.Parameter(torch.tensor(0.7)))}
    net = transformer(
        dim=heads * channels, heads=heads, T=pick(1, 2, 4, 7, 8, 16), tokens=height * width // 16, **options
    )
    return net, images(pick(1, 2, 5), height, width)


@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 200), marks=pytest.mark.slow)], ids=len)
def test_random_transformers(seeds, tmp_path):
    for seed in seeds:
        net, x = random_transformer(seed)
        check_frozen(trained(net, x.repeat(2, 1, 1, 1)), x, tmp_path, "window", x)


def test_positions_of_an_embedding(tmp_path):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(6, 24)
            self.register_buffer("number", torch.arange(6))

        def forward(self, u):
            return u + self.embedding(self.number)

    net = transformer()
    net.insert(5, Positions())
    check_frozen(trained(net, images()), images(), tmp_path, "window", images())


def test_operations_are_rows_times_spikes():
    net, x = trained(transformer(dim=24, heads=3), images()), images()
    qkv = net[:5](x)
    block = net[5]
    counts = block.attention.qkv(block.fire[0](qkv)).counts
    found = ts.measure.synops(net, x).layers["5.attention.attend"]
    assert found.acs == counts[..., :48].sum().item() * 8 / len(x)
    assert (found.ann_macs, found.macs) == (2 * 6 * 24 * 8, 0)
    frozen = ts.freeze(net, example=x)
    assert ts.measure.synops(frozen, [x, x])[1].eq(0).all()


def test_moves_are_in_the_order_of_the_layers(tmp_path):
    net, x = trained(transformer(), images()), images()
    frozen = ts.freeze(net, example=x)
    frozen.save(tmp_path / "net.tandem")
    for each in (frozen, ts.load(tmp_path / "net.tandem")):
        rising = [moves for _, moves in each.follow(x)]
        for name, (_, y) in seen_by(net, x).items():
            if isinstance(net.get_submodule(name), tnn.SpikingLayer) and isinstance(y, te.SpikeTrain):
                assert torch.equal(sum(moves[name].float() for moves in rising), y.counts), name


def test_a_file_has_the_order_of_neurons_for_one_size(tmp_path):
    fire = tnn.Permute([0, 2, 3, 1]), tnn.Neurons(timing="window"), tnn.Permute([0, 3, 1, 2])
    ends = tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(4, 2)
    conv = tnn.Conv2d(2, 4, 1, neurons=False, timing="window")
    net, x = nn.Sequential(tnn.Encoder(3), conv, *fire, *ends), torch.rand(3, 2, 6, 5)
    frozen, path = ts.freeze(net, example=x), tmp_path / "net.tandem"
    frozen.save(path)
    loaded = ts.load(path)
    assert next(loaded.follow(x))[1]["3"].shape == next(frozen.follow(x))[1]["3"].shape == (3, 6, 5, 4)
    for size, shape in (((7, 5), (3, 7, 5, 4)), ((5, 6), (3, 5, 6, 4))):
        other = torch.rand(3, 2, *size)
        assert next(frozen.follow(other))[1]["3"].shape == shape
        for call in (loaded, lambda x: next(loaded.follow(x)), lambda x: ts.to_onnx(loaded, path, x)):
            with pytest.raises(ValueError, match="x: expected samples of shape"):
                call(other)


def test_onnx(tmp_path):
    for T in (4, 255):
        net, x = trained(nn.Sequential(tnn.Encoder(T), *transformer(dim=32, heads=1)[1:]), images()), images()
        ts.to_onnx(net, tmp_path / "net.onnx", x)
        *_, answers = by_onnxruntime(tmp_path / "net.onnx", x)
        torch.testing.assert_close(torch.as_tensor(answers[-1]), net(x).detach(), atol=0.2, rtol=0)


def test_nir_has_no_attention():
    with pytest.raises(ValueError, match=r"5\.attention\.attend: NIR has no attention"):
        ts.to_nir(trained(transformer(), images()), images())


def test_an_example_that_does_not_fit_is_named():
    net = nn.Sequential(tnn.Encoder(4), tnn.ConvTranspose2d(3, 8, 2), tnn.Flatten(), tnn.Readout(800, 2))
    for shape, why in ([9, 9], "expected shape"), ([3, 8, 8], "Readout takes 800"), ([2, 9, 9], "has 2 features"):
        with pytest.raises(ValueError, match=f"example: the network does not accept it: .*{why}"):
            ts.freeze(net, example=torch.rand(2, *shape))
    assert ts.freeze(net, example=torch.rand(2, 3, 9, 9)).shape == (3, 9, 9)


def test_programs_that_are_refused():
    def stages(groups=2, channels=12, timing="window"):
        made = [Stage("count", Instruction("popcount", INPUT))]
        made += [Stage("attention", Instruction("attention", 0, outputs=4, groups=groups, axes=1, timing=timing))]
        made += [Stage("fire", Instruction("neurons", 1, outputs=4, timing="window"))]
        made += [Stage("flat", Instruction("flatten", 2))]
        made += [Stage("readout", Instruction("readout", 3), weight=torch.ones(1, 20))]
        return ts.freeze(Stages(made, "events", 3)), te.SpikeTrain.from_dense(torch.ones(3, 2, channels, 5))

    frozen, x = stages()
    assert frozen(x).shape == (2, 1)
    with pytest.raises(ValueError, match="groups: expected a divisor of the outputs"):
        stages(groups=3)[0].save("none")
    with pytest.raises(ValueError, match="input: expected spikes with timing window"):
        stages(timing="step")[0].save("none")
    for channels in (13, 4, 14):
        frozen, x = stages(channels=channels)
        with pytest.raises(ValueError, match=r"x: expected channels of q, k and 4 of v|heads: expected a divisor"):
            frozen(x)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("end", ["spikes", "currents"])
def test_an_answer_for_each_token(end, bits, tmp_path):
    body = transformer(weight_bits=bits)[: -4 if end == "spikes" else -5]
    net = nn.Sequential(*body, tnn.Readout(24, 5, weight_bits=bits))
    check_frozen(trained(net, images()), images(), tmp_path, "window", images())
    assert net(images()).shape == (4, 6, 5)
    assert ts.to_ann(net)(images()).shape == (4, 6, 5)
    assert ts.measure.synops(net, images()).layers.keys() >= {str(len(net) - 1)}


@pytest.mark.parametrize(("tokens", "dim"), [((6,), -1), ((6,), 2), ((3, 4), 3)])
def test_features_of_tokens_are_joined(tokens, dim, timing, tmp_path):
    net, x = joins(timing, dim, tokens)
    frozen = check_frozen(trained(net, x), x, tmp_path, timing, x)
    kinds = [stage.instruction.kind for stage in frozen._program_for(1.0).layers.stages]
    assert kinds.count("gather") == 3 + 3  # the joins, the image twice, and before the flatten


def test_a_readout_of_tokens_with_a_gain_for_each_feature(timing, tmp_path):
    layers = tnn.Linear(5, 6, threshold=torch.rand(6) + 0.5, timing=timing), tnn.Readout(6, 4)
    net, x = nn.Sequential(tnn.Encoder(6), *layers).eval(), torch.rand(3, 7, 5)
    check_frozen(net, x, tmp_path, timing, x)
    with pytest.raises(ValueError, match=r"x: Readout takes 6 features per sample or token, got .*put tnn.Flatten"):
        layers[1](te.SpikeTrain.from_dense(torch.ones(3, 2, 6, 5)))


def test_a_file_without_shapes_is_for_vectors(tmp_path):
    net = nn.Sequential(tnn.Encoder(4), tnn.Linear(5, 6, timing="window"), tnn.Readout(6, 3)).eval()
    frozen, tokens = ts.freeze(net), torch.rand(2, 7, 5)
    with pytest.warns(UserWarning, match=r"a file without shape, whose linear layers take vectors, no tokens: call"):
        frozen.save(tmp_path / "net.tandem")
    loaded = ts.load(tmp_path / "net.tandem")
    assert torch.equal(loaded(tokens[:, 0]), net(tokens[:, 0]))
    for call in (loaded, loaded.settle):
        with pytest.raises(ValueError, match="x: layer '1' was frozen for vectors, without the shape of its tokens"):
            call(tokens)
    assert torch.equal(frozen(tokens), net(tokens))
    frozen.save(tmp_path / "net.tandem")
    assert torch.equal(ts.load(tmp_path / "net.tandem").settle(tokens)[0], net(tokens))


@pytest.mark.parametrize("shape", [(4, 9, 8), (4, 7, 8), (4, 7, 5), (4, 5)])
def test_a_refused_input_changes_nothing(shape, tmp_path):
    """Of another number of features, of both, of tokens, and of dimensions; a position knows the number of tokens."""

    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.fire = nn.Parameter(torch.rand(9, 16)), tnn.Neurons(timing="window")

        def forward(self, x):
            return self.fire(x + self.position)

    tokens = tnn.Linear(5, 16, norm=True, neurons=False, timing="window")
    net = nn.Sequential(tnn.Encoder(4), tokens, Placed(), tnn.SelfAttention(16, 2), tnn.Neurons(timing="window"))
    net = nn.Sequential(*net, tnn.Readout(16, 3)).eval()
    x, refused = torch.rand(2, 9, 5), torch.rand(shape)
    for call in "__call__", "settle", "step", "readouts":
        frozen = ts.freeze(net, example=x)
        with pytest.raises(ValueError, match=r"expected|takes|must match"):
            getattr(frozen, call)(refused)
        assert (frozen.shape, frozen.why_slow) == ((9, 5), None)
        assert torch.equal(frozen(x), net(x))
        assert torch.equal(frozen.settle(x)[0], net(x))
        frozen.save(tmp_path / "net.tandem")
        assert torch.equal(ts.load(tmp_path / "net.tandem")(x), net(x))


def test_vectors_are_no_tokens():
    net = nn.Sequential(tnn.Encoder(4), tnn.SelfAttention(16, 2), tnn.Neurons(timing="window"), tnn.Readout(16, 3))
    frozen = ts.freeze(net.eval(), example=torch.rand(2, 9, 16))
    with pytest.raises(ValueError, match=r"x: Attention takes q, k and v of tokens, .*got shape \[2, 48\]"):
        frozen(torch.rand(2, 16))
