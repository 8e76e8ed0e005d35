"""Small networks of every layer with inputs for them, one trained on real images, and their spike counts."""

import io
from functools import partial
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import freeze, load, to_ann
from tandem_snn.nn import Neurons
from tandem_snn.nn.maximum import MaxPool
from tandem_snn.nn.signals import effective_counts


class Net(nn.Module):
    """Layers by name, and a forward that is a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def trained(net, *x):
    """A network whose batch norms have seen data, in evaluation mode."""
    net.train()
    for _ in range(3):
        net(*x)
    return net.eval()


def settled(net, x):
    """An ANN whose batch norms have seen data and are not the identity, in evaluation mode."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    net.train()
    with torch.no_grad():
        for _ in range(30):
            net(x)
    return net.eval()


def in_windows(net, every=""):
    """The same network, whose neurons, or those of every other layer, "even" or "odd", have timing "window".

    "own": all, and every other layer with synapses has its own T.
    """
    layers = [m for m in net.modules() if isinstance(m, (tnn.SpikingLayer, tnn.AvgPool2d, Neurons))]
    for layer in layers[every == "odd" :: 2 if every in ("even", "odd") else 1]:
        if hasattr(layer, "leak"):
            layer.leak = 1.0
        layer.timing = "window"
    for block in net.modules():
        if isinstance(block, tnn.Residual) and block.shortcut is not None:  # which has the timing of its neurons
            body, shortcut = ([m for m in path.modules() if hasattr(m, "timing")] for path in block.children())
            shortcut[-1].timing = body[-1].timing
    if every == "own":
        with_own_T(net, cycle([16, 3, 255]))
    return net


def with_own_T(net, windows):
    """The same network, of whose layers with timing "window" every other one has its own T, the next of these."""
    layers = [m for m in net.modules() if isinstance(m, tnn.SpikingLayer) and m.neurons and m.timing == "window"]
    for layer, T in zip(layers[::2], windows, strict=False):
        layer.T = T
    return net


