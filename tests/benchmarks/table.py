"""The cases by name: what is measured, with whom, and what is to be reached."""

import fnmatch
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from competitors import COMPETITORS, LOOP, OURS, Output, if_loop, values
from problems import Batch, Problem, Rate, Shape, draw_batch, make_problem, rate_of
from torch import Tensor

import tandem_ext as te

Quantity = Literal["time", "kept", "peak"]


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
    the network is in the middle of another: the inputs get gradients. half: all run under autocast in bfloat16. build:
    what is no network makes its own workload.
    """

    name: str
    input: tuple[int, ...] = ()  # with the batch
    layers: tuple[Shape, ...] = ()
    ways: tuple[str, ...] = ()
    T: int = 8
    kind: str = "rate"
    rate: float = 0.14
    fires: float = 0.14
    classes: int = 0
    training: bool = False
    middle: bool = False
    half: bool = False
    base: str = "ANN"
    quantity: Quantity = "time"
    build: Callable[[], Workload] | None = None
    about: str = ""

    @property
    def title(self) -> str:
        if self.about:
            return self.about
        parts = ["×".join(map(str, self.input[1:])), *map(str, self.layers), *[str(self.classes)] * (self.classes > 0)]
        what = WHAT[self.quantity] or ("training step" if self.training else "inference")
        what += " in bfloat16" * self.half
        given = f"{LABEL[self.kind]} at {self.rate:.0%}, firing at {self.fires:.0%}"
        return f"{'-'.join(parts)}, T={self.T}, B={self.input[0]}, {what}, {given}"

    def workload(self) -> Workload:
        if self.build is not None:
            return self.build()
        g = torch.Generator().manual_seed(0)
        several = range(min(16, 2 + 2**21 // (math.prod(self.input) * self.T)))  # small ones from cache, as in use
        drawn = [draw_batch(self.T, self.input, self.kind, self.rate, g) for _ in several]
        return self.of(make_problem(self.T, drawn, self.layers, self.fires, self.classes, g))

    def of(self, made: Problem) -> Workload:
        """The ways through a problem."""
        batches = [batch.differentiable() for batch in made.batches] if self.middle else made.batches

        def call(way: str) -> Call:
            competitor = COMPETITORS[way]
            forward, parameters = competitor.make(made)
            if self.half:
                forward = in_bfloat16(forward)
            run = partial(training_step if self.training else inference, forward, parameters, batches)

            def answer(i: int) -> list[Tensor]:
                result = values(run(i)).detach()
                gradients = self.training and competitor.agrees == "gradients"
                return [result, *(p.grad for p in parameters if gradients and p.grad is not None)]

            return Call(run, parameters, None if competitor.agrees == "no" or self.half else answer)

        return Workload({way: partial(call, way) for way in self.ways}, made.rates, made.neurons)


def in_bfloat16(forward: Callable[[Batch], Output]) -> Callable[[Batch], Output]:
    run = torch.autocast("cpu", torch.bfloat16)(forward)
    return lambda batch: values(run(batch)).float()


def inference(forward: Callable[[Batch], Output], _: Any, batches: Sequence[Batch], i: int) -> Output:
    with torch.inference_mode():
        return forward(batches[i % len(batches)])


def training_step(
    forward: Callable[[Batch], Output], own: Sequence[Tensor], batches: Sequence[Batch], i: int
) -> Output:
    """Forward, loss, backward; without an optimiser, whose cost is the same for all."""
    batch = batches[i % len(batches)]
    for leaf in (*own, batch.x, batch.counts):
        leaf.grad = None
    output = forward(batch)
    result, target = values(output), batch.target
    result.backward(target) if target.is_floating_point() else F.cross_entropy(result, target).backward()
    return output


def scan() -> Workload:
    """From currents to spikes."""
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
    g = torch.Generator().manual_seed(0)
    spikes = te.SpikeTrain.from_dense((torch.rand(8, 1, 16, generator=g) < 0.3).float())
    weight, grad = torch.randint(-32, 33, (16, 16), generator=g) / 64, torch.randn(1, 16, generator=g)

    def call(layer: Callable[[te.SpikeTrain, Tensor], Any], answers: bool = True) -> Call:
        w, counts = weight.clone(), spikes.counts.clone()
        x = te.SpikeTrain(spikes.planes, 8, counts)

        def infer(i: int) -> Output:
            with torch.no_grad():
                return layer(x, w)

        def step(i: int) -> Output:
            w.grad = counts.grad = None
            output = layer(x, w)
            values(output).backward(grad)
            return output

        if training:
            w.requires_grad_(), counts.requires_grad_()
        return Call(step if training else infer, answer=(lambda i: [values(infer(i))]) if answers else None)

    calls = {
        "tandem": lambda: call(te.functional.linear_if),
        "windows": lambda: call(partial(te.functional.linear_if, timing="window", v_init=0.5)),
        "ANN": lambda: call(lambda x, w: torch.relu(F.linear(x.counts, w)), answers=False),
    }
    return Workload(calls, {"input": rate_of(spikes)}, 16)


LAYER = ("tandem", "windows", "ANN", "naive", "naive, windows", LOOP)
PEERS = ("BPTT", "SpikingJelly", "SpikingJelly, compiled", "snnTorch")
INFERENCE = (*OURS[2:], *LAYER, "SpikingJelly", "snnTorch")
TRAINING = (*LAYER, *PEERS)
CALL = "linear_if 16×16, T=8, B=1"
WHAT = {"time": "", "kept": "kept for backward", "peak": "extra peak memory of a training step"}
LABEL = {"rate": "rate-coded spikes", "iid": "iid spikes", "direct": "direct encoding"}
FEW = ("tandem", "windows", "ANN")


def mlps() -> Iterator[Case]:
    net = partial(Case, layers=(Shape(800), Shape(800)), classes=10)
    for B, kind in ((128, "rate"), (16, "rate"), (4, "rate"), (1, "rate"), (128, "iid"), (1, "iid")):
        yield net(f"mlp-infer-{B}-{kind}", (B, 784), ways=INFERENCE, kind=kind, rate=0.11)
    yield net("mlp-infer-128-direct", (128, 784), ways=INFERENCE, kind="direct", rate=0.2)
    step = partial(net, input=(128, 784), ways=TRAINING, training=True)
    yield step("mlp-train-bf16", ways=FEW, rate=0.11, half=True)
    yield step("mlp-train-T8-direct", kind="direct", rate=0.2)
    for T in 8, 16, 32:
        yield step(f"mlp-train-T{T}-rate", T=T, rate=0.11)
    yield step("mlp-peak", rate=0.11, quantity="peak")


def layers() -> Iterator[Case]:
    """Single layers: inference; with batch norm, training in the middle of a network, with the input's gradient."""
    for B in 128, 32, 1:
        yield Case(f"linear-{B}", (B, 800), (Shape(800),), LAYER)
    for inputs, outputs, stride in (128, 256, 2), (64, 64, 1):
        layer = partial(Case, input=(16, inputs, 32, 32), layers=(Shape(outputs, 3, stride),), ways=LAYER, fires=0.15)
        for percent, kind in itertools.product((10, 25), ("rate", "iid")):
            yield layer(f"conv-{inputs}-{outputs}-{kind}-{percent}", kind=kind, rate=percent / 100)
    for name, size, shape in (
        ("conv", (32, 64, 32, 32), Shape(128, 3, 2, norm=True)), ("linear", (128, 800), Shape(800, norm=True)),
    ):  # fmt: skip
        step = partial(Case, input=size, layers=(shape,), ways=LAYER, rate=0.15, fires=0.15, training=True, middle=True)
        for kind in "rate", "iid":
            yield step(f"{name}-norm-train-{kind}", kind=kind)
        yield step(f"{name}-norm-train-T32", T=32)
        for T in 8, 32:
            yield step(f"{name}-norm-peak-T{T}", T=T, quantity="peak")


