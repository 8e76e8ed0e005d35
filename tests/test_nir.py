"""NIR: the exported file runs in other simulators to the same spike counts, and comes back as the same network."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import differing, own_counts
from torch import Tensor, nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import calibrate, convert, freeze, from_nir, to_nir
from tandem_snn.errors import UserError
from tandem_snn.frozen.trace import CannotLower

nir = pytest.importorskip("nir", reason="the package nir is not installed")
T = 8


def images() -> Tensor:
    """Handwritten digits, in sixteenths."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return torch.from_numpy(datasets.load_digits().images[:200]).float().unsqueeze(1) / 16


@torch.no_grad()
def dyadic(net: nn.Module) -> nn.Module:
    """Weights in 64ths, so that every sum is exact, and biases that let no potential meet its threshold exactly: there
    simulators differ, some fire at v ≥ ϑ and others at v > ϑ.
    """
    for layer in net.modules():
        if isinstance(layer, (tnn.SpikingLayer, tnn.Readout)):
            layer.weight.copy_((layer.weight * 128).round() / 64)
            layer.bias.copy_((layer.bias * 64).round() / 64 + 2**-11)
    return net.eval()


def network() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 8, 3, padding=1, threshold=0.5, gain=0.5),
        tnn.Conv2d(8, 12, 3, stride=2, padding="valid", groups=1, threshold=2.0),
        tnn.Dropout(0.5),
        tnn.Flatten(),
        tnn.Linear(12 * 9, 32),
        tnn.Readout(32, 10),
    )
    return dyadic(net)


def counts_of(model: nn.Module, neurons: list[nn.Module], x: Tensor, steps: Callable[[Tensor], Tensor] | None = None):
    """The same of another tool's model, stepped T times with the image at every step."""
    spikes = [torch.zeros(()) for _ in neurons]

    def count(i: int) -> Callable[..., None]:
        def hook(_: object, __: object, y: Any) -> None:
            spikes[i] = spikes[i] + (y[0] if isinstance(y, tuple) else y)

        return hook

    hooks = [module.register_forward_hook(count(i)) for i, module in enumerate(neurons)]
    state, answer = None, torch.zeros(())
    with torch.no_grad():
        for _ in range(T):
            y = model(x, state)
            y, state = y if isinstance(y, tuple) else (y, None)
            answer = answer + y
    for hook in hooks:
        hook.remove()
    return spikes, answer


def assert_same(ours: tuple[list[Tensor], Tensor], theirs: tuple[list[Tensor], Tensor]) -> None:
    assert len(ours[0]) == len(theirs[0])
    for c, other in zip(ours[0], theirs[0], strict=True):
        assert c.sum() > 0
        assert torch.equal(c, other)
    assert torch.equal(ours[1], theirs[1])


# --- other simulators: their own import of the file, and where it changes the neuron, the neuron put right ------------


def file_of(net: nn.Module, x: Any, path: Path, **options: Any) -> str:
    nir.write(path / "net.nir", to_nir(net, x, **options))
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
    nirtorch = pytest.importorskip("nirtorch", reason="nirtorch is not installed")
    model = nirtorch.nir_to_torch(path, PRIMITIVES)
    return model, [m for name, m in model.named_modules() if name.endswith("_spikes")]


def by_spikingjelly(path: str, soft: bool = True) -> tuple[nn.Module, list[nn.Module]]:
    exchange = pytest.importorskip(
        "spikingjelly.activation_based.nir_exchange", reason="SpikingJelly with NIR is not installed"
    )
    from spikingjelly.activation_based.neuron import IFNode

    model = exchange.import_from_nir(path, dt=1.0)
    neurons = [m for m in model.modules() if isinstance(getattr(m, "module", None), IFNode)]
    for neuron in neurons:
        if soft:
            neuron.module.v_reset = None  # SpikingJelly's way to say: subtract
    return model, neurons