def exported(net, *inputs, **options):
    """The network as a file of torch.export has it."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, inputs, **options), file)
    file.seek(0)
    return torch.export.load(file).module()


def mlp():
    net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(20, 50, norm=True), tnn.Linear(50, 33), tnn.Readout(33, 10))
    return net, torch.rand(6, 20)


def lif():
    first = tnn.Linear(20, 40, norm=True, leak=0.9, threshold=torch.rand(40) + 0.5, gain=1.0)
    second = tnn.Linear(40, 30, v_init=0.5, gate="clip")
    net = nn.Sequential(tnn.Encoder(T=12, mode="zero_expand"), first, second, tnn.Readout(30, 10, bias=False))
    return net, torch.rand(6, 20)


def conv():
    net = nn.Sequential(
        tnn.Encoder(T=8), tnn.Conv2d(1, 12, 3, padding=1, norm=True), tnn.MaxPool2d(3, 2, 1, ceil_mode=True),
        tnn.Conv2d(12, 24, 3, stride=2, padding=1, norm=True, groups=2, v_init=torch.rand(24, 5, 4)),
        tnn.AvgPool2d(2, v_init=0.5), tnn.Dropout(0.2), tnn.Flatten(), tnn.Linear(24 * 4, 40, norm=True),
        tnn.Readout(40, 10),
    )  # fmt: skip
    return net, torch.rand(5, 1, 17, 13)


def residual():
    net = nn.Sequential(
        tnn.Encoder(T=9), tnn.Conv2d(3, 16, 3, padding="same", norm=True),
        tnn.Residual(nn.Sequential(tnn.Conv2d(16, 16, 3, padding=1, norm=True), tnn.Conv2d(16, 16, 1))),
        tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(16, 10),
    )  # fmt: skip
    return net, torch.rand(5, 3, 8, 8)


def projection():
    body = nn.Sequential(
        tnn.Conv2d(8, 12, 3, stride=2, padding=1, norm=True), tnn.Conv2d(12, 12, 3, padding=1, norm=True, threshold=0.7)
    )
    learned = tnn.Conv2d(12, 9, 2, padding="same", dilation=3, threshold=torch.rand(9) + 0.5)
    net = nn.Sequential(
        tnn.Encoder(T=11), tnn.Conv2d(2, 8, 4, padding="same", norm=True),
        tnn.Residual(body, tnn.Conv2d(8, 12, 1, stride=2, norm=True)),
        tnn.Residual(nn.Sequential(learned), nn.Sequential(tnn.Conv2d(12, 12, 3, padding=1), tnn.Conv2d(12, 9, 1))),
        tnn.AvgPool2d(2, spiking=False), tnn.Flatten(), tnn.Readout(9 * 4 * 3, 10),
    )  # fmt: skip
    return net, torch.rand(5, 2, 16, 12)


def image_paths(mode="direct"):
    """Two synaptic paths from the image, the second time of pixels that were pooled."""
    body = nn.Sequential(tnn.Conv2d(2, 6, 3, padding=1, norm=True), tnn.Conv2d(6, 5, 3, padding=1))
    net = nn.Sequential(
        tnn.Encoder(T=10, mode=mode), tnn.MaxPool2d(2),
        tnn.Residual(body, tnn.Conv2d(2, 5, 2, padding="same", norm=True)), tnn.Residual(tnn.Conv2d(5, 5, 1)),
        tnn.Flatten(), tnn.Readout(60, 10),
    )  # fmt: skip
    return net, torch.rand(5, 2, 8, 6)


def line():
    layers = tnn.Conv1d(2, 9, 5, stride=2, norm=True), tnn.Conv1d(9, 8, 3, dilation=2, padding=1)
    return nn.Sequential(tnn.Encoder(T=3), *layers, tnn.Flatten(), tnn.Readout(8 * 8, 4)), torch.rand(4, 2, 23)


def average():
    net = nn.Sequential(
        tnn.AvgPool2d(2), tnn.Encoder(T=8, gain=0.5), tnn.Conv2d(1, 6, 3, padding=(2, 1), gain=0.5, threshold=0.5),
        tnn.AvgPool2d(3, 2, 1), tnn.Flatten(), tnn.Readout(6 * 12, 3),
    )  # fmt: skip
    return net, torch.rand(4, 1, 12, 10)


def few_bits():
    first = tnn.Linear(20, 40, norm=True, threshold=torch.rand(40) + 0.5)
    second = tnn.Linear(40, 30, v_init=torch.rand(30), gate="clip", threshold=0.3, weight_bits=5)
    third = tnn.Linear(30, 20, threshold=nn.Parameter(torch.rand(20) / 4 + 0.1))
    net = nn.Sequential(tnn.Encoder(12, "zero_expand"), first, second, third, tnn.Readout(20, 10))
    return net, 4 * torch.rand(6, 20)


def depthwise():
    body = nn.Sequential(tnn.Conv2d(16, 16, 3, padding=1, groups=16, norm=True), tnn.Conv2d(16, 16, 1, v_init=0.5))
    net = nn.Sequential(
        tnn.Encoder(T=8), tnn.Conv2d(2, 16, 3, padding="same", v_init=0.5), tnn.Residual(body), tnn.MaxPool2d(2),
        tnn.AvgPool2d(3, 1, 1, v_init=0.5), tnn.AdaptiveAvgPool2d(2), tnn.Flatten(), tnn.Readout(64, 5),
    )  # fmt: skip
    return net, torch.rand(4, 2, 9, 8)


def spiking():
    """A network of spikes in, some of whose layers have timing "window"."""
    torch.manual_seed(1)
    body = nn.Sequential(tnn.Conv1d(8, 8, 1, timing="window"), tnn.Conv1d(8, 8, 3, padding=1))
    return nn.Sequential(
        tnn.Conv1d(3, 8, 3, timing="window", v_init=0.5), tnn.Residual(body), tnn.Flatten(),
        tnn.Linear(8 * 7, 20, timing="window", v_init=0.75), tnn.Readout(20, 5),
    ).eval()  # fmt: skip


impulse_paths = partial(image_paths, "zero_expand")
NETWORKS = [mlp, conv, residual, projection, image_paths, impulse_paths, line, few_bits, depthwise]


def of_timing(make, T, every=""):
    """A network for T steps, with timing "window" as :func:`in_windows` gives it, in evaluation mode; and its input."""
    torch.manual_seed(0)
    net, x = make()
    for encoder in (m for m in net.modules() if isinstance(m, tnn.Encoder)):
        encoder.T = T
    return trained(in_windows(net, every), x), x


def block(**neuron):
    """A stem, an identity and a projection shortcut, pooling, and a linear layer with these options."""
    return nn.Sequential(
        tnn.Encoder(8), tnn.Conv2d(1, 4, 3, padding=1, norm=True, **neuron),
        tnn.Residual(tnn.Conv2d(4, 4, 3, padding=1, **neuron)),
        tnn.Residual(tnn.Conv2d(4, 6, 1, **neuron), tnn.Conv2d(4, 6, 1, norm=True)),
        tnn.AvgPool2d(2), tnn.Flatten(), tnn.Linear(24, 5, gate="clip", **neuron), tnn.Readout(5, 3),
    )  # fmt: skip


def shortcut(named):
    """A network with a residual that is given with its name, or without."""

    def forward(m, x):
        spikes = m.first(x=m.encoder(x))
        return m.readout(m.second(spikes, residual=spikes) if named else m.second(spikes, spikes))

    layers = {"first": tnn.Linear(6, 5), "second": tnn.Linear(5, 5), "readout": tnn.Readout(5, 3)}
    return Net(forward, encoder=tnn.Encoder(8), **layers)


def seen_by(net, x):
    """The first argument and the result of each module."""
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0] if args else None, y)}))
        for name, layer in net.named_modules()
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def own_trains(net, x):
    """The spikes of each layer with neurons, and the answer."""
    seen, kinds = seen_by(net, x), (tnn.SpikingLayer, tnn.AvgPool2d, Neurons)
    trains = [y for name, (_, y) in seen.items() if isinstance(net.get_submodule(name), kinds)]
    return [y for y in trains if isinstance(y, te.SpikeTrain)], seen[""][1]


def own_counts(net, x):
    """Spike counts of each layer with neurons, and the answer."""
    trains, answer = own_trains(net, x)
    return [train.counts for train in trains], answer


@torch.no_grad()
def assert_frozen_is(net, x, folder=None):
    """One program, its readouts, its stream and its file give the evaluation's bits; the frozen network."""
    events = isinstance(x, te.SpikeTrain)
    frozen, expected = freeze(net, T=x.T if events else None), net(x)
    assert torch.equal(frozen(x), expected)
    assert torch.equal(frozen.net(x), expected)
    assert all(program.refusal is None for program in frozen._programs.values())
    if folder is not None:
        frozen.save(folder / "net.tandem")
        assert torch.equal(load(folder / "net.tandem")(x), expected)
    if any(getattr(layer, "timing", "") == "window" for layer in net.modules()):  # at rest
        assert torch.equal(frozen.settle(x)[0], expected)
        assert torch.equal(frozen.readouts(x)[-1], expected)
        assert frozen.anytime(x)[0].shape == expected.shape
        return frozen
    steps = [frozen.step(step) for step in (x.to_dense() if events else [x] * (frozen.T or 0))]
    assert torch.equal(steps[-1], expected)
    assert torch.equal(frozen.readouts(x), torch.stack(steps))
    return frozen


