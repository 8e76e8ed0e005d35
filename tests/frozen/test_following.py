"""Neurons that follow their input: a stream of a network with window timing comes to rest in the network's answer."""

import random
from functools import partial

import pytest
import torch
from networks import NETWORKS, average, image_paths, meeting, of_timing, spiking
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.lowering import lower

SEEDS = 200  # of 1,000 that were tried


class Drawn:
    """A network of random layers with window timing, and random inputs for it."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.random = random.Random(seed)
        pick = self.random.choice
        self.mode = pick(["direct", "direct", "zero_expand", "pixels", "events", "events"])
        self.T = pick([1, 2, 3, 4, 8, 9, 17, 60, 255])
        self.channels, self.size, self.batch = pick([1, 2, 3, 5]), pick([1, 4, 6, 9]), pick([1, 1, 2, 3])
        self.shape = (self.channels, self.size, self.size)
        bits = pick([None, None, None, 8, 4, 2])
        layers = []
        if self.mode != "events":
            layers.append(tnn.Encoder(self.T, self.mode, gain=pick([1.0, 1 / self.T])))
        if self.size > 1 and pick([False, False, True]):
            layers.append(self.move(tnn.MaxPool2d(2)))
        layers += [self.layer(first=number == 0) for number in range(pick([1, 2, 3]))]
        if pick([False, True]):
            layers += [tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(self.channels, 3)]
        else:
            features, n = self.channels * self.size**2, pick([1, 7, 40])
            layers += [tnn.Flatten(), tnn.Linear(features, n, **self.neuron(n)), tnn.Readout(n, 3)]
        self.net = nn.Sequential(*layers)
        with torch.no_grad():
            self.net.train()
            for _ in range(2):
                self.net(self.input(4))
        for layer in self.net.modules():  # scales of any sign, and zero
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and pick([False, True]):
                layer.weight.data.mul_(torch.randint(-1, 2, layer.weight.shape) * 1.5)
        self.net = self.net.eval()
        self.frozen = ts.freeze(self.net, weight_bits=bits, T=self.T)

    def neuron(self, channels):
        """Options of neurons."""
        pick = self.random.choice
        threshold = pick([None, 0.1, 0.3, 1.0, torch.rand(channels) + 0.2])
        v_init = pick([None, 0.0, 0.5, -0.25, torch.rand(channels) - 0.3])
        T = pick([None, None, None, 1, 2, 8, 16, 255])
        return {"timing": "window", "threshold": threshold, "v_init": v_init, "norm": pick([False, True]), "T": T}

    def move(self, layer):
        self.size //= 2
        return layer

    def layer(self, first):
        pick, channels = self.random.choice, self.channels
        kind = pick(["conv", "conv", "grouped", "depthwise", "identity", "projection", "max", "average"])
        if (kind in ("max", "average") and self.size < 2) or (kind in ("max", "average", "identity") and first):
            kind = "conv"
        if kind == "max":
            return self.move(tnn.MaxPool2d(2, 2)) if pick([False, True]) else tnn.MaxPool2d(3, 1, 1)
        if kind == "average":
            return self.move(tnn.AvgPool2d(2, timing="window", v_init=pick([0.0, 0.5])))
        groups = {"grouped": pick([2, 3]), "depthwise": channels}.get(kind, 1)
        outputs = pick([groups, 2 * groups, 4 * groups, 33 * groups]) if kind != "identity" else channels
        if channels % groups:
            groups, outputs = 1, pick([3, 20])

        def conv(inputs, outputs, k, groups=1, dilation=1):
            padding = k // 2 if dilation == 1 and k % 2 and pick([False, True]) else "same"
            window = {"padding": padding, "groups": groups, "dilation": dilation}
            return tnn.Conv2d(inputs, outputs, k, **window, **self.neuron(outputs))

        if kind == "identity":
            return tnn.Residual(nn.Sequential(conv(channels, 4, 3), conv(4, channels, pick([1, 3]))))
        self.channels = outputs
        if kind == "projection":
            return tnn.Residual(conv(channels, outputs, 3), tnn.Conv2d(channels, outputs, 1, timing="window"))
        k, dilation = pick([1, 2, 3]), pick([1, 1, 2])
        return conv(channels, outputs, k, groups, dilation=dilation)

    def input(self, batch=0):
        """Images, or trains of T steps."""
        shape = (batch or self.batch, *self.shape)
        if self.mode == "pixels":
            return torch.randint(self.random.choice([1, 2, 256]), shape, dtype=torch.uint8)
        if self.mode == "events":
            return te.SpikeTrain.from_dense((torch.rand(self.T, *shape) < self.random.choice([0.0, 0.1, 0.5])).float())
        return torch.randn(shape) * self.random.choice([0.0, 0.5, 2.0])


def window(steps, T):
    """The train of the last T steps."""
    before = [torch.zeros_like(steps[0])] * T
    return te.SpikeTrain.from_dense(torch.stack([*before, *steps][-T:]))


@pytest.mark.parametrize("seeds", range(10))
def test_at_rest_is_the_answer_of_the_window(seeds):
    """Whatever came before, and wherever it was interrupted."""
    for seed in range(seeds * SEEDS // 10, (seeds + 1) * SEEDS // 10):
        drawn = Drawn(seed)
        frozen, pick = drawn.frozen, drawn.random.choice
        for _ in range(3):
            x = drawn.input()
            for _ in range(pick([0, 0, 1, 2])):  # interrupted
                frozen.settle(drawn.input(), steps=pick([1, 2, 5]))
            answer, steps = frozen.settle(x)
            expected = frozen(x)
            assert torch.equal(answer, expected), seed
            assert torch.equal(frozen.step(), expected), seed
            assert not frozen.moved.any()
            layers = len(frozen._stream.program.layers.stages) + 1
            longest = max(getattr(layer, "T", None) or 1 for layer in drawn.net.modules())
            assert steps.max() <= layers * max(longest, drawn.T)


@pytest.mark.parametrize("seed", range(12))
def test_a_stream_of_events_follows_the_last_steps(seed):
    drawn = next(d for d in map(Drawn, range(seed * 50, seed * 50 + 50)) if d.mode == "events")
    frozen, steps = drawn.frozen, []
    for _ in range(2 * min(drawn.T, 20)):
        steps.append((torch.rand(drawn.batch, *drawn.shape) < 0.3).float())
        if drawn.random.random() < 0.5:
            frozen.step(steps[-1])
        else:
            assert torch.equal(frozen.settle(steps[-1])[0], frozen(window(steps, drawn.T)))
    x = drawn.input()
    frozen.settle(x, steps=1)  # a whole window, interrupted by a step
    steps = [*x.to_dense(torch.float32), steps[0]]
    train = te.SpikeTrain.from_dense(steps[-1].unsqueeze(0))
    assert torch.equal(frozen.settle(train)[0], frozen(window(steps, drawn.T)))


def followed(frozen, x):
    """A simulation in which each target is the count that the layer has for the present counts: (readout, moves)."""
    stages = lower(frozen.net, T=frozen.T, shapes=[x.shape[1:]])
    counts = {}
    signal = stages.signal(x, stages.mode)
    while True:
        values = {-1: None, -2: signal}
        moves = {}
        for number, stage in enumerate(stages.stages):
            i = stage.instruction
            y = stage(values[i.input], values[i.residual])
            if i.kind == "popcount" or (i.kind in ("layer", "average") and isinstance(y, te.SpikeTrain)):
                target = y.stored[0].int()
                before = counts.get(number, torch.zeros_like(target))
                if stages.mode == "pixels" and i.kind == "popcount":  # which jump
                    counts[number] = target
                else:
                    move = (target - before).sign()
                    counts[number] = before + move
                    moves["input" if i.kind == "popcount" else stage.name] = move.to(torch.int8)
                y = y.replace(stored=counts[number].to(torch.uint8).unsqueeze(0), counts=None)
            values[number] = y
        yield y, moves


def spikes():
    return spiking(), te.SpikeTrain.from_dense(torch.rand(8, 3, 3, 9).lt(0.4).float())


def pixels(mean=None):
    """Pixels that are read, pooled and flattened, with a mean also followed by its channels."""
    net, x = image_paths("pixels")
    net[0] = tnn.Encoder(10, "pixels", mean=mean, std=0.5)
    return net, (255 * x).byte()


def flat_pixels():
    net = nn.Sequential(tnn.Encoder(10, "pixels"), tnn.Flatten(), tnn.Linear(60, 20), tnn.Readout(20, 5))
    return net, torch.randint(256, (4, 3, 5, 4), dtype=torch.uint8)


@pytest.mark.parametrize(("T", "every"), [(1, ""), (2, "own"), (8, ""), (8, "own"), (200, "")])
@pytest.mark.parametrize("make", [*NETWORKS, average, spikes, pixels, partial(pixels, 0.3), flat_pixels])
@torch.no_grad()
def test_every_step(make, T, every):
    """In each step exactly the neurons whose count differs from its target move, by one."""
    net, x = of_timing(make, T, every)
    frozen = ts.freeze(net, T=x.T if make is spikes else None, example=x)
    both = zip(frozen.follow(x), followed(frozen, x), range(30), strict=False)
    for (answer, moves), (expected, expected_moves), _ in both:
        assert moves.keys() == expected_moves.keys()
        for name, move in moves.items():
            assert torch.equal(move, expected_moves[name]), name
        assert torch.equal(answer, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference(dtype):
    """Its sums, weights times moves, are those of its counts; at rest it has the counts of the window layers."""
    torch.manual_seed(0)
    T, first, second = 8, torch.randint(-32, 33, (3, 2, 3, 3)) / 64, torch.randint(-32, 33, (4, 3 * 16)) / 64
    first, second = first.to(dtype), second.to(dtype)
    a, b = torch.zeros(2, 3, 4, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    present, u = torch.zeros(2, 2, 4, 4, dtype=torch.int64), torch.zeros(2, 3, 4, 4, dtype=torch.int64)
    options = {"v_init": 0.5, "scale": torch.tensor([1.0, -1.0, 0.3], dtype=dtype)}
    for target in torch.randint(0, T + 1, (3, 2, 2, 4, 4)):
        for _ in range(40):
            move = (target - present).sign()
            present = present + move
            u += nn.functional.conv2d(move.double(), 64 * first.double(), padding=1).long()
            assert torch.equal(u, nn.functional.conv2d(present.double(), 64 * first.double(), padding=1).long())
            x = te.SpikeTrain.from_counts(present, T)
            a, _ = te.reference.follow_if(x, first, a, 1, 1, **options)
            b, moved = te.reference.follow_if(te.SpikeTrain.from_counts(a.flatten(1), T), second, b, v_init=0.5)
        assert not moved.any()
        rest = te.functional.conv2d_if(x, first, padding=1, timing="window", **options)
        assert torch.equal(rest.stored[0].long(), a)
        rest = te.functional.linear_if(
            rest.replace(stored=rest.stored.flatten(2), counts=None), second, v_init=0.5, timing="window"
        )
        assert torch.equal(rest.stored[0].long(), b)


@pytest.mark.parametrize("T", [1, 4, 7])
def test_windows_simulated_step_by_step(T):
    """A network with window timing is a spiking network: each layer integrates the spikes of a window while it fires
    those of the window before, so that images follow each other like products in a pipeline.
    """
    window = {"timing": "window", "bias": False, "v_init": 0.5, "threshold": 1.0}
    layers = [tnn.Conv2d(1, 4, 3, padding=1, **window), tnn.Conv2d(4, 3, 2, stride=2, **window)]
    layers += [tnn.Linear(12, 9, **window), tnn.Readout(9, 3)]
    net = meeting(nn.Sequential(tnn.Encoder(T, gain=T), *layers[:2], tnn.Flatten(), *layers[2:]))
    frozen, images = ts.freeze(net), torch.randint(-4, 5, (5, 2, 1, 4, 4)) / 8
    currents = [
        lambda s: nn.functional.conv2d(s, layers[0].weight, padding=1),
        lambda s: nn.functional.conv2d(s, layers[1].weight, stride=2),
        lambda s: s.flatten(1) @ layers[2].weight.T,
        lambda s: s @ layers[3].weight.T,
    ]
    gathered = [torch.zeros(())] * 4  # in this window
    potentials = [torch.zeros(())] * 4  # of the window before
    answers = []
    with torch.no_grad():
        for time in range((len(images) + 3) * T):
            signal = images[min(time // T, len(images) - 1)]
            for number, current in enumerate(currents):
                if time % T == 0:
                    potentials[number], gathered[number] = gathered[number] + 0.5, torch.zeros(())
                gathered[number] = gathered[number] + current(signal)
                signal = (potentials[number] >= 1).float().expand(gathered[number].shape)
                potentials[number] = potentials[number] - signal
            if time % T == T - 1:
                answers.append(gathered[-1])
        for image, answer in zip(images, answers[3:], strict=True):
            assert torch.equal(answer, frozen(image))


@pytest.mark.clients
def test_spikingjelly_fires_the_same_moves():
    """Its STBIFNode with levels 0 to T: the accumulated spikes are the counts at every step of a stream."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    T, options = 4, {"timing": "window", "bias": False, "v_init": 0.5, "threshold": 1.0}
    first, second, readout = tnn.Linear(12, 30, **options), tnn.Linear(30, 20, **options), tnn.Readout(20, 3)
    frozen = ts.freeze(meeting(nn.Sequential(first, second, readout)), T=T)
    nodes = [neuron.STBIFNode(1.0, level=T + 1) for _ in range(2)]
    count, moves = torch.zeros(5, 12), 0
    with torch.no_grad():
        for _ in range(6):
            train = te.SpikeTrain.from_dense(torch.rand(T, 5, 12).lt(0.5).float())
            for step in range(7):  # not always to rest
                answer = frozen.step(train if step == 0 else None)
                spikes = (train.counts - count).sign()
                count += spikes
                moved = spikes.abs().sum(1)
                for node, layer in zip(nodes, (first, second), strict=True):
                    spikes = node(spikes @ layer.weight.T)
                    moved += spikes.abs().sum(1)
                assert torch.equal(answer, nodes[-1].accumulated @ readout.weight.T)
                assert torch.equal(frozen.moved, moved.long())
                moves += int((spikes < 0).sum())
    assert moves > 0  # spikes are taken back


def test_a_stream_that_begins_again_keeps_its_memory():
    net = nn.Sequential(tnn.Encoder(4), tnn.Linear(6, 8, timing="window"), tnn.Readout(8, 3)).eval()
    frozen, first, second = ts.freeze(net), torch.randn(2, 6), torch.randn(2, 6)
    frozen.settle(first)
    memory = frozen._stream._state.data_ptr()
    frozen.reset()
    assert not len(frozen.moved)
    with pytest.raises(ValueError, match="x: expected an input"):
        frozen.step()
    readouts = torch.stack([frozen.step(second), frozen.step(), frozen.step()])
    assert frozen._stream._state.data_ptr() == memory
    assert torch.equal(readouts, frozen.readouts(second, steps=3))
    frozen.reset()
    assert torch.equal(frozen.settle(second[:1])[0], frozen(second[:1]))  # another batch
