"""Constants and maxima between spikes, however they are written: each step gets its part of a constant."""

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tandem_snn.nn as tnn
from tandem_snn import calibrate, convert, freeze, to_ann
from tandem_snn.convert import CannotConvert
from tandem_snn.nn.maximum import MaxPool

GLOBAL = {
    "max_pool2d": lambda a: F.max_pool2d(a, a.shape[2:]),
    "amax": lambda a: a.amax((2, 3), keepdim=True),
    "amax, flat": lambda a: a.amax((-1, -2))[:, :, None, None],
    "max": lambda a: a.max(3, keepdim=True).values.max(2, keepdim=True)[0],
    "adaptive": lambda a: F.adaptive_max_pool2d(a, 1),
}


def assert_approaches(snn, net, x):
    """The way back is the ANN, and many steps answer nearly as it does."""
    assert torch.equal(to_ann(snn)(x), net(x))
    assert (snn(x) - net(x)).norm() < 0.05 * net(x).norm()


def between(body, channels=8):
    """Spikes of eight channels, ``body`` on them, and a second layer of spikes."""

    def forward(m, x):
        return m.head(torch.relu(m.second(body(m, torch.relu(m.first(x)), x))).mean([2, 3]))

    layers = {"first": nn.Conv2d(2, 8, 3, padding=1), "second": nn.Conv2d(channels, 6, 3, padding=1)}
    net = networks.Net(forward, **layers, head=nn.Linear(6, 5))
    net.pos, net.gain = nn.Parameter(torch.randn(8, 8, 8)), nn.Parameter(torch.rand(8, 1, 1) + 0.5)
    net.register_buffer("coords", torch.rand(1, 2, 8, 8))
    return net.eval()


@pytest.mark.parametrize(("body", "channels"), [
    (lambda m, a, x: a + m.pos.expand_as(a), 8), (lambda m, a, x: a - m.pos.expand_as(a), 8),
    (lambda m, a, x: torch.cat([a, m.coords.expand_as(a[:, :2])], 1), 10), (lambda m, a, x: a * m.gain.expand_as(a), 8),
    (lambda m, a, x: a[:, :, :1].expand_as(a) + a, 8),
    (lambda m, a, x: a.mean([2, 3], keepdim=True).expand_as(a) - a / 3, 8),
    (lambda m, a, x: torch.cat([a, torch.ones_like(a[:, :2])], 1), 10),
    (lambda m, a, x: a - torch.full_like(a, 0.25) * m.gain, 8),
    (lambda m, a, x: a + a.new_full((a.size(0), 8, 1, 1), 0.5), 8),
    (lambda m, a, x: torch.cat([torch.zeros(a.size(0), 2, 8, 8) + 0.5, a], 1), 10),
    (lambda m, a, x: a + m.pos.repeat(a.size(0), 1, 1, 1), 8),
    (lambda m, a, x: a * m.gain.repeat(x.size(0), 1, 1, 1), 8),
    (lambda m, a, x: a / m.gain.repeat(x.size(0), 1, 1, 1), 8),
    (lambda m, a, x: torch.cat([a, m.coords.repeat(x.size(0), 1, 1, 1)], 1), 10),
    (lambda m, a, x: torch.cat([m.coords.expand(a.size(0), -1, -1, -1), a], 1), 10),
    (lambda m, a, x: a + torch.broadcast_to(m.pos, a.shape), 8),
    (lambda m, a, x: a + torch.arange(a.size(0)).view(-1, 1, 1, 1) * m.gain / 8, 8),
    (lambda m, a, x: torch.bmm(m.pos[0].expand(a.size(0), 8, 8), a.flatten(2)).unflatten(2, (8, 8)), 8),
])  # fmt: skip
def test_constants_enter_once_a_window(body, channels, timing):
    net, x = between(body, channels), torch.rand(6, 2, 8, 8)
    snn = convert(net, T=64, example=x[:1], timing=timing, data=[x])
    with torch.no_grad():
        torch.testing.assert_close(to_ann(snn)(x), net(x))
        for batch in x, x[:1]:
            assert (snn(batch) - net(batch)).norm() < 0.05 * (net(batch) - net.head.bias).norm()
    target = torch.randn(6, 5)
    gradients = []
    for each in snn, net:
        net.zero_grad()
        (each(x) * target).sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() < 0.2 * theirs.norm()