def differing(ours, theirs):
    """Share of each layer's neurons whose count is another."""
    return [(c != other).double().mean().item() for c, other in zip(ours, theirs, strict=True)]


def images(number=200):
    """Handwritten digits, in sixteenths."""
    datasets = pytest.importorskip("sklearn.datasets")
    return torch.from_numpy(datasets.load_digits().images[:number]).float().unsqueeze(1) / 16


@torch.no_grad()
def dyadic(net):
    """Numbers whose sums are exact, and biases that let no potential meet its threshold, where simulators differ."""
    for module in net.modules():
        if isinstance(module, tnn.Encoder):
            module.gain *= module.T
        if isinstance(module, tnn.SpikingLayer) and module.threshold is None:
            module.threshold = 1.0
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.weight.copy_((module.weight * 128).round() / 64)
            if module.bias is not None:
                module.bias.copy_((module.bias * 64).round() / 64 + 2**-11)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randint(-4, 5, module.running_mean.shape) / 16)
            module.running_var.fill_(1 - module.eps)
            module.weight.fill_(1.5)
            module.bias.copy_(torch.randint(-4, 5, module.bias.shape) / 16 + 2**-10)
    return net.eval()


def network(T=8):
    """For handwritten digits."""
    torch.manual_seed(1)
    net = nn.Sequential(
        tnn.Encoder(T), tnn.Conv2d(1, 8, 3, padding=1, threshold=0.5),
        tnn.Conv2d(8, 12, 3, stride=2, padding="valid", groups=1, threshold=2.0, gain=1.0), tnn.Dropout(0.5),
        tnn.Flatten(), tnn.Linear(12 * 9, 32), tnn.Readout(32, 10),
    )  # fmt: skip
    return dyadic(net)


