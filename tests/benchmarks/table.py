"""The cases by name: what is measured, with whom, and what is to be reached."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from competitors import COMPETITORS, LOOP, OURS, Output, if_loop, values
from problems import Batch, Rate, Shape, draw_batch, make_problem, rate_of
from torch import Tensor

import tandem_ext as te

Quantity = Literal["time", "kept", "peak"]


class Limit(NamedTuple):
    """``way`` takes at most ``most`` times what ``of`` takes, or, if that is "", at most so many seconds or bytes."""

    way: str
    most: float
    of: str = "ANN"


class Call(NamedTuple):
    """One way through a case: a call by its number, which selects the input, and what gets gradients in it."""

    run: Callable[[int], Output]
    parameters: Sequence[Tensor] = ()
    answer: Callable[[int], list[Tensor]] | None = None  # None: it is not compared with the others


@dataclass
class Workload:
    """Calls are made on demand: some take a minute to compile."""

    calls: dict[str, Callable[[], Call]]
    rates: dict[str, Rate] = field(default_factory=dict)
    neurons: int = 0  # in one batch


@dataclass(frozen=True)
class Case:
    """A network whose layers fire at the rate ``fires``, for inputs of a kind and a rate, see problems.py.

    quantity: "time" of a call, "kept" bytes per neuron from forward to backward, or "peak" bytes of a call. middle:
    the network is in the middle of another: the inputs get gradients. build: what is no network makes its own workload.
    """

    name: str
    title: str
    input: tuple[int, ...] = ()
    layers: tuple[Shape, ...] = ()
    T: int = 8
    kind: str = "rate"
    rate: float = 0.14
    fires: float = 0.14
    classes: int = 0
    batches: int = 3
    training: bool = False
    middle: bool = False
    ways: tuple[str, ...] = ()
    base: str = "ANN"
    quantity: Quantity = "time"
    build: Callable[[], Workload] | None = None

    @property
    def limits(self) -> tuple[Limit, ...]:
        return LIMITS.get(self.name, ())

    def workload(self) -> Workload:
        if self.build is not None:
            return self.build()
        g = torch.Generator().manual_seed(0)
        drawn = [draw_batch(self.T, self.input, self.kind, self.rate, g) for _ in range(self.batches)]
        made = make_problem(self.T, drawn, self.layers, self.fires, self.classes, g)
        batches = [batch.differentiable() for batch in made.batches] if self.middle else made.batches

        def call(way: str) -> Call:
            competitor = COMPETITORS[way]
            forward, parameters = competitor.make(made)
            run = partial(training_step if self.training else inference, forward, parameters, batches)

            def answer(i: int) -> list[Tensor]:
                result = values(run(i)).detach()
                gradients = self.training and competitor.agrees == "gradients"
                return [result, *(p.grad for p in parameters if gradients and p.grad is not None)]

            return Call(run, parameters, None if competitor.agrees == "no" else answer)

        return Workload({way: partial(call, way) for way in self.ways}, made.rates, made.neurons)


def inference(forward: Callable[[Batch], Output], _: Any, batches: Sequence[Batch], i: int) -> Output:
    with torch.inference_mode():
        return forward(batches[i % len(batches)])


def training_step(
    forward: Callable[[Batch], Output], parameters: Sequence[Tensor], batches: Sequence[Batch], i: int
) -> Output:
    """Forward, loss, backward; without an optimiser, whose cost is the same for all."""
    batch = batches[i % len(batches)]
    for leaf in (*parameters, *batch.leaves):
        leaf.grad = None
    output = forward(batch)
    if batch.target.is_floating_point():
        values(output).backward(batch.target)
    else:
        F.cross_entropy(values(output), batch.target).backward()
    return output


def scan() -> Workload:
    """The IF scan alone: from currents to spikes."""
    g = torch.Generator().manual_seed(0)
    currents = [(torch.randn(8, 256, 4096, generator=g) * 0.5 * 1024).round() / 1024 for _ in range(3)]
    target, compiled = torch.empty_like(currents[0]), torch.compile(if_loop, dynamic=False)

    def call(scan: Callable[[Tensor], Any]) -> Call:
        def run(i: int) -> Output:
            with torch.inference_mode():
                return scan(currents[i % 3])

        return Call(run, answer=lambda i: [values(run(i))])

    calls = {
        "tandem": lambda: call(te.functional.if_scan),
        "copy": lambda: call(target.copy_)._replace(answer=None),
        "naive": lambda: call(lambda y: if_loop(y)[1]),
        LOOP: lambda: call(lambda y: compiled(y)[1]),
    }
    return Workload(calls, {"layer 1": rate_of(te.functional.if_scan(currents[0]))}, currents[0][0].numel())


def small_call(training: bool) -> Workload:
    """The overhead of a call: one sample, 16 neurons with 16 inputs."""
    g = torch.Generator().manual_seed(0)
    train = te.SpikeTrain.from_dense((torch.rand(8, 1, 16, generator=g) < 0.3).float())
    train = te.SpikeTrain(train.planes, 8, train.counts)
    weight = torch.randint(-32, 33, (16, 16), generator=g) / 64
    grad = torch.randn(1, 16, generator=g)
    layers: dict[str, Callable[[te.SpikeTrain, Tensor], Any]] = {
        "tandem": te.functional.linear_if,
        "windows": partial(te.functional.linear_if, timing="window"),
        "ANN": lambda x, w: torch.relu(F.linear(x.counts, w)),
    }

    def call(layer: Callable[[te.SpikeTrain, Tensor], Any]) -> Call:
        w, counts = weight.clone().requires_grad_(), train.counts.clone().requires_grad_()
        x = te.SpikeTrain(train.planes, 8, counts)

        def infer(i: int) -> Output:
            with torch.no_grad():
                return layer(train, weight)

        def step(i: int) -> Output:
            w.grad = counts.grad = None
            output = layer(x, w)
            values(output).backward(grad)
            return output

        return Call(step if training else infer, answer=lambda i: [values(infer(i))])

    calls = {name: partial(call, layer) for name, layer in layers.items()}
    calls["ANN"] = lambda: call(layers["ANN"])._replace(answer=None)
    return Workload(calls, {"input": rate_of(train)}, 16)


FROZEN = tuple(name for name in OURS if name.startswith("frozen"))
LAYER = ("tandem", "windows", "ANN", "naive", "naive, windows", LOOP)
PEERS = ("BPTT", "SpikingJelly", "SpikingJelly, compiled", "snnTorch")
INFERENCE = (*FROZEN, *LAYER, "SpikingJelly", "snnTorch")
TRAINING = (*LAYER, *PEERS)
LABEL = {"rate": "rate-coded spikes in", "iid": "iid spikes in", "direct": "direct encoding"}


def mlps() -> Iterator[Case]:
    """784-800-800-10. Layers fire at 14 %; the input is spikes at 11 %, or images with a fifth of nonzero pixels."""
    net = partial(Case, layers=(Shape(800), Shape(800)), classes=10)
    for B, kind in ((128, "rate"), (16, "rate"), (4, "rate"), (1, "rate"), (128, "iid"), (1, "iid"), (128, "direct")):
        yield net(
            f"mlp-infer-{B}-{kind}", f"MLP 784-800-800-10, T=8, B={B}, inference, {LABEL[kind]}", (B, 784), kind=kind,
            rate=0.2 if kind == "direct" else 0.11, batches=4 if B == 128 else 16, ways=INFERENCE,
        )  # fmt: skip
    for T, kind in (8, "direct"), (8, "rate"), (16, "rate"), (32, "rate"):
        yield net(
            f"mlp-train-T{T}-{kind}", f"MLP 784-800-800-10, T={T}, B=128, training step, {LABEL[kind]}", (128, 784),
            T=T, kind=kind, rate=0.2 if kind == "direct" else 0.11, batches=4, training=True, ways=TRAINING,
        )  # fmt: skip
    title = "Extra peak memory of: MLP 784-800-800-10, T=8, B=128, training step"
    yield net("mlp-peak", title, (128, 784), rate=0.11, training=True, quantity="peak", ways=TRAINING)


def layers() -> Iterator[Case]:
    """Single layers: inference; with batch norm, training in the middle of a network, with the input's gradient."""
    for B in 128, 32, 1:
        title = f"Linear 800→800, T=8, B={B}, 14% rate"
        yield Case(f"linear-{B}", title, (B, 800), (Shape(800),), batches=4 if B == 128 else 16, ways=LAYER)
    for inputs, outputs, stride in (128, 256, 2), (64, 64, 1):
        shape = Shape(outputs, kernel=3, stride=stride, padding=1)
        for percent in 10, 25:
            for kind in "rate", "iid":
                yield Case(
                    f"conv-{inputs}-{outputs}-{kind}-{percent}",
                    f"Conv {inputs}→{outputs} 3×3 s{stride} on 32×32, T=8, B=16, {percent}% {kind}",
                    (16, inputs, 32, 32), (shape,), kind=kind, rate=percent / 100, fires=0.15, ways=LAYER,
                )  # fmt: skip
    conv = Shape(128, kernel=3, stride=2, padding=1, norm=True)
    for name, what, size, shape in (
        ("conv", "Conv 64→128 3×3 s2 on 32×32 + batch norm, {}B=32", (32, 64, 32, 32), conv),
        ("linear", "Linear 800×800 + batch norm, {}B=128", (128, 800), Shape(800, norm=True)),
    ):
        step = partial(Case, input=size, layers=(shape,), rate=0.15, fires=0.15, training=True, middle=True, ways=LAYER)
        for kind in "rate", "iid":
            title = f"{what.format('T=8, ')}, training step, 15% {kind}"
            yield step(f"{name}-norm-train-{kind}", title, kind=kind)
        yield step(f"{name}-norm-train-T32", f"{what.format('T=32, ')}, training step, 15% rate", T=32)
        for T in 8, 32:
            title = f"Extra peak memory of: {what.format(f'T={T}, ')}, training step"
            yield step(f"{name}-norm-peak-T{T}", title, T=T, quantity="peak")


