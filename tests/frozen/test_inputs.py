"""Networks with several inputs: images, spikes, or both."""

import pytest
import torch
from networks import trained
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

pytestmark = pytest.mark.kernels


class Fusion(nn.Module):
    """A branch for each input, whose spikes are joined or whose currents are added, and two answers."""

    def __init__(self, modes, timing, T=6, join=True, bits=None, channels=(3, 2, 1)):
        super().__init__()
        self.join = join
        options = {"padding": 1, "norm": True, "timing": timing, "weight_bits": bits}
        self.encoders = nn.ModuleList(tnn.Encoder(T, mode) for mode in modes)
        branches = zip(modes, channels, strict=False)
        self.branches = nn.ModuleList(tnn.Conv2d(c, 8, 3, neurons=join, **options) for _, c in branches)
        self.fire = tnn.Neurons(8, timing=timing)
        self.body = tnn.Conv2d(8 * len(modes) if join else 8, 8, 3, stride=2, **options)
        self.pixels, self.pool = tnn.ReadoutConv2d(8, 2, 1), tnn.AdaptiveAvgPool2d(1)
        self.flat, self.head = tnn.Flatten(), tnn.Readout(8, 3)

    def merged(self, parts):
        parts = [branch(encoder(x)) for branch, encoder, x in zip(self.branches, self.encoders, parts, strict=True)]
        x = te.cat(parts, 1) if self.join else self.fire(sum(parts[1:], parts[0]))
        x = self.body(x)
        return self.pixels(x), self.head(self.flat(self.pool(x)))


class Two(Fusion):
    def forward(self, a, b):
        return self.merged([a, b])


class Three(Fusion):
    def forward(self, a, b, c):
        return self.merged([a, b, c])


def given(modes, T=6, batch=3, size=(7, 6), channels=(3, 2, 1)):
    shapes = [(batch, c, *size) for _, c in zip(modes, channels, strict=False)]
    return tuple(
        te.SpikeTrain.from_dense(torch.rand(T, *shape).lt(0.3).float()) if mode == "events" else torch.rand(shape)
        for mode, shape in zip(modes, shapes, strict=True)
    )


def step_of(x, t):
    return te.SpikeTrain.from_dense(x.to_dense()[t : t + 1].float()) if isinstance(x, te.SpikeTrain) else x


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def check(net, x, tmp_path, timing):
    """Evaluation, one call, a file and the stream have the same bits, and an input that stays is not given again."""
    frozen, expected = ts.freeze(net), net(*x)
    assert frozen.why_slow is None
    frozen(*x)
    frozen.save(tmp_path / "net.tandem")
    loaded = ts.load(tmp_path / "net.tandem")
    assert loaded.shape == frozen.shape == tuple(tuple(each.shape[1:]) for each in x)
    for each in (frozen, loaded):
        assert same(each(*x), expected)
        assert same(each.net(*x), expected)
        assert same([y[-1] for y in each.readouts(x)], expected)
        if timing == "step":
            steps = [each.step(tuple(step_of(part, t) for part in x)) for t in range(each.T)]
            assert same(steps[-1], expected)
            continue
        assert same(each.settle(x)[0], expected)
        now = x
        for k in (0, len(x) - 1):  # one of them changes
            other = tuple(part[torch.arange(len(part) - 1, -1, -1)] if n == k else None for n, part in enumerate(x))
            now = tuple(before if new is None else new for before, new in zip(now, other, strict=True))
            assert same(each.settle(other)[0], each(*now))
        assert int(each.settle()[1].max()) == 0
        *_, (last, _) = each.follow(x)
        assert same(last, expected)
    return frozen


MODES = [("direct", "direct"), ("direct", "events"), ("events", "zero_expand"), ("events", "events")]


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("modes", MODES, ids="-".join)
def test_two_inputs(modes, join, timing, tmp_path):
    net, x = Two(modes, timing, join=join), given(modes)
    net.train()
    for _ in range(2):
        net(*x)
    check(net.eval(), x, tmp_path, timing)


def random_inputs(seed):
    torch.manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), ()))]

    timing, T, size = pick("step", "window"), pick(1, 3, 8, 9), (pick(7, 8, 14), pick(6, 16))
    modes = tuple(pick("direct", "zero_expand", "events") for _ in range(pick(2, 3)))
    net = (Two if len(modes) == 2 else Three)(modes, timing, T, pick(True, False), pick(None, 4, 8))
    x = given(modes, T, pick(2, 5), size)
    net.train()
    net(*x)
    return net.eval(), x, timing


@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 400), marks=pytest.mark.slow)], ids=len)
def test_random_inputs(seeds, tmp_path):
    for seed in seeds:
        net, x, timing = random_inputs(seed)
        check(net, x, tmp_path, timing)


def test_training_and_measures(timing):
    net, x = Two(("direct", "events"), timing), given(("direct", "events"))
    sum((y * y).sum() for y in net(*x)).backward()
    assert all(branch.weight.grad.abs().sum() > 0 for branch in net.branches)
    net.eval()
    assert ts.measure.synops(net, x).layers.keys() >= {"branches.0", "branches.1"}
    assert set(ts.measure.firing_rates(net, x)) == {"branches.0", "branches.1", "body"}
    if timing == "window":
        assert ts.measure.synops(ts.freeze(net), [x, (x[0], None), (None, None)])[1:].sum() == 0
    ts.calibrate(net, [(*x, torch.zeros(3)), x])


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1), nn.Linear(8, 3)

    def forward(self, image, depth):
        both = torch.cat([torch.relu(self.a(image)), torch.relu(self.b(depth))], 1)
        return self.c(both.mean((2, 3)))


