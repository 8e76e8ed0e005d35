"""Constants between spikes: what a pre-activation gets once, each step gets in part, whatever gave them their shape."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tandem_snn import calibrate, convert, to_ann
from tandem_snn.convert import CannotConvert


class Net(nn.Module):
    """Spikes of eight channels, ``body`` on them, and a second layer of spikes."""

    def __init__(self, body: Callable[[Any, Tensor, Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(channels, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.pos, self.gain = nn.Parameter(torch.randn(8, 8, 8)), nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("coords", torch.rand(1, 2, 8, 8))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(self.body(self, a, x))).mean([2, 3]))


CONSTANTS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], int]] = {
    "sum with expand_as": (lambda m, a, x: a + m.pos.expand_as(a), 8),
    "difference with expand_as": (lambda m, a, x: a - m.pos.expand_as(a), 8),
    "cat with expand_as": (lambda m, a, x: torch.cat([a, m.coords.expand_as(a[:, :2])], 1), 10),
    "product with expand_as": (lambda m, a, x: a * m.gain.expand_as(a), 8),
    "spikes expanded as spikes": (lambda m, a, x: a[:, :, :1].expand_as(a) + a, 8),
    "currents expanded as spikes": (lambda m, a, x: a.mean([2, 3], keepdim=True).expand_as(a) - a / 3, 8),
    "ones_like": (lambda m, a, x: torch.cat([a, torch.ones_like(a[:, :2])], 1), 10),
    "full_like": (lambda m, a, x: a - torch.full_like(a, 0.25) * m.gain, 8),
    "new_full": (lambda m, a, x: a + a.new_full((a.size(0), 8, 1, 1), 0.5), 8),
    "zeros": (lambda m, a, x: torch.cat([torch.zeros(a.size(0), 2, 8, 8) + 0.5, a], 1), 10),
    "sum with repeat": (lambda m, a, x: a + m.pos.repeat(a.size(0), 1, 1, 1), 8),
    "product with repeat": (lambda m, a, x: a * m.gain.repeat(x.size(0), 1, 1, 1), 8),
    "quotient with repeat": (lambda m, a, x: a / m.gain.repeat(x.size(0), 1, 1, 1), 8),
    "cat with repeat": (lambda m, a, x: torch.cat([a, m.coords.repeat(x.size(0), 1, 1, 1)], 1), 10),
    "cat with expand": (lambda m, a, x: torch.cat([m.coords.expand(a.size(0), -1, -1, -1), a], 1), 10),
    "broadcast_to": (lambda m, a, x: a + torch.broadcast_to(m.pos, a.shape), 8),
    "a constant of its own for each sample": (
        lambda m, a, x: a + torch.arange(a.size(0)).view(-1, 1, 1, 1) * m.gain / 8, 8,
    ),
    "a batch of matrices": (
        lambda m, a, x: torch.bmm(m.pos[0].expand(a.size(0), 8, 8), a.flatten(2)).unflatten(2, (8, 8)), 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_enter_once_a_window(name: str, timing: str) -> None:
    net, x = Net(*CONSTANTS[name]).eval(), torch.rand(6, 2, 8, 8)
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


def test_a_class_token_is_a_constant() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.embed = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(6, 8)
            self.mix, self.head = nn.Linear(5, 5), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            a = torch.cat([self.token.expand(x.size(0), -1, -1), torch.relu(self.embed(x))], 1)
            return self.head(torch.relu(self.mix(a.transpose(1, 2)).transpose(1, 2))[:, 0])

    net, x = Tokens().eval(), torch.rand(7, 4, 6)
    for timing in "step", "window":
        snn = convert(net, T=128, example=x[:1], timing=timing, data=[x])
        assert torch.equal(to_ann(snn)(x), net(x))
        assert (snn(x) - net(x)).norm() < 0.05 * net(x).norm()


def test_shapes_of_images_of_any_size() -> None:
    """Without an example there is no size that a constant could be fixed to."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.shift = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3), nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            a = torch.relu(self.a(x))
            return torch.relu(self.b(a + self.shift.expand_as(a))).mean([2, 3])

    net = Shifted().eval()
    snn = calibrate(convert(net, T=255, timing="window"), [torch.rand(4, 1, 9, 12)])
    for size in (9, 12), (11, 7):
        x = torch.rand(3, 1, *size)
        assert torch.equal(to_ann(snn)(x), net(x))
        torch.testing.assert_close(snn(x), net(x), atol=0.02, rtol=0.02)


MIXED: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], str]] = {
    "other samples": (lambda m, a, x: a.reshape(-1, 1, 8, 8).expand(-1, 8, -1, -1), "'reshape'"),
    "other samples and back": (lambda m, a, x: a.reshape(-1, 1, 8, 8).reshape(-1, 8, 8, 8) * 2, "'reshape'"),
    "repeated samples": (lambda m, a, x: a.repeat(2, 1, 1, 1), "'repeat'"),
    "mean of the images": (lambda m, a, x: a + x.mean(), "'mean'"),
    "mean image": (lambda m, a, x: a + x.mean((0, 1), keepdim=True), "'mean'"),
    "mean of the spikes": (lambda m, a, x: a - a.mean(), "'mean'"),
    "flipped": (lambda m, a, x: a + a.flip(0), "'flip'"),
    "rolled": (lambda m, a, x: a + a.roll(1, 0), "'roll'"),
    "rolled as a whole": (lambda m, a, x: a + a.roll(1), "'roll'"),
    "summed up": (lambda m, a, x: a.cumsum(0), "'cumsum'"),
    "reordered": (lambda m, a, x: a.index_select(0, torch.arange(a.size(0) - 1, -1, -1)), "'index_select'"),
    "a matrix of samples": (lambda m, a, x: (torch.ones(a.size(0), a.size(0)) @ a.flatten(1)).view_as(a), "'matmul'"),
}


@pytest.mark.parametrize("timing", ["step", "window"])
@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_the_samples_is_refused_with_its_line(name: str, timing: str) -> None:
    body, node = MIXED[name]
    with pytest.raises(CannotConvert, match=rf"node {node} .*test_convert_constants.py:\d+: .*mixes the samples"):
        convert(Net(body, 8), T=8, example=torch.rand(1, 2, 8, 8), timing=timing)


def test_a_fixed_batch_is_refused() -> None:
    """``len`` makes a number of the size of the batch."""
    net = Net(lambda m, a, x: a + m.pos.repeat(len(a), 1, 1, 1), 8)
    with pytest.raises(CannotConvert, match=r"fixes the size of the batch.*len\(x\).*x\.shape\[0\]"):
        convert(net, T=8, example=torch.rand(1, 2, 8, 8))