def by_snntorch(path: str, soft: bool = True) -> tuple[nn.Module, list[nn.Module]]:
    module = pytest.importorskip("snntorch.import_nir", reason="snnTorch with NIR is not installed")
    from snntorch import Leaky

    with contextlib.redirect_stdout(io.StringIO()):
        model = module.import_from_nir(nir.read(path))
    neurons = [m for m in model.modules() if isinstance(m, Leaky)]
    for neuron in neurons:
        neuron.init_hidden = True
        if soft:
            neuron.beta = torch.tensor(1.0)  # its import gives an IF a leak of 0.9,
            neuron.reset_delay = True  # and a reset that differs where a potential is left at ϑ or above
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
    sinabs = pytest.importorskip("sinabs.nir", reason="sinabs with NIR is not installed")
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


def by_norse(path: str) -> tuple[nn.Module, list[nn.Module]]:
    module = pytest.importorskip("norse.torch.utils.import_nir", reason="Norse with NIR is not installed")
    from norse.torch.module.iaf import IAFCell

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = module.from_nir(nir.read(path), ignore_warnings=True)
    return model, [m for m in model.modules() if isinstance(m, IAFCell)]


def test_nirtorch_runs_the_primitives_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path, neurons="primitives")
    assert_same(own_counts(net, x), counts_of(*by_nirtorch(path), x))


def test_spikingjelly_runs_the_file_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    ours = own_counts(net, x)
    assert_same(ours, counts_of(*by_spikingjelly(path), x))
    changed = differing(ours[0], counts_of(*by_spikingjelly(path, soft=False), x)[0])
    assert min(changed) > 0.01, "with its hard reset the counts are others"


def test_snntorch_runs_the_file_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    ours = own_counts(net, x)
    assert_same(ours, counts_of(*by_snntorch(path), x))
    assert min(differing(ours[0], counts_of(*by_snntorch(path, soft=False), x)[0])) > 0.01, "with its leak of 0.9"


def test_sinabs_runs_the_file_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    ours = own_counts(net, x)
    assert_same(ours, counts_of(*by_sinabs(path, len(x)), x))
    assert max(differing(ours[0], counts_of(*by_sinabs(path, len(x), soft=False), x)[0])) > 0.01


def test_norse_has_no_soft_reset_for_an_if(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    assert min(differing(own_counts(net, x)[0], counts_of(*by_norse(path), x)[0])) > 0.01


# --- what goes out comes back -----------------------------------------------------------------------------------------


def pooled() -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        tnn.Encoder(T),
        tnn.Conv2d(1, 8, 3, padding=1, leak=0.75),
        tnn.AvgPool2d(2),
        tnn.Residual(nn.Sequential(tnn.Conv2d(8, 4, 3, padding=1), tnn.Conv2d(4, 8, 1, v_init=0.0))),
        tnn.Residual(tnn.Conv2d(8, 6, 3, 2, 1), tnn.Conv2d(8, 6, 1, 2)),
        tnn.AvgPool2d(2, spiking=False),
        tnn.Flatten(),
        tnn.Readout(6, 3),
    )
    return dyadic(net), torch.randint(0, 16, (4, 1, 8, 8)) / 4


def line() -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        tnn.Conv1d(2, 6, 3, dilation=2, padding="same"),
        tnn.Conv1d(6, 6, 5, stride=2, groups=2, threshold=torch.tensor([0.5, 1.0, 2.0, 1.0, 0.25, 4.0])),
        tnn.Flatten(),
        tnn.Readout(6 * 4, 3),
    )
    return dyadic(net), te.SpikeTrain.from_dense(torch.rand(T, 4, 2, 12).lt(0.4).float())


def vector(mode: str = "direct") -> tuple[nn.Module, Any]:
    net = nn.Sequential(tnn.Encoder(T, mode), tnn.Flatten(), tnn.Linear(16, 12), tnn.Linear(12, 9), tnn.Readout(9, 3))
    return dyadic(net), torch.randint(0, 16, (4, 1, 4, 4)) / (16 if mode == "direct" else 2)


