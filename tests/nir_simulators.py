"""Simulators that run a NIR file, each behind the lines that put its import right, and a network for them."""

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from extras import needs
from networks import stepped
from torch import Tensor, nn

from tandem_snn import to_nir

nir = needs("nir")
T = 8


def counts_of(model: nn.Module, neurons: list[nn.Module], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The counts of another tool's model, stepped T times with the image at every step, and its answer."""
    state = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        y = model(x, state)
        y, state = y if isinstance(y, tuple) else (y, None)
        return y

    return stepped(model, [x] * T, lambda _, module: module in neurons, step)


# Each simulator's own import of the file and, where that changes the neuron, the neuron put right.


def file_of(net: nn.Module, x: Any, path: Path, **options: Any) -> str:
    nir.write(path / "net.nir", to_nir(net, x, window=True, **options))
    return str(path / "net.nir")


class Integrator(nn.Module):
    def __init__(self, node: Any) -> None:
        super().__init__()
        self.kept = 1 - 1 / torch.tensor(node.tau) if isinstance(node, nir.LI) else torch.tensor(1.0)
        self.factor = torch.tensor(node.r) * (1 - self.kept if isinstance(node, nir.LI) else 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = self.factor * x if state is None else self.kept * state + self.factor * x
        return v, v


class Elementwise(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def affine(node: Any) -> nn.Linear:
    layer = nn.Linear(*node.weight.shape[::-1])
    layer.weight.data, layer.bias.data = torch.tensor(node.weight), torch.tensor(node.bias)
    return layer


PRIMITIVES = {
    nir.I: Integrator,
    nir.LI: Integrator,
    nir.Threshold: lambda node: Elementwise(lambda v: (v >= torch.tensor(node.threshold)).float()),
    nir.Scale: lambda node: Elementwise(torch.tensor(node.scale).mul),
    nir.Affine: affine,  # nirtorch's own leaves out the bias
}


def by_nirtorch(path: str) -> tuple[nn.Module, list[nn.Module]]:
    nirtorch = needs("nirtorch")
    model = nirtorch.nir_to_torch(path, PRIMITIVES)
    return model, [m for name, m in model.named_modules() if name.endswith("_spikes")]


def by_spikingjelly(path: str, soft: bool = True) -> tuple[nn.Module, list[nn.Module]]:
    exchange = needs("spikingjelly.activation_based.nir_exchange")
    from spikingjelly.activation_based.neuron import IFNode

    model = exchange.import_from_nir(path, dt=1.0)
    neurons = [m for m in model.modules() if isinstance(getattr(m, "module", None), IFNode)]
    for neuron in neurons:
        if soft:
            neuron.module.v_reset = None  # SpikingJelly's way to say: subtract
    return model, neurons


def by_snntorch(path: str, soft: bool = True) -> tuple[nn.Module, list[nn.Module]]:
    module = needs("snntorch.import_nir")
    from snntorch import Leaky

    with contextlib.redirect_stdout(io.StringIO()):
        model = module.import_from_nir(nir.read(path))
    neurons = [m for m in model.modules() if isinstance(m, Leaky)]
    for neuron in neurons:
        neuron.init_hidden = True
        if soft:
            neuron.beta = torch.tensor(1.0)  # its import gives an IF a leak of 0.9,
            neuron.reset_delay = True  # and a reset that differs where a potential is left at ϑ or above
            neuron.threshold = neuron.threshold.nextafter(torch.tensor(0.0))  # it fires at v > ϑ
    return model, neurons


class Stepped(nn.Module):
    """A sinabs model, whose layers keep their own state, by steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, state: None) -> Tensor:
        y = self.model(x)
        return y[0] if isinstance(y, tuple) else y


def by_sinabs(path: str, batch: int, soft: bool = True) -> tuple[nn.Module, list[nn.Module]]:
    sinabs = needs("sinabs.nir")
    from sinabs.activation import SingleSpike
    from sinabs.layers import IAFSqueeze

    graph = nir.read(path)
    for node in graph.nodes.values():
        if isinstance(node, nir.IF):
            node.v_threshold = torch.tensor(node.v_threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sinabs.from_nir(graph, batch_size=batch)
    neurons = [m for m in model.modules() if isinstance(m, IAFSqueeze)]
    for neuron in neurons:
        if soft:
            neuron.spike_fn, neuron.min_v_mem = SingleSpike, None  # else several spikes a step, and a floor
    return Stepped(model), neurons