def test_currents_of_many_steps(tmp_path):
    """They run in pieces of eight steps, of spikes that come in, too."""
    modes = "events", "direct"
    net = trained(Two(modes, "step", T=20, join=False), *given(modes, T=20))
    check(net, given(modes, T=20), tmp_path, "step")


def test_converted(timing, tmp_path):
    ann, x = Joined().eval(), given(("direct", "direct"))
    snn = ts.convert(ann, T=8, data=[(*x, torch.zeros(3)), x], timing=timing)
    assert torch.equal(ts.to_ann(snn)(*x), ann(*x))
    frozen = ts.freeze(snn)
    assert frozen.shape == ((3, 7, 6), (2, 7, 6))
    assert frozen.why_slow is None
    assert torch.equal(frozen(*x), snn(*x))
    frozen.save(tmp_path / "net.tandem")
    assert torch.equal(ts.load(tmp_path / "net.tandem")(*x), snn(*x))
    assert frozen.anytime(x)[0].shape == (3, 3)
    with pytest.raises(ValueError, match="its forward takes image, depth: give `example`"):
        ts.convert(ann, T=8)


def test_exports(timing, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    modes = ("direct", "events") if timing == "window" else ("direct", "zero_expand")
    net, x = Two(modes, timing, join=False).eval(), given(modes)
    ts.to_onnx(ts.freeze(net), tmp_path / "net.onnx", x)
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    assert [i.name for i in session.get_inputs()][: 2 if timing == "window" else 3][-1] == "b"
    if timing == "window":
        found = session.run(
            ["answer.(0)", "answer.(1)"], {"x": x[0].numpy(), "b": x[1].to_dense(torch.float32).numpy()}
        )
        torch.testing.assert_close([*map(torch.from_numpy, found)], [*net(*x)], atol=1e-4, rtol=1e-4)
    pytest.importorskip("nir")
    with pytest.raises(ValueError, match="it has a second input, 'b'"):
        ts.to_nir(net, x)


def test_errors(timing):
    modes = ("direct", "events")
    net, x = Two(modes, timing).eval(), given(modes)
    frozen = ts.freeze(net, example=x)
    with pytest.raises(TypeError, match="example: the network takes 2 inputs, got 1"):
        ts.freeze(net, example=x[0])
    with pytest.raises((TypeError, ValueError), match="example: the network does not accept it: "):
        ts.freeze(net, example=x[::-1])
    with pytest.raises(TypeError, match=r"x: the network takes 2 inputs, got 1: call frozen\(x1, x2\)"):
        frozen(x)
    with pytest.raises(TypeError, match="x: the network has 2 inputs: expected a tuple of as many"):
        frozen.step(x[0])
    with pytest.raises(ValueError, match="a new stream has none yet that could stay"):
        frozen.step((x[0], None))
    with pytest.raises((TypeError, ValueError), match="x: the network takes a SpikeTrain"):
        frozen(x[0], x[0])
    with pytest.raises(ValueError, match="x: expected an image, got SpikeTrain"):
        frozen.step((x[1], x[1]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("events", ["planes", "counts"])
@pytest.mark.parametrize("first", ["pixels", "events"])
def test_pixels_and_events(first, events, timing, tmp_path):
    """Pixels are counts, whatever the form of the events, and what reads events reads them in its own timing."""
    modes = (first, "events" if first == "pixels" else "pixels")
    net = Two(modes, timing, T=9)
    net.branches[modes.index("pixels")].timing = net.body.timing = "window"
    x = list(given(("events", "events"), T=9, batch=8))
    at = modes.index("events")
    x[1 - at] = torch.randint(0, 256, x[1 - at].shape, dtype=torch.uint8)
    if events == "counts":
        x[at] = te.SpikeTrain.from_counts(x[at].counts.clone(), 9)
    frozen, expected = ts.freeze(trained(net, *x), example=tuple(x)), net(*x)
    assert frozen.why_slow is None
    frozen.save(tmp_path / "net.tandem")
    for each in (frozen, ts.load(tmp_path / "net.tandem")):
        assert same(each(*x), expected)
        assert same(each.net(*x), expected)


@pytest.mark.parametrize("move", [tnn.MaxPool2d(2), tnn.Upsample(scale_factor=2), tnn.Flatten()], ids=str)
def test_pixels_that_were_moved_run_layer_by_layer(move):
    product = (
        tnn.Linear(192, 8, timing="window") if isinstance(move, tnn.Flatten) else tnn.Conv2d(3, 8, 3, timing="window")
    )
    net = nn.Sequential(move, tnn.Encoder(4, "pixels"), product).eval()
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    means = nn.Identity() if isinstance(move, tnn.Flatten) else tnn.AdaptiveAvgPool2d(1)
    net.extend([means, tnn.Flatten(), tnn.Readout(8, 3)])
    frozen = ts.freeze(net, example=x)
    assert "1: it reads pixels that were moved or pooled: put it before that" in str(frozen.why_slow)
    assert torch.equal(frozen(x), net(x))


def test_spikes_of_two_inputs_that_are_joined_do_not_follow():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = tnn.Conv2d(4, 3, 1, timing="window"), tnn.ReadoutConv2d(3, 2, 1)

        def forward(self, a, b):
            return self.head(self.layer(te.cat([a, b], 1)))

    x = given(("events", "events"), channels=(2, 2))
    net = Early().eval()
    frozen = ts.freeze(net, T=6)
    assert torch.equal(frozen(*x), net(*x))
    with pytest.raises(ValueError, match="it joins spikes of two inputs"):
        frozen.settle(x)
