"""The cases by name: each is a problem and its rivals. tests/benchmarks uses the same list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import tandem_ext as te

from .problems import Batch, Rate, Shape, image_input, make_problem, rate_of, spiking_input
from .rivals import LOOP, MAKERS, Candidate, Loop, if_loop

Quantity = Literal["time", "kept", "peak"]
COMPILED = "compiled"  # in the name of rivals that use torch.compile


@dataclass(frozen=True)
class Workload:
    """Candidates are made on demand: some take a minute to compile."""

    candidates: Mapping[str, Callable[[], Candidate]]
    rates: Mapping[str, Rate] = field(default_factory=dict)
    neurons: int = 0  # in one batch


@dataclass(frozen=True)
class Case:
    """quantity: "time" of a call, "kept" bytes per neuron from forward to backward, or "peak" bytes of a call."""

    name: str
    title: str
    build: Callable[[], Workload]
    rivals: tuple[str, ...]
    base: str = "ANN"
    quantity: Quantity = "time"


def of_network(
    name: str,
    title: str,
    T: int,
    data: Callable[[torch.Generator], list[Batch]],
    shapes: tuple[Shape, ...],
    rate: float,
    rivals: tuple[str, ...],
    *,
    classes: int = 0,
    training: bool = False,
    input_gradient: bool = False,
    quantity: Quantity = "time",
) -> Case:
    """A case of a network whose layers fire at ``rate``, and the rivals that compute it."""

    def build() -> Workload:
        g = torch.Generator().manual_seed(0)
        made = make_problem(T, data(g), shapes, rate, classes, g)
        batches = [batch.differentiable() for batch in made.batches] if input_gradient else made.batches

        def candidate(rival: str) -> Candidate:
            model = MAKERS[rival](made)
            return model.training_step(batches) if training else model.inference(batches)

        return Workload({r: partial(candidate, r) for r in rivals}, made.rates, made.neurons)

    return Case(name, title, build, rivals, quantity=quantity)


def spikes(T: int, *shape: int, rate: float, kind: str, batches: int) -> Callable[[torch.Generator], list[Batch]]:
    return partial(spiking_input, T, shape, rate, kind, batches)


def images(*shape: int, batches: int = 3, nonzero: float = 1.0) -> Callable[[torch.Generator], list[Batch]]:
    return partial(image_input, shape, batches, nonzero=nonzero)


LAYER = ("tandem", "windows", "ANN", "naive", "naive, windows", LOOP)
FROZEN = ("frozen", "frozen, windows", "frozen, 8 bits", "frozen, 8 bits, windows")
INFERENCE = (*FROZEN, *LAYER, "SpikingJelly", "snnTorch")
TRAINING = (*LAYER, "BPTT", "SpikingJelly", "SpikingJelly, compiled", "snnTorch")
LABEL = {"rate": "rate-coded spikes in", "iid": "iid spikes in", "direct": "direct encoding"}


def mlps() -> Iterator[Case]:
    """784-800-800-10. Layers fire at 14 %; the input is spikes at 11 %, or images with a fifth of nonzero pixels."""

    def case(name: str, what: str, T: int, B: int, kind: str, training: bool) -> Case:
        batches = 16 if B == 1 else 4
        direct = images(B, 784, batches=batches, nonzero=0.2)
        data = direct if kind == "direct" else spikes(T, B, 784, rate=0.11, kind=kind, batches=batches)
        return of_network(
            f"mlp-{name}-{kind}", f"MLP 784-800-800-10, T={T}, B={B}, {what}, {LABEL[kind]}", T, data,
            (Shape(800), Shape(800)), 0.14, TRAINING if training else INFERENCE, classes=10, training=training,
        )  # fmt: skip

    for B, kind in (128, "rate"), (128, "iid"), (1, "rate"), (1, "iid"), (128, "direct"):
        yield case(f"infer-{B}", "inference", 8, B, kind, training=False)
    for T, kind in (8, "direct"), (8, "rate"), (16, "rate"), (32, "rate"):
        yield case(f"train-T{T}", "training step", T, 128, kind, training=True)


def layers() -> Iterator[Case]:
    """Single layers: inference; with batch norm, training in the middle of a network, with the input's gradient."""
    for inputs, outputs, stride in (128, 256, 2), (64, 64, 1):
        shape = Shape(outputs, kernel=3, stride=stride, padding=1)
        for percent in 10, 25:
            for kind in "rate", "iid":
                yield of_network(
                    f"conv-{inputs}-{outputs}-{kind}-{percent}",
                    f"Conv {inputs}→{outputs} 3×3 s{stride} on 32×32, T=8, B=16, {percent}% {kind}", 8,
                    spikes(8, 16, inputs, 32, 32, rate=percent / 100, kind=kind, batches=3), (shape,), 0.15, LAYER,
                )  # fmt: skip
    conv = Shape(128, kernel=3, stride=2, padding=1, norm=True)
    for name, what, size, shape, batches in (
        ("conv", "Conv 64→128 3×3 s2 on 32×32 + batch norm, T=8, B=32", (32, 64, 32, 32), conv, 3),
        ("linear", "Linear 800×800 + batch norm, T=8, B=128", (128, 800), Shape(800, norm=True), 4),
    ):
        for kind in "rate", "iid":
            yield of_network(
                f"{name}-norm-train-{kind}", f"{what}, training step, 15% {kind}", 8,
                spikes(8, *size, rate=0.15, kind=kind, batches=batches), (shape,), 0.15, LAYER, training=True,
                input_gradient=True,
            )  # fmt: skip


