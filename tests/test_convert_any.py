"""convert on graphs of torch.export: any sum of linear maps of trains into neurons, by the fused or the general way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_convert import NETWORKS, Maker, settled
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import calibrate, convert, to_ann
from tandem_snn.nn.general import MaxPool, Neurons


class Net(nn.Module):
    """A stem with spikes, ``body``, and a head: what is between is any function of the module and the spikes."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], out: int, **modules: nn.Module) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        for name, module in modules.items():
            setattr(self, name, module)
        self.head = nn.Linear(out, 5)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        a = self.body(self, F.relu(self.bn(self.stem(x)))).relu()
        return self.head(a.mean([2, 3] if a.dim() == 4 else 2))


def conv(inputs: int = 8, outputs: int = 6, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


class Parameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(8, 1, 1) + 0.5), nn.Parameter(torch.randn(8, 1, 1) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale - self.shift


BODIES: dict[str, Callable[[], Net]] = {
    "transposed": lambda: Net(lambda m, a: m.up(a), 6, up=nn.ConvTranspose2d(8, 6, 3, 2, 1, groups=2)),
    "transposed alone": lambda: Net(lambda m, a: m.up(a), 6, up=nn.ConvTranspose2d(8, 6, 2, bias=False)),
    "volume": lambda: Net(lambda m, a: m.c(a.unsqueeze(1)).mean(2), 3, c=nn.Conv3d(1, 3, 3)),
    "line": lambda: Net(lambda m, a: m.c(a.flatten(2)).unflatten(2, (4, -1)), 4, c=nn.Conv1d(8, 4, 3, dilation=2)),
    "depthwise, pointwise": lambda: Net(
        lambda m, a: m.n(m.p(m.d(a))), 6, d=conv(8, 8, groups=8), p=conv(8, 6, 1), n=nn.BatchNorm2d(6)
    ),
    "batch norm of spikes": lambda: Net(lambda m, a: m.c(m.n(a)), 6, n=nn.BatchNorm2d(8), c=conv(padding=1)),
    "batch norm without gamma": lambda: Net(lambda m, a: m.n(m.c(a)), 6, c=conv(), n=nn.BatchNorm2d(6, affine=False)),
    "three branches": lambda: Net(
        lambda m, a: m.n(m.a(a)) + m.b(a) + m.i(a), 8, a=conv(8, 8, padding=1), n=nn.BatchNorm2d(8), b=conv(8, 8, 1),
        i=nn.BatchNorm2d(8),
    ),
    "two readers": lambda: Net(lambda m, a: F.relu(m.c(a)) + m.c(a), 6, c=conv()),
    "current read twice": lambda: Net(lambda m, a: (lambda z: m.d(F.relu(m.n(z))) + z)(m.c(a)), 6, c=conv(), d=conv(6, 6, 1),
                                      n=nn.BatchNorm2d(6)),
    "trains side by side": lambda: Net(
        lambda m, a: m.d(torch.cat([a, F.relu(m.c(a)), m.c(a)], 1)), 4, c=conv(padding=1), d=conv(20, 4)
    ),
    "shuffled": lambda: Net(
        lambda m, a: m.c(a.view(a.size(0), 2, 4, *a.shape[2:]).transpose(1, 2).reshape(a.shape).flip(3)), 6, c=conv()
    ),
    "split": lambda: Net(lambda m, a: m.c(a.chunk(2, 1)[1]) - a[:, :4, 1:-1, 1:-1], 4, c=conv(4, 4)),
    "pooled at the border": lambda: Net(
        lambda m, a: m.c(F.avg_pool2d(a, 3, 2, 1, ceil_mode=True, count_include_pad=False)), 6, c=conv()
    ),
    "averages of uneven windows": lambda: Net(lambda m, a: m.c(F.adaptive_avg_pool2d(a, 3)), 6, c=conv()),
    "pooled before the ReLU": lambda: Net(lambda m, a: F.avg_pool2d(m.c(a), 2), 6, c=conv()),
    "upsampled": lambda: Net(lambda m, a: m.c(F.interpolate(a, scale_factor=2)) + m.u(F.interpolate(a, scale_factor=2, mode="bilinear")),
                             6, c=conv(), u=conv()),
    "reflected": lambda: Net(lambda m, a: m.c(a), 6, c=conv(padding=1, padding_mode="reflect")),
    "padded": lambda: Net(lambda m, a: m.c(F.pad(a, (1, 0, 2, 1))) + m.c(F.pad(a, (1, 0, 2, 1), value=0.5)), 6, c=conv()),
    "permuted": lambda: Net(lambda m, a: m.l(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 7, l=nn.Linear(8, 7)),
    "scaled and shifted": lambda: Net(lambda m, a: m.c(2 * m.s(a) / 3), 6, s=Parameters(), c=conv()),
    "computed weight": lambda: Net(lambda m, a: F.conv2d(a, m.c.weight * 2, m.c.bias), 6, c=conv()),
    "parametrised": lambda: Net(lambda m, a: m.c(a), 6, c=nn.utils.parametrizations.weight_norm(conv())),
    "maximum of currents": lambda: Net(lambda m, a: m.d(F.max_pool2d(m.c(a), 3, 2, 1)), 4, c=conv(), d=conv(6, 4, 1)),
    "maximum of a line": lambda: Net(lambda m, a: m.c(F.max_pool1d(a.flatten(2), 2)), 4, c=nn.Conv1d(8, 4, 3)),
    "image and spikes": lambda: Net(lambda m, a: m.c(a) + 0.5, 6, c=conv()),
    "functional batch norm": lambda: Net(
        lambda m, a: F.batch_norm(m.c(a), m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias, m.training), 6,
        c=conv(), n=nn.BatchNorm2d(6),
    ),
}  # fmt: skip


def made(name: str) -> tuple[Net, Tensor]:
    net, x = BODIES[name](), torch.rand(6, 2, 8, 8)
    return settled(net, x), x  # type: ignore[return-value]


@pytest.mark.parametrize("name", BODIES)
def test_there_and_back(name: str) -> None:
    net, x = made(name)
    snn = convert(net, T=8, example=x[:1])
    torch.testing.assert_close(to_ann(snn)(x), net(x), rtol=1e-4, atol=1e-5)
    assert {id(p) for p in snn.parameters()} == {id(p) for p in net.parameters()}
    assert {n for n, _ in net.named_parameters() if n.endswith("weight")} - {n for n, _ in snn.named_parameters()} <= {
        n for n in dict(net.named_parameters()) if "bn." in n or "n." in n
    }


@pytest.mark.parametrize("name", BODIES)
def test_many_steps_approach_the_ann(name: str) -> None:
    net, x = made(name)
    errors = []
    with torch.no_grad():
        expected = net(x) - net.head.bias
        for T in (8, 200):
            snn = calibrate(convert(net, T, example=x[:1]), [x], percentile=100)
            errors.append(((snn(x) - net(x)).norm() / expected.norm()).item())
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3


def at_the_counts(net: nn.Module, snn: nn.Module, x: Tensor) -> Tensor:
    """The ANN's answer with each activation's value, not its gradient, replaced by what the spikes are worth."""
    worth: dict[str, Tensor] = {}
    kinds = (tnn.SpikingLayer, tnn.AvgPool2d, tnn.MaxPool2d, MaxPool, Neurons)

    def spikes(name: str) -> Any:
        def hook(_: object, __: object, y: object) -> None:
            if isinstance(y, te.SpikeTrain):
                worth[name] = (y.counts * y.gain).detach()

        return hook

    handles = [m.register_forward_hook(spikes(n)) for n, m in snn.named_modules() if isinstance(m, kinds)]
    snn(x)
    twin = to_ann(snn)

    def replaced(name: str) -> Any:
        return lambda layer, _, a: worth[name] + (a - a.detach())

    handles += [m.register_forward_hook(replaced(n)) for n, m in twin.named_modules() if n in worth]
    answer = twin(x)
    for handle in handles:
        handle.remove()
    return answer


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", BODIES)
def test_gradients_and_statistics_are_those_of_the_ann_branch(name: str, training: bool) -> None:
    net, x = made(name)
    snn = calibrate(convert(net, T=8, example=x[:1]), [x])
    net.train(training)
    snn.train(training)
    target = torch.randn_like(net(x))
    start = copy.deepcopy(net.state_dict())
    results = []
    for answer in (lambda: snn(x), lambda: at_the_counts(net, snn, x)):
        net.load_state_dict(start)
        net.zero_grad()
        if results and training:  # the statistics at the same counts: a pass of each moves them
            net.load_state_dict(start)
        y = answer()
        (y * target).sum().backward()
        results.append((y.detach(), {n: p.grad for n, p in net.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-3)
    for key, expected in results[1][1].items():
        scale = expected.abs().max().clamp_min(0.1)
        torch.testing.assert_close(results[0][1][key] / scale, expected / scale, atol=2e-3, rtol=1e-3, msg=key)


@pytest.mark.parametrize("make", NETWORKS)
def test_an_example_changes_nothing_where_none_is_needed(make: Maker) -> None:
    net, x = make()
    settled(net, x)
    plain, told = convert(net, T=7), convert(net, T=7, example=x[:1], max_pool="or")
    assert torch.equal(told(x), plain(x))
    assert torch.equal(to_ann(told)(x), net(x))