def tokens():
    def forward(m, x):
        a = torch.cat([m.token.expand(x.size(0), -1, -1), torch.relu(m.embed(x))], 1)
        return m.head(torch.relu(m.mix(a.transpose(1, 2)).transpose(1, 2))[:, 0])

    net = networks.Net(forward, embed=nn.Linear(6, 8), mix=nn.Linear(5, 5), head=nn.Linear(8, 3))
    net.token = nn.Parameter(torch.randn(1, 1, 8))
    return net, torch.rand(7, 4, 6)


@pytest.mark.parametrize(("index", "dim"), [
    (lambda m, a: a[:, m.order], 1), (lambda m, a: a[:, [3, 1, 7, 0, 2, 5, 4, 6]], 1),
    (lambda m, a: a[..., m.order], 3), (lambda m, a: a[:, :, m.order], 2),
])  # fmt: skip
def test_constant_indices_select(index, dim, timing):
    answers, x = [], torch.rand(6, 2, 8, 8)
    for body in (lambda m, a, x: index(m, a), lambda m, a, x: a.index_select(dim, m.order)):
        torch.manual_seed(0)
        net = between(body)
        net.register_buffer("order", torch.tensor([3, 1, 7, 0, 2, 5, 4, 6]))
        snn = convert(net, T=64, timing=timing, data=[x])
        assert_approaches(snn, net, x)
        answers.append(snn(x))
    assert torch.equal(*answers)


@pytest.mark.parametrize("index", [
    lambda m, a, x: a[[1, 0]], lambda m, a, x: a[:, [-1, *range(7)]], lambda m, a, x: a + a[:, [0], [1]].unsqueeze(2),
])  # fmt: skip
def test_other_indices_are_refused(index):
    with pytest.raises(CannotConvert, match="index"):
        convert(between(index), T=8, example=torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize("make", [
    tokens,
    # Over channels it is of currents: their thresholds differ, so a spike of one is not worth one of another.
    lambda: (networks.Net(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x)).amax(1, keepdim=True))).flatten(1)),
        a=nn.Conv2d(2, 8, 3), b=nn.Conv2d(1, 6, 6), c=nn.Linear(6, 3),
    ), torch.rand(6, 2, 8, 8)),
    # That no layer computes: the neurons come first, then what stood before their ReLU, and so have channels.
    lambda: (networks.Net(
        lambda m, x: m.c(torch.relu(F.max_pool2d(m.p(m.d(torch.relu(m.a(x)))), 2).flatten(1))),
        a=nn.Conv2d(2, 8, 3), d=nn.Conv2d(8, 8, 1, groups=8), p=nn.Conv2d(8, 6, 1), c=nn.Linear(54, 3),
    ), torch.rand(6, 2, 8, 8)),
])  # fmt: skip
def test_tokens_and_maxima_of_currents(make, timing):
    net, x = make()
    assert_approaches(convert(net.eval(), T=128, example=x[:1], timing=timing, data=[x]), net, x)