def conv_net(*channels: int) -> tuple[Shape, ...]:
    """Convolutions; all but the first halve the image."""
    return tuple(Shape(n, kernel=3, stride=2 if i else 1, padding=1) for i, n in enumerate(channels))


def conv_nets() -> Iterator[Case]:
    """The network for the comparison with other libraries."""
    title = "Conv net 3→128→256(s2)→512(s2)→10 on 32×32, T=8, B=16, training step, {}%, direct encoding"
    quantities: tuple[tuple[str, str, int, Quantity], ...] = (
        ("conv-net-train-9", title, 9, "time"), ("conv-net-train-20", title, 20, "time"),
        ("conv-net-peak", f"Extra peak memory of: {title}", 9, "peak"),
    )  # fmt: skip
    for name, what, percent, quantity in quantities:
        yield of_network(
            name, what.format(percent), 8, images(16, 3, 32, 32), conv_net(128, 256, 512), percent / 100, TRAINING,
            classes=10, training=True, quantity=quantity,
        )  # fmt: skip


def scan() -> Workload:
    """The IF scan alone: from currents to spikes."""
    g = torch.Generator().manual_seed(0)
    currents = [(torch.randn(8, 256, 4096, generator=g) * 0.5 * 1024).round() / 1024 for _ in range(3)]
    target = torch.empty_like(currents[0])

    def ours(i: int) -> Any:
        with torch.inference_mode():
            return te.functional.if_scan(currents[i % 3])

    def naive(loop: Loop) -> Candidate:
        def run(i: int) -> Tensor:
            with torch.inference_mode():
                return loop(currents[i % 3])[1]

        return Candidate(run, lambda i: [run(i)])

    makers = {
        "tandem": lambda: Candidate(ours, lambda i: [ours(i).counts]),
        "copy": lambda: Candidate(lambda i: target.copy_(currents[i % 3])),
        "naive": lambda: naive(if_loop),
        LOOP: lambda: naive(torch.compile(if_loop, dynamic=False)),
    }
    return Workload(makers, {"layer 1": rate_of(ours(0))}, currents[0][0].numel())


