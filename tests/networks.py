"""Small networks of every layer with inputs for them, one trained on real images, and their spike counts."""

import io
from collections.abc import Callable
from typing import Any

import torch
from extras import needs
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import FrozenNetwork, freeze
from tandem_snn.nn.general import Neurons


class Net(nn.Module):
    """Layers by name, and a forward that is a function of them."""

    def __init__(self, forward: Callable[[Any, Any], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


def trained(net: nn.Module, x: Tensor) -> nn.Module:
    """A network whose batch norms have seen data, in evaluation mode."""
    net.train()
    for _ in range(3):
        net(x)
    return net.eval()


def in_windows(net: nn.Module) -> nn.Module:
    """The same network, all of whose neurons have timing "window"."""
    for layer in net.modules():
        if hasattr(layer, "timing"):
            if hasattr(layer, "leak"):
                layer.leak = 1.0
            layer.timing = "window"
    return net


def exported(net: nn.Module, *inputs: Any, **options: Any) -> Any:
    """The network as a file of torch.export has it."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, inputs, **options), file)
    file.seek(0)
    return torch.export.load(file).module()


def mlp() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(20, 50, norm=True), tnn.Linear(50, 33), tnn.Readout(33, 10))
    return net, torch.rand(6, 20)


def lif() -> tuple[nn.Module, Tensor]:
    first = tnn.Linear(20, 40, norm=True, leak=0.9, threshold=torch.rand(40) + 0.5)
    second = tnn.Linear(40, 30, v_init=0.5, gate="clip")
    net = nn.Sequential(tnn.Encoder(T=12, mode="zero_expand"), first, second, tnn.Readout(30, 10, bias=False))
    return net, torch.rand(6, 20)


def conv() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.Encoder(T=8), tnn.Conv2d(1, 12, 3, padding=1, norm=True), tnn.MaxPool2d(3, 2, 1, ceil_mode=True),
        tnn.Conv2d(12, 24, 3, stride=2, padding=1, norm=True, groups=2, v_init=torch.rand(24, 5, 4)),
        tnn.AvgPool2d(2, v_init=0.5), tnn.Dropout(0.2), tnn.Flatten(), tnn.Linear(24 * 4, 40, norm=True),
        tnn.Readout(40, 10),
    )  # fmt: skip
    return net, torch.rand(5, 1, 17, 13)


def residual() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.Encoder(T=9), tnn.Conv2d(3, 16, 3, padding="same", norm=True),
        tnn.Residual(nn.Sequential(tnn.Conv2d(16, 16, 3, padding=1, norm=True), tnn.Conv2d(16, 16, 1))),
        tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Readout(16, 10),
    )  # fmt: skip
    return net, torch.rand(5, 3, 8, 8)


def projection() -> tuple[nn.Module, Tensor]:
    body = nn.Sequential(
        tnn.Conv2d(8, 12, 3, stride=2, padding=1, norm=True), tnn.Conv2d(12, 12, 3, padding=1, norm=True, threshold=0.7)
    )
    learned = tnn.Conv2d(12, 9, 2, padding="same", dilation=3, threshold=torch.rand(9) + 0.5, gain="threshold")
    net = nn.Sequential(
        tnn.Encoder(T=11), tnn.Conv2d(2, 8, 4, padding="same", norm=True),
        tnn.Residual(body, tnn.Conv2d(8, 12, 1, stride=2, norm=True)),
        tnn.Residual(nn.Sequential(learned), nn.Sequential(tnn.Conv2d(12, 12, 3, padding=1), tnn.Conv2d(12, 9, 1))),
        tnn.AvgPool2d(2, spiking=False), tnn.Flatten(), tnn.Readout(9 * 4 * 3, 10),
    )  # fmt: skip
    return net, torch.rand(5, 2, 16, 12)


def image_paths(mode: str = "direct") -> tuple[nn.Module, Tensor]:
    """Two synaptic paths from the image, the second time of pixels that were pooled."""
    body = nn.Sequential(tnn.Conv2d(2, 6, 3, padding=1, norm=True), tnn.Conv2d(6, 5, 3, padding=1))
    net = nn.Sequential(
        tnn.Encoder(T=10, mode=mode), tnn.MaxPool2d(2),
        tnn.Residual(body, tnn.Conv2d(2, 5, 2, padding="same", norm=True)), tnn.Residual(tnn.Conv2d(5, 5, 1)),
        tnn.Flatten(), tnn.Readout(60, 10),
    )  # fmt: skip
    return net, torch.rand(5, 2, 8, 6)


def impulse_paths() -> tuple[nn.Module, Tensor]:
    return image_paths("zero_expand")


def line() -> tuple[nn.Module, Tensor]:
    layers = tnn.Conv1d(2, 9, 5, stride=2, norm=True), tnn.Conv1d(9, 8, 3, dilation=2, padding=1)
    return nn.Sequential(tnn.Encoder(T=3), *layers, tnn.Flatten(), tnn.Readout(8 * 8, 4)), torch.rand(4, 2, 23)


def average() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        tnn.AvgPool2d(2), tnn.Encoder(T=8, gain=0.5), tnn.Conv2d(1, 6, 3, padding=(2, 1), gain=0.5, threshold=0.5),
        tnn.AvgPool2d(3, 2, 1), tnn.Flatten(), tnn.Readout(6 * 12, 3),
    )  # fmt: skip
    return net, torch.rand(4, 1, 12, 10)


def block(**neuron: Any) -> nn.Module:
    """A stem, an identity and a projection shortcut, pooling, and a linear layer with these options."""
    return nn.Sequential(
        tnn.Encoder(8), tnn.Conv2d(1, 4, 3, padding=1, norm=True, **neuron),
        tnn.Residual(tnn.Conv2d(4, 4, 3, padding=1, **neuron)),
        tnn.Residual(tnn.Conv2d(4, 6, 1, **neuron), tnn.Conv2d(4, 6, 1, norm=True)),
        tnn.AvgPool2d(2), tnn.Flatten(), tnn.Linear(24, 5, gate="clip", **neuron), tnn.Readout(5, 3),
    )  # fmt: skip


class Shortcut(nn.Module):
    """A residual that is given with its name, or without."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.encoder, self.first, self.second = tnn.Encoder(8), tnn.Linear(6, 5), tnn.Linear(5, 5)
        self.readout, self.named = tnn.Readout(5, 3), named

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.first(x=self.encoder(x))
        return self.readout(self.second(spikes, residual=spikes) if self.named else self.second(spikes, spikes))


@torch.no_grad()
def own_trains(net: nn.Module, x: Any) -> tuple[list[te.SpikeTrain], Tensor]:
    """The spikes of each layer with neurons, and the answer."""
    trains: list[te.SpikeTrain] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, y: trains.append(y) if isinstance(y, te.SpikeTrain) else None)
        for layer in net.modules()
        if isinstance(layer, (tnn.SpikingLayer, tnn.AvgPool2d, Neurons))
    ]
    answer = net(x)
    for hook in hooks:
        hook.remove()
    return trains, answer