@pytest.mark.parametrize(("body", "node"), [
    (lambda m, a, x: a.reshape(-1, 1, 8, 8).expand(-1, 8, -1, -1), "'reshape'"),
    (lambda m, a, x: a.reshape(-1, 1, 8, 8).reshape(-1, 8, 8, 8) * 2, "'reshape'"),
    (lambda m, a, x: a.repeat(2, 1, 1, 1), "'repeat'"), (lambda m, a, x: a + x.mean(), "'mean'"),
    (lambda m, a, x: a + x.mean((0, 1), keepdim=True), "'mean'"), (lambda m, a, x: a - a.mean(), "'mean'"),
    (lambda m, a, x: a - a.amax(0, keepdim=True), "'amax'"), (lambda m, a, x: a - a.max(), "'max_1'"),
    (lambda m, a, x: a + a.flip(0), "'flip'"), (lambda m, a, x: a + a.roll(1, 0), "'roll'"),
    (lambda m, a, x: a + a.roll(1), "'roll'"), (lambda m, a, x: a.cumsum(0), "'cumsum'"),
    (lambda m, a, x: a.index_select(0, torch.arange(a.size(0) - 1, -1, -1)), "'index_select'"),
    (lambda m, a, x: (torch.ones(a.size(0), a.size(0)) @ a.flatten(1)).view_as(a), "'matmul'"),
])  # fmt: skip
def test_what_mixes_the_samples_is_refused_with_its_line(body, node, timing):
    with pytest.raises(CannotConvert, match=rf"node {node} .*test_convert_nodes.py:\d+: .*mixes the samples"):
        convert(between(body), T=8, example=torch.rand(1, 2, 8, 8), timing=timing)


@pytest.mark.parametrize("body", [
    lambda a: torch.stack([a, a.flip(-1)]).mean(0).mean((2, 3)),
    lambda a: torch.cat([a, a.flip(-1)]).mean((2, 3)),
    lambda a: a.flip(0).mean((2, 3)),
    lambda a: (a + a.roll(1, 0)).mean((2, 3)),
])  # fmt: skip
@pytest.mark.parametrize("batch", [2, 4])
def test_behind_the_neurons_samples_are_mixed_as_the_ann_does(body, batch, timing):
    """Also NaN stays where it is in the ANN."""
    net = networks.Net(lambda m, x: m.h(body(torch.relu(m.a(x)))), a=nn.Conv2d(3, 16, 3), h=nn.Linear(16, 3)).eval()
    x = torch.rand(batch, 3, 9, 8)
    snn = convert(net, T=128, data=[x], timing=timing).eval()
    assert_approaches(snn, net, x)
    x[0, 0, 4, 4] = torch.nan
    assert torch.equal(snn(x).isnan(), net(x).isnan())


def test_a_fixed_batch_is_refused_with_its_line():
    """``len`` makes a number of the size of the batch."""
    net = between(lambda m, a, x: a + m.pos.repeat(len(a), 1, 1, 1))
    message = r"fixes the size of the batch.*len\(x\).*x\.shape\[0\]; test_convert_nodes.py:\d+: .*repeat\(len\(a\)"
    with pytest.raises(CannotConvert, match=message):
        convert(net, T=8, example=torch.rand(1, 2, 8, 8))


def made(pool, before=False):
    def forward(m, x):
        a = torch.relu(pool(m.a(x))) if before else pool(torch.relu(m.a(x)))
        return m.c(torch.relu(m.b(a)).flatten(1))

    net = networks.Net(forward, a=nn.Conv2d(2, 8, 3), b=nn.Conv2d(8, 6, 1), c=nn.Linear(6, 3))
    return net.eval(), torch.rand(6, 2, 8, 8)


@pytest.mark.parametrize("before", [False, True], ids=["", "before the ReLU"])
def test_a_global_maximum_however_written(timing, before):
    answers = []
    for pool in GLOBAL.values():
        torch.manual_seed(0)
        net, x = made(pool, before)
        snn = convert(net, T=64, example=x[:1], timing=timing, data=[x])
        assert_approaches(snn, net, x)
        answers.append(snn(x))
        snn(x).sum().backward()
        assert all(p.grad is not None for p in net.parameters())
    if not before:
        assert all(torch.equal(answer, answers[0]) for answer in answers)


def shifted():
    layers = {"a": nn.Conv2d(2, 4, 3), "b": nn.Conv2d(4, 3, 3)}
    read = lambda m, a: torch.relu(m.b(a + m.shift.expand_as(a))).mean([2, 3])  # noqa: E731
    net = networks.Net(lambda m, x: read(m, torch.relu(m.a(x))), **layers)
    net.shift = nn.Parameter(torch.randn(4, 1, 1))
    return net.eval(), (11, 7)