def conv_net(*channels: int) -> tuple[Shape, ...]:
    """Convolutions; all but the first halve the image."""
    return tuple(Shape(n, kernel=3, stride=2 if i else 1, padding=1) for i, n in enumerate(channels))


def networks() -> Iterator[Case]:
    """Training: the comparison with other libraries; the cost for several T; what is kept; long windows of events."""
    step = partial(Case, kind="direct", training=True, classes=10)
    net = partial(step, input=(16, 3, 32, 32), layers=conv_net(128, 256, 512), rate=1.0, ways=TRAINING)
    title = "Conv net 3→128→256(s2)→512(s2)→10 on 32×32, T=8, B=16, training step, {}%, direct encoding"
    yield net("conv-net-train-9", title.format(9), fires=0.09)
    yield net("conv-net-train-20", title.format(20), fires=0.2)
    yield net("conv-net-peak", f"Extra peak memory of: {title.format(9)}", fires=0.09, quantity="peak")
    net = partial(step, input=(128, 1, 28, 28), layers=conv_net(32, 64, 128), rate=0.2, fires=0.1)
    measured: tuple[tuple[Quantity, str], ...] = ("time", "Training step"), ("peak", "Extra peak memory")
    for quantity, what in measured:
        for T in 4, 8, 16, 32:
            title = f"{what}: 1→32→64(s2)→128(s2)→10 on 28×28, T={T}, B=128, 10%"
            ways = ("tandem", "windows", "ANN", *PEERS)
            yield net(f"cost-{quantity}-T{T}", title, T=T, quantity=quantity, ways=ways)
    for name, norm, ways in ("kept", False, (*LAYER[:4], "BPTT")), ("kept-norm", True, LAYER[:4]):
        yield Case(
            name, f"Kept for backward, linear layers{' + batch norm' * norm}, T=8", (128, 800),
            (Shape(800, norm=norm),) * 3, training=True, middle=True, ways=ways, quantity="kept",
        )  # fmt: skip
    measured = ("time", "training step"), ("kept", "kept for backward")
    for T in 128, 1000:
        ways = ("tandem", "windows", "ANN", *(w for w in PEERS if T < 1000 or not COMPETITORS[w].compiles))
        for quantity, what in measured:  # as in the Spiking Heidelberg Digits
            yield Case(
                f"events-{quantity}-T{T}", f"Events on 2% of 700-256-256-20, T={T}, B=64, {what}", (64, 700),
                (Shape(256), Shape(256)), T, "iid", 0.02, 0.05, 20, 2, True, ways=ways, quantity=quantity,
            )  # fmt: skip