def networks() -> Iterator[Case]:
    """Training: the comparison with other libraries; the cost for several T; what is kept; long windows of events."""
    step = partial(Case, kind="direct", training=True, classes=10)
    net = partial(step, input=(16, 3, 32, 32), layers=(Shape(128, 3), Shape(256, 3, 2), Shape(512, 3, 2)), rate=1.0)
    yield net("conv-net-train-9", ways=TRAINING, fires=0.09)
    yield net("conv-net-train-20", ways=TRAINING, fires=0.2)
    yield net("conv-net-peak", ways=TRAINING, fires=0.09, quantity="peak")
    shapes = Shape(64, 3, norm=True), Shape(128, 3, 2, norm=True), Shape(128, 3, norm=True)
    net = partial(step, input=(32, 1, 28, 28), layers=shapes, ways=FEW, rate=0.2, fires=0.1)
    yield net("norm-net-train")
    yield net("norm-net-train-bf16", half=True)
    net = partial(step, input=(128, 1, 28, 28), layers=(Shape(32, 3), Shape(64, 3, 2), Shape(128, 3, 2)), rate=0.2)
    for quantity, T in itertools.product(("time", "peak"), (4, 8, 16, 32)):
        yield net(f"cost-{quantity}-T{T}", ways=(*FEW, *PEERS), T=T, fires=0.1, quantity=quantity)
    kept = partial(Case, input=(128, 800), training=True, middle=True, quantity="kept")
    yield kept("kept", layers=(Shape(800),) * 3, ways=(*FEW, "naive", "BPTT"))
    yield kept("kept-norm", layers=(Shape(800, norm=True),) * 3, ways=(*FEW, "naive"))
    net = partial(Case, input=(64, 700), layers=(Shape(256), Shape(256)), kind="iid", rate=0.02, fires=0.05, classes=20)
    for quantity, T in itertools.product(("time", "kept"), (128, 1000)):  # as in the Spiking Heidelberg Digits
        ways = (*FEW, *(way for way in PEERS if T < 1000 or not COMPETITORS[way].compiles))
        yield net(f"events-{quantity}-T{T}", ways=ways, T=T, training=True, quantity=quantity)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *mlps(), *layers(), *networks(),
        Case("scan", ways=("tandem", "copy", "naive", LOOP), base="copy", build=scan, about="IF scan, float32 [8, 1M]"),
        Case("call", ways=FEW, build=partial(small_call, False), about=CALL),
        Case("call-train", ways=FEW, build=partial(small_call, True), about=f"{CALL}, forward and backward"),
    )
}  # fmt: skip