def pooled():
    """In windows that depend on the size."""
    layers = nn.Conv2d(2, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(8, 3)).eval(), (11, 20)


@pytest.mark.parametrize("make", [shifted, pooled, *(lambda p=p: (made(p)[0], (5, 9)) for p in [*GLOBAL.values()][1:])])
def test_where_no_size_is_given_none_is_taken_for_granted(make):
    net, other = make()
    snn = calibrate(convert(net, T=255), [torch.rand(4, 2, 17, 17)], percentile=100)
    for size in (17, 17), other:
        x = torch.rand(4, 2, *size)
        assert_approaches(snn, net, x)
        torch.testing.assert_close(snn(x), net(x), atol=0.02, rtol=0.02)
    if make is pooled:  # the windows are those of each image, or with an example those of a layer
        assert snn.meta["ways"]["4"] == "fused: linear"
        assert convert(net, T=255, example=torch.rand(1, 2, 17, 17)).meta["ways"]["4"] == "fused: linear"


def test_with_windows_maximum_pooling_is_a_layer():
    """Of bursts the OR is the maximum, so it can be frozen."""
    layers = [nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1)]
    net, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).eval(), torch.rand(6, 2, 8, 8)
    snn = convert(net, T=64, example=x[:1], data=[x]).eval()
    assert sum(isinstance(m, tnn.MaxPool2d) for m in snn.modules()) == 2
    assert torch.equal(freeze(snn)(x), snn(x))
    assert_approaches(snn, net, x)


@pytest.mark.parametrize("given", [True, False], ids=["an example", "none"])
def test_with_step_timing_maximum_pooling_is_exact_unless_replaced(given):
    """Neurons of a pooling patch that take turns make the count of the OR too large."""
    net, x = made(lambda a: F.max_pool2d(a, 2)[:, :, :1, :1])
    largest = []
    for by_or in False, True:
        snn = convert(net, T=64, example=x[:1] if given else None, timing="step")
        for name, module in list(snn.named_modules()):
            if by_or and isinstance(module, MaxPool):
                setattr(snn, name, tnn.MaxPool2d(2))
        counts = []
        for name, module in snn.named_modules():
            if isinstance(module, (tnn.Conv2d, tnn.MaxPool2d, MaxPool)) and name != "b":
                module.register_forward_hook(lambda m, given, y, seen=counts: seen.append(y.counts))
        snn(x)
        largest.append(counts[1] - F.max_pool2d(counts[0], 2))
    assert not largest[0].any()
    assert largest[1].min() >= 0
    assert largest[1].any()


@pytest.mark.kernels
@pytest.mark.parametrize("size", [(3, 5), 4, (1, 2)])
@pytest.mark.parametrize("before", [True, False])
def test_adaptive_maxima(size, before, timing, tmp_path):
    """Of spikes, and of currents before the neurons."""

    def forward(m, x):
        x = m.first(x)
        x = F.adaptive_max_pool2d(x, size).relu() if before else m.pool(x.relu())
        return m.head(F.adaptive_max_pool2d(torch.relu(m.second(x)), 2).flatten(1))

    layers = {"first": nn.Conv2d(2, 8, 3, padding=1), "second": nn.Conv2d(8, 6, 3, padding=1)}
    net = networks.Net(forward, **layers, pool=nn.AdaptiveMaxPool2d(size), head=nn.Linear(24, 5)).eval()
    if size == (1, 2):
        net.second = nn.Conv2d(8, 6, 3, padding=2)
    x = torch.randn(5, 2, 8, 7)
    snn = calibrate(convert(net, T=200, example=x, timing=timing), [x])
    assert_approaches(snn, net, x)
    if timing == "window":
        networks.check_frozen(snn, x, tmp_path, timing)