CALL = "linear_if 16×16, T=8, B=1"
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *mlps(),
        *layers(),
        *networks(),
        Case("scan", "IF scan of float32 currents [8, 1M]", ways=("tandem", "copy", "naive", LOOP), base="copy",
             build=scan),
        Case("call", CALL, ways=LAYER[:3], build=partial(small_call, False)),
        Case("call-train", f"{CALL}, forward and backward", ways=LAYER[:3], build=partial(small_call, True)),
    )
}  # fmt: skip


def choose(patterns: Iterable[str]) -> list[Case]:
    """The cases with these names, which may have wildcards; without names all cases."""
    patterns = list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            raise ValueError(f"case: expected one of {', '.join(CASES)}, or a pattern of them, got {pattern!r}")
    return [case for name, case in CASES.items() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


def faster(factor: float, than: str) -> Limit:
    return Limit("tandem", 1 / factor, than)


# Of processors with AVX-512, T = 8 unless the name says otherwise; by the fastest tenth of the samples.
LIMITS: dict[str, tuple[Limit, ...]] = {
    "mlp-infer-128-rate": (
        Limit("frozen", 1.1), Limit("frozen, windows", 0.8), Limit("frozen, 8 bits", 0.9),
        Limit("frozen, 8 bits, windows", 0.3), Limit("frozen", 0.1, "naive"),
    ),
    "mlp-infer-1-rate": (
        Limit("frozen", 0.6), Limit("frozen, windows", 1.05), Limit("frozen, 8 bits", 0.4),
        Limit("frozen, 8 bits, windows", 0.4), Limit("tandem", 2.5), Limit("windows", 1.65),
    ),
    "mlp-infer-128-direct": (Limit("frozen", 1.1),),
    "mlp-train-T8-direct": (Limit("tandem", 1.15),),
    "mlp-train-T8-rate": (Limit("tandem", 1.1), Limit("windows", 1.0), faster(7, "BPTT")),
    "mlp-train-T16-rate": (Limit("tandem", 1.4), Limit("windows", 1.0), faster(12, "BPTT")),
    "mlp-train-T32-rate": (Limit("tandem", 2.0), Limit("windows", 1.0)),
    "mlp-peak": (Limit("tandem", 1.15), Limit("windows", 1.15)),
    "linear-128": (Limit("windows", 1.06),),
    "linear-32": (Limit("windows", 1.12),),
    "linear-1": (Limit("windows", 1.65),),
    "conv-128-256-rate-10": (Limit("tandem", 1.1), Limit("windows", 0.75)),
    "conv-128-256-rate-25": (Limit("tandem", 1.45),),
    "conv-64-64-rate-10": (Limit("tandem", 1.2), Limit("windows", 0.85)),
    "conv-64-64-rate-25": (Limit("tandem", 1.9),),
    "conv-norm-train-rate": (Limit("tandem", 1.4), Limit("windows", 1.05)),
    "linear-norm-train-rate": (Limit("tandem", 1.2), Limit("windows", 1.1)),
    "conv-net-train-9": (Limit("tandem", 1.0), Limit("windows", 0.85), faster(8, "SpikingJelly, compiled")),
    "conv-net-train-20": (Limit("tandem", 1.2), faster(8, "SpikingJelly, compiled")),
    "conv-net-peak": (Limit("tandem", 2.0),),
    "scan": (Limit("tandem", 1.0, "copy"),),
    "call": (Limit("tandem", 11e-6, ""),),
    "call-train": (Limit("tandem", 2.3),),
    "kept": (Limit("tandem", 1.25, ""), Limit("tandem", 1.0)),
    "kept-norm": (Limit("tandem", 5.25, ""), Limit("tandem", 1.0)),
    "events-time-T128": (faster(5, "SpikingJelly"), faster(5, "snnTorch")),
    "events-time-T1000": (faster(5, "SpikingJelly"), faster(5, "snnTorch")),
}  # fmt: skip