def choose(patterns: Iterable[str]) -> list[Case]:
    """The cases with these names, which may have wildcards; without names all cases."""
    patterns = list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            raise ValueError(f"case: expected one of {', '.join(CASES)}, or a pattern of them, got {pattern!r}")
    return [case for name, case in CASES.items() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]


# What is to be reached by "way" or "way / other": at most so much of the base, of another way, or of 1 second or byte.
# T = 8 unless the name says otherwise, a processor with AVX-512, the fastest tenth of the samples.
LIMITS: dict[str, dict[str, float]] = {
    "mlp-infer-128-rate": {"frozen": 1.1, "frozen, windows": 0.8, "frozen, 8 bits": 0.9,
                           "frozen, 8 bits, windows": 0.3, "frozen / naive": 1 / 10},
    "mlp-infer-1-rate": {"frozen": 0.6, "frozen, windows": 1.05, "frozen, 8 bits": 0.4, "frozen, 8 bits, windows": 0.4,
                         "tandem": 2.5, "windows": 1.65},
    "mlp-infer-128-direct": {"frozen": 1.1},
    "mlp-train-T8-direct": {"tandem": 1.15},
    "mlp-train-T8-rate": {"tandem": 1.1, "windows": 1.0, "tandem / BPTT": 1 / 7},
    "mlp-train-T16-rate": {"tandem": 1.4, "windows": 1.0, "tandem / BPTT": 1 / 12},
    "mlp-train-T32-rate": {"tandem": 2.0, "windows": 1.0},
    "mlp-peak": {"tandem": 1.15, "windows": 1.15},
    "linear-128": {"windows": 1.06},
    "linear-32": {"windows": 1.12},
    "linear-1": {"windows": 1.65},
    "conv-128-256-rate-10": {"tandem": 1.1, "windows": 0.75},
    "conv-128-256-rate-25": {"tandem": 1.45},
    "conv-64-64-rate-10": {"tandem": 1.2, "windows": 0.85},
    "conv-64-64-rate-25": {"tandem": 1.9},
    "conv-norm-train-rate": {"tandem": 1.4, "windows": 1.05},
    "linear-norm-train-rate": {"tandem": 1.2, "windows": 1.1},
    "conv-net-train-9": {"tandem": 1.0, "windows": 0.85, "tandem / SpikingJelly, compiled": 1 / 8},
    "conv-net-train-20": {"tandem": 1.2, "tandem / SpikingJelly, compiled": 1 / 8},
    "conv-net-peak": {"tandem": 2.0},
    "scan": {"tandem": 1.0},
    "call": {"tandem / 1": 11e-6},
    "call-train": {"tandem": 2.3},
    "kept": {"tandem": 1.0, "tandem / 1": 1.25},
    "kept-norm": {"tandem": 1.0, "tandem / 1": 5.25},
    "events-time-T128": {"tandem / SpikingJelly": 1 / 5, "tandem / snnTorch": 1 / 5},
    "events-time-T1000": {"tandem / SpikingJelly": 1 / 5, "tandem / snnTorch": 1 / 5},
}  # fmt: skip