@pytest.mark.parametrize("form", ["IF", "primitives"])
@pytest.mark.parametrize("make", [lambda: (network(), images()), pooled, line, vector, lambda: vector("zero_expand")])
def test_round_trip(make: Callable[[], tuple[nn.Module, Any]], form: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net, x = make()
    back = from_nir(file_of(net, x, tmp_path, neurons=form)).eval()
    assert_same(own_counts(net, x), own_counts(back, x))


def test_an_initial_potential_and_batch_norm_by_primitives(tmp_path: Path) -> None:
    """A converted ANN: gains, thresholds, batch norm and v_init, all folded; not dyadic, so nearly always equal."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    x = images()
    ann = nn.Sequential(*layers).train()
    with torch.no_grad():
        for _ in range(20):
            ann(x)
    net = calibrate(convert(ann.eval(), T), [x])
    with pytest.raises(CannotLower, match="primitives"):
        to_nir(net, x)
    path = file_of(freeze(net), x, tmp_path, neurons="primitives")
    ours = own_counts(net, x)
    for model in (own_counts(from_nir(path), x), counts_of(*by_nirtorch(path), x)):
        assert differing(ours[0], model[0])[0] < 1e-4
        torch.testing.assert_close(model[1], ours[1], atol=0.2, rtol=1e-3)


def test_dt() -> None:
    net, x = vector()
    graph = to_nir(net, x, dt=2**-10)
    assert np.unique(graph.nodes["n2_neurons"].r) == [1024]
    assert_same(own_counts(net, x), own_counts(from_nir(graph), x))


def test_the_reset_is_not_guessed(tmp_path: Path) -> None:
    net, x = vector()
    graph = to_nir(net, x)
    for node in graph.nodes.values():
        node.metadata = {}
    with pytest.raises(ValueError, match=r"'n2_neurons': IF resets to v_reset.*reset=\"subtract\""):
        from_nir(graph)
    assert_same(own_counts(net, x), own_counts(from_nir(graph, reset="subtract"), x))
    nir.write(tmp_path / "old.nir", graph)
    import h5py

    with h5py.File(tmp_path / "old.nir", "r+") as file:
        del file["version"]
        file["version"] = "1.0.4"
    assert_same(own_counts(net, x), own_counts(from_nir(tmp_path / "old.nir"), x))


def test_what_has_no_counterpart_is_named(tmp_path: Path) -> None:
    x = torch.rand(1, 1, 8, 8)

    def chain(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(tnn.Encoder(4), *layers, tnn.Flatten(), tnn.Readout(0, 2))

    conv = tnn.Conv2d(1, 2, 3, padding=1)
    for net, message in (
        (
            nn.Sequential(tnn.Encoder(4), conv, tnn.MaxPool2d(2), tnn.Flatten(), tnn.Readout(32, 2)),
            "n2: NIR has no MaxP",
        ),
        (
            nn.Sequential(tnn.Encoder(4), tnn.Conv2d(1, 2, 2, padding="same"), tnn.Flatten(), tnn.Readout(128, 2)),
            "both",
        ),
        (nn.Sequential(tnn.Encoder(4), tnn.Flatten(), tnn.Linear(64, 4, gate="resu"), tnn.Readout(4, 2)), "resu"),
        (nn.Sequential(tnn.Encoder(4), conv), "Readout"),
    ):
        with pytest.raises(CannotLower, match=message):
            to_nir(net, x)
    net, x = vector()
    for keywords in ({"neurons": "LIF"}, {"dt": 0.0}):
        with pytest.raises(ValueError, match=next(iter(keywords))):
            to_nir(net, x, **keywords)

    graph = to_nir(net, x)
    with pytest.raises(ValueError, match="reset"):
        from_nir(graph, reset="zero")
    graph.nodes["n3"] = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    with pytest.raises(ValueError, match="'n3'"):
        from_nir(graph)
    graph = to_nir(net, x)
    graph.nodes["n3_neurons"].v_threshold[0] = 2.0
    assert from_nir(graph).n3_neurons.threshold.tolist()[:2] == [2.0, 1.0]
    graph.metadata = {}
    with pytest.raises(ValueError, match="T: give"):
        from_nir(graph)
    with pytest.raises(UserError, match="no file"):
        from_nir(tmp_path / "none.nir")
    (tmp_path / "bad.nir").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a NIR file"):
        from_nir(tmp_path / "bad.nir")
