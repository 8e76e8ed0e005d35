"""Every way to write maximum pooling converts like max_pool2d."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Net
from torch import Tensor, nn

import tandem_snn.nn as tnn
from tandem_snn import calibrate, convert, freeze, to_ann
from tandem_snn.convert import CannotConvert
from tandem_snn.nn.maximum import MaxPool

GLOBAL: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool2d": lambda a: F.max_pool2d(a, a.shape[2:]),
    "amax": lambda a: a.amax((2, 3), keepdim=True),
    "amax, flat": lambda a: a.amax((-1, -2))[:, :, None, None],
    "max": lambda a: a.max(3, keepdim=True).values.max(2, keepdim=True)[0],
    "adaptive": lambda a: F.adaptive_max_pool2d(a, 1),
}


def made(pool: Callable[[Tensor], Tensor], before: bool = False) -> tuple[Any, Tensor]:
    """A network with ``pool`` between two layers, after or before the ReLU."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a = torch.relu(pool(m.a(x))) if before else pool(torch.relu(m.a(x)))
        return m.c(torch.relu(m.b(a)).flatten(1))

    net = Net(forward, a=nn.Conv2d(2, 8, 3), b=nn.Conv2d(8, 6, 1), c=nn.Linear(6, 3))
    return net.eval(), torch.rand(6, 2, 8, 8)


@pytest.mark.parametrize("before", [False, True], ids=["", "before the ReLU"])
@pytest.mark.parametrize("timing", ["step", "window"])
def test_a_global_maximum_however_written(timing: str, before: bool) -> None:
    answers = []
    for pool in GLOBAL.values():
        torch.manual_seed(0)
        net, x = made(pool, before)
        snn = convert(net, T=64, example=x[:1], timing=timing, data=[x])
        assert torch.equal(to_ann(snn)(x), net(x))
        assert (snn(x) - net(x)).norm() < 0.05 * net(x).norm()
        answers.append(snn(x))
        snn(x).sum().backward()
        assert all(p.grad is not None for p in net.parameters())
    if not before:
        assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("name", ["amax", "max", "adaptive"])
def test_without_an_example_the_maximum_is_of_any_size(name: str) -> None:
    net, x = made(GLOBAL[name])
    snn = calibrate(convert(net, T=64, timing="window"), [x])
    for size in (8, 8), (5, 9):
        x = torch.rand(4, 2, *size)
        assert torch.equal(to_ann(snn)(x), net(x))
        assert (snn(x) - net(x)).norm() < 0.05 * net(x).norm()


@pytest.mark.parametrize("max_pool", ["exact", "or"])
def test_with_windows_maximum_pooling_is_a_layer(max_pool: str) -> None:
    """Of bursts the OR is the maximum, so it can be frozen."""
    layers = [nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1)]
    net, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).eval(), torch.rand(6, 2, 8, 8)
    snn = convert(net, T=64, example=x[:1], data=[x], max_pool=max_pool).eval()
    assert sum(isinstance(m, tnn.MaxPool2d) for m in snn.modules()) == 2
    frozen = freeze(snn)
    assert torch.equal(frozen(x), snn(x))
    assert (snn(x) - net(x)).norm() < 0.05 * net(x).norm()


@pytest.mark.parametrize("given", [True, False], ids=["an example", "none"])
def test_with_step_timing_maximum_pooling_is_exact_unless_told(given: bool) -> None:
    """Neurons of a pooling window that take turns make the count of the OR too large."""
    net, x = made(lambda a: F.max_pool2d(a, 2)[:, :, :1, :1])
    largest = []
    for max_pool in {}, {"max_pool": "or"}:
        snn = convert(net, T=64, example=x[:1] if given else None, timing="step", **max_pool)
        counts = []
        for name, module in snn.named_modules():
            if isinstance(module, (tnn.Conv2d, tnn.MaxPool2d, MaxPool)) and name != "b":
                module.register_forward_hook(lambda m, given, y, seen=counts: seen.append(y.counts))
        snn(x)
        largest.append(counts[1] - F.max_pool2d(counts[0], 2))
    assert not largest[0].any()
    assert largest[1].min() >= 0
    assert largest[1].any()


@pytest.mark.parametrize("timing", ["step", "window"])
def test_neurons_before_pooling_and_flattening_have_channels(timing: str) -> None:
    """Of currents that no layer computes: the neurons come first, then what stood before their ReLU."""
    net = Net(
        lambda m, x: m.c(torch.relu(F.max_pool2d(m.p(m.d(torch.relu(m.a(x)))), 2).flatten(1))),
        a=nn.Conv2d(2, 8, 3), d=nn.Conv2d(8, 8, 1, groups=8), p=nn.Conv2d(8, 6, 1), c=nn.Linear(54, 3),
    ).eval()  # fmt: skip
    x = torch.rand(6, 2, 8, 8)
    snn = convert(net, T=128, example=x[:1], timing=timing, data=[x])
    assert torch.equal(to_ann(snn)(x), net(x))
    assert (snn(x) - net(x)).norm() < 0.05 * net(x).norm()


def test_a_maximum_over_channels_is_of_currents() -> None:
    """Channels have thresholds of their own, so a spike of one is not worth one of another."""
    net = Net(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x)).amax(1, keepdim=True))).flatten(1)),
        a=nn.Conv2d(2, 8, 3), b=nn.Conv2d(1, 6, 6), c=nn.Linear(6, 3),
    ).eval()  # fmt: skip
    x = torch.rand(6, 2, 8, 8)
    for timing in "step", "window":
        snn = convert(net, T=128, example=x[:1], timing=timing, data=[x])
        assert torch.equal(to_ann(snn)(x), net(x))
        assert (snn(x) - net(x)).norm() < 0.05 * net(x).norm()


def test_a_maximum_over_the_batch_or_with_indices_is_refused() -> None:
    for pool, why in (
        (lambda a: a - a.amax(0, keepdim=True), "mixes the samples"),
        (lambda a: a - a.max(), "mixes the samples"),
        (lambda a: (lambda m: m.values + m.indices)(a.max(3, keepdim=True)), "indices"),
    ):
        net, x = made(pool)
        net.c = nn.Flatten()
        with pytest.raises(CannotConvert, match=rf"{why}"):
            convert(net, T=8, example=x[:1])