def own_counts(net: nn.Module, x: Any) -> tuple[list[Tensor], Tensor]:
    """Spike counts of each layer with neurons, and the answer."""
    trains, answer = own_trains(net, x)
    return [train.counts for train in trains], answer


@torch.no_grad()
def assert_frozen_is(net: nn.Module, x: Any) -> FrozenNetwork:
    """One program, its readouts and its stream give the bits of the evaluation with step timing; the frozen network."""
    events = isinstance(x, te.SpikeTrain)
    frozen, expected = freeze(net, T=x.T if events else None), net(x)
    assert torch.equal(frozen(x), expected)
    assert all(program.refusal is None for program in frozen._programs.values())
    steps = [frozen.step(step) for step in (x.to_dense() if events else [x] * (frozen.T or 0))]
    assert torch.equal(steps[-1], expected)
    assert torch.equal(frozen.readouts(x), torch.stack(steps))
    return frozen


def seen_by(net: nn.Module, x: Any) -> dict[str, tuple[Any, Any]]:
    """The first argument and the result of each module."""
    seen: dict[str, tuple[Any, Any]] = {}
    hooks = [
        layer.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0], y)}))
        for name, layer in net.named_modules()
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


def differing(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    """Share of each layer's neurons whose count is another."""
    return [(c != other).double().mean().item() for c, other in zip(ours, theirs, strict=True)]


def images(number: int = 200) -> Tensor:
    """Handwritten digits, in sixteenths."""
    datasets = needs("sklearn.datasets")
    return torch.from_numpy(datasets.load_digits().images[:number]).float().unsqueeze(1) / 16


@torch.no_grad()
def dyadic(net: nn.Module) -> nn.Module:
    """Numbers with which all sums are exact, and biases that let no potential meet its threshold exactly: there
    simulators differ, some fire at v ≥ ϑ and others at v > ϑ.
    """
    for module in net.modules():
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


def network(T: int = 8) -> nn.Module:
    """For handwritten digits."""
    torch.manual_seed(1)
    net = nn.Sequential(
        tnn.Encoder(T), tnn.Conv2d(1, 8, 3, padding=1, threshold=0.5, gain=0.5),
        tnn.Conv2d(8, 12, 3, stride=2, padding="valid", groups=1, threshold=2.0), tnn.Dropout(0.5), tnn.Flatten(),
        tnn.Linear(12 * 9, 32), tnn.Readout(32, 10),
    )  # fmt: skip
    return dyadic(net)


@torch.no_grad()
def meeting(net: nn.Module) -> nn.Module:
    """Weights in eighths and no biases: many a potential equals the threshold."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.copy_((module.weight * 16).round() / 8)
            nn.init.zeros_(module.bias)
    return net.eval()


@torch.no_grad()
def stepped(
    net: nn.Module, steps: Any, names: Callable[[str, nn.Module], bool], call: Callable[[Any], Any] | None = None
) -> tuple[list[Tensor], Tensor]:
    """Counts of the modules that ``names`` selects, in order of their first call, and the sum of the answers of
    ``call``, by default the network.
    """
    counts: dict[str, Tensor] = {}

    def counting(name: str) -> Callable[..., None]:
        def hook(_: object, __: object, y: Any) -> None:
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


def assert_same(ours: tuple[list[Tensor], Any], theirs: tuple[list[Tensor], Tensor], least: int = 1) -> None:
    """Equal counts of every layer, of which some neuron has at least so many, and equal answers."""
    assert len(ours[0]) == len(theirs[0])
    for c, other in zip(ours[0], theirs[0], strict=True):
        assert c.max() >= least
        assert torch.equal(c, other)
    assert torch.equal(getattr(ours[1], "counts", ours[1]), theirs[1])