def call(training: bool) -> Workload:
    """The overhead of a call: one sample, 16 neurons with 16 inputs."""
    g = torch.Generator().manual_seed(0)
    train = te.SpikeTrain.from_dense((torch.rand(8, 1, 16, generator=g) < 0.3).float())
    train = te.SpikeTrain(train.planes, 8, train.counts)
    weight = torch.randint(-32, 33, (16, 16), generator=g) / 64
    grad = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    layers: dict[str, Callable[[te.SpikeTrain, Tensor], Any]] = {
        "tandem": te.functional.linear_if,
        "ANN": lambda x, w: torch.relu(F.linear(x.counts, w)),
    }

    def candidate(name: str) -> Candidate:
        w, counts = weight.clone().requires_grad_(), train.counts.clone().requires_grad_()
        x = te.SpikeTrain(train.planes, 8, counts)

        def infer(i: int) -> Any:
            with torch.no_grad():
                return layers[name](train, weight)

        def step(i: int) -> Tensor:
            w.grad = counts.grad = None
            output = layers[name](x, w)
            activity = output.counts if isinstance(output, te.SpikeTrain) else output
            activity.backward(grad)
            return activity

        return Candidate(step if training else infer)

    return Workload({name: partial(candidate, name) for name in layers}, {"input": rate_of(train)}, 16)


def kept() -> Iterator[Case]:
    """Three layers of 800 neurons with 800 inputs. A saved input belongs to the layer that saves it."""
    for name, title, rivals in ("kept", "", ("tandem", "ANN", "naive", "BPTT")), (
        "kept-norm", " + batch norm", ("tandem", "ANN", "naive"),
    ):  # fmt: skip
        yield of_network(
            name, f"Kept for backward, linear layers{title}, T=8", 8,
            spikes(8, 128, 800, rate=0.14, kind="rate", batches=1), (Shape(800, norm=bool(title)),) * 3, 0.14, rivals,
            training=True, input_gradient=True, quantity="kept",
        )  # fmt: skip


def events() -> Iterator[Case]:
    """A long window with events on 2 % of the inputs at each step, as in the Spiking Heidelberg Digits."""
    rivals = ("tandem", "ANN", "BPTT", "SpikingJelly", "SpikingJelly, compiled", "snnTorch")
    quantities: dict[Quantity, str] = {"time": "training step", "kept": "kept for backward"}
    for T in 128, 1000:
        for quantity, what in quantities.items():
            yield of_network(
                f"events-{quantity}-T{T}", f"Events, 700-256-256-20, T={T}, B=64, {what}", T,
                spikes(T, 64, 700, rate=0.02, kind="iid", batches=2), (Shape(256), Shape(256)), 0.05,
                rivals if T < 1000 else tuple(r for r in rivals if COMPILED not in r), classes=20, training=True,
                quantity=quantity,
            )  # fmt: skip


def costs() -> Iterator[Case]:
    """The cost of training for several T, of the ANN and of backpropagation through time."""
    quantities: dict[Quantity, str] = {"time": "Training step", "peak": "Extra peak memory"}
    for quantity, what in quantities.items():
        for T in 4, 8, 16, 32:
            yield of_network(
                f"cost-{quantity}-T{T}", f"{what}: 1→32→64(s2)→128(s2)→10 on 28×28, T={T}, B=128, 10%", T,
                images(128, 1, 28, 28, nonzero=0.2), conv_net(32, 64, 128), 0.1, ("tandem", "windows", "ANN", "BPTT"),
                classes=10, training=True, quantity=quantity,
            )  # fmt: skip


_CALL = "linear_if 16×16, T=8, B=1"
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *mlps(),
        *layers(),
        *conv_nets(),
        Case("scan", "IF scan of float32 currents [8, 1M]", scan, ("tandem", "copy", "naive", LOOP), base="copy"),
        Case("call", _CALL, partial(call, False), ("tandem", "ANN")),
        Case("call-train", f"{_CALL}, forward and backward", partial(call, True), ("tandem", "ANN")),
        *kept(),
        *events(),
        *costs(),
    )
}