@torch.no_grad()
def meeting(net):
    """Weights in eighths and no biases: many a potential equals the threshold."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.copy_((module.weight * 16).round() / 8)
            module.bias = None if module.bias is None else nn.init.zeros_(module.bias)
    return net.eval()


@torch.no_grad()
def stepped(net, steps, names, call=None):
    """Counts of modules that ``names`` selects, by their first call, and summed answers of ``call`` or the network."""
    counts = {}

    def counting(name):
        def hook(_, __, y):
            counts[name] = counts.get(name, torch.zeros(())) + (y[0] if isinstance(y, tuple) else y)

        return hook

    hooks = [m.register_forward_hook(counting(n)) for n, m in net.named_modules() if names(n, m)]
    answer = torch.zeros(())
    for x in steps:
        y = (call or net)(x)
        answer = answer + (y[0] if isinstance(y, tuple) else y)
    for hook in hooks:
        hook.remove()
    return list(counts.values()), answer


def assert_same(ours, theirs, least=1):
    """Equal counts of every layer, of which some neuron has at least so many, and equal answers."""
    assert len(ours[0]) == len(theirs[0])
    for c, other in zip(ours[0], theirs[0], strict=True):
        assert c.max() >= least
        assert torch.equal(c, other)
    assert torch.equal(getattr(ours[1], "counts", ours[1]), theirs[1])


def check_frozen(net, x, tmp_path, timing, example=None):
    """Evaluation, one call, a file, and the stream have the same bits."""
    frozen = freeze(net, example=example)
    assert frozen.why_slow is None
    with torch.no_grad():
        expected = net(x)
    assert torch.equal(frozen(x), expected)
    frozen.save(tmp_path / "net.tandem")
    loaded = load(tmp_path / "net.tandem")
    assert torch.equal(loaded(x), expected)
    for each in (frozen, loaded):
        each.reset()
        if timing == "window":
            for frame in (x, x.flip(0), x):
                assert torch.equal(each.settle(frame)[0], each(frame))
        else:
            steps = [each.step(x) for _ in range(frozen.T)]
            assert torch.equal(steps[-1], expected)
            assert torch.equal(each.readouts(x), torch.stack(steps))
    return frozen


def at_the_counts(snn, x):
    """The ANN twin's answer with each activation's value, not its gradient, replaced by what the spikes are worth."""
    kinds = (tnn.SpikingLayer, tnn.AvgPool2d, tnn.MaxPool2d, MaxPool, Neurons)
    trains = {n: y for n, (_, y) in seen_by(snn, x).items() if isinstance(snn.get_submodule(n), kinds)}
    worth = {n: effective_counts(y).detach() for n, y in trains.items() if isinstance(y, te.SpikeTrain)}
    twin = to_ann(snn)

    def hook(layer, _, a, worth):
        return worth + (a - a.detach())

    named = [(m, worth[n]) for n, m in twin.named_modules() if n in worth]
    handles = [m.register_forward_hook(partial(hook, worth=value)) for m, value in named]
    answer = twin(x)
    for handle in handles:
        handle.remove()
    return answer


def by_onnxruntime(path, x):
    """Counts of each layer with neurons, and the answer after each step: of a window after the last one alone."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    facts, outputs = session.get_modelmeta().custom_metadata_map, [o.name for o in session.get_outputs()]
    images = isinstance(x, Tensor)
    dense = x if images else x.to_dense(torch.float32)
    if facts.get("timing") == "window":
        assert [i.name for i in session.get_inputs()] == ["x"]
        *counts, answer = (torch.from_numpy(found) for found in session.run(outputs, {"x": dense.numpy()}))
        assert outputs[-1] == "answer"
        return counts, [answer]
    assert (facts["input"] != "events") == images
    kept = [i for i in session.get_inputs() if i.name.endswith((".v", ".counts"))]
    state = {i.name: np.zeros([len(x), *i.shape[1:]], np.float32) for i in kept}
    by_name = {}
    answers = []
    for t in range(int(facts["T"])):
        given = {"x": (dense if images else dense[t]).numpy(), "step": np.array([t], np.float32), **state}
        found = dict(zip(outputs, session.run(outputs, given), strict=True))
        state = {name: found[f"{name}.next"] for name in state}
        for name in (name for name in outputs if name.endswith(".spikes")):
            by_name[name] = by_name.get(name, 0) + torch.from_numpy(found[name])
        answers.append(torch.from_numpy(found["answer"]))
    return list(by_name.values()), answers


def spikes(T=8, batch=7, gain=1.0):
    return te.SpikeTrain.from_dense(torch.rand(T, batch, 30).lt(0.4).float(), gain)


def spiking_net():
    torch.manual_seed(1)
    layers = tnn.Linear(30, 60, threshold=1.0), tnn.Linear(60, 20, threshold=1.0)  # for any T
    return nn.Sequential(*layers, tnn.Readout(20, 5)).eval()


def averaged():
    layers = tnn.Encoder(T=8), tnn.Conv2d(1, 4, 3), tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(4, 3)
    return nn.Sequential(*layers), torch.rand(2, 1, 6, 6)
