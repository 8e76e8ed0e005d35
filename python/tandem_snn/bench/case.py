"""A case: one line of the performance contract, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from .network import Problem
from .rivals import MAKERS, Candidate, available
from .spikes import Rate

Quantity = Literal["time", "kept", "peak"]

OURS = ("frozen", "tandem")  # whichever a case has first is the one that limits judge
REFERENCES = ("naive", "tandem")  # with whichever's answers a case has first, the others' are compared
COMPILED = "compiled"  # in the name of those that torch.compile


@dataclass(frozen=True)
class Limit:
    """What must be reached: our value at most ``at_most`` times that of ``of``, or at most ``at_most`` by itself."""

    at_most: float
    of: str | None = None
    text: str = ""


def at_most(ratio: float, of: str = "ANN") -> Limit:
    return Limit(ratio, of, f"≤ {ratio:g}× {of}")


def faster(factor: float, than: str) -> Limit:
    return Limit(1 / factor, than, f"≥ {factor:g}× faster than {than}")


def no_more_than(value: float, unit: str) -> Limit:
    return Limit(value, None, f"≤ {value:g} {unit}")


@dataclass(frozen=True)
class Workload:
    """Candidates are made when they are needed: some take a minute to compile."""

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
    limits: tuple[Limit, ...] = ()
    base: str = "ANN"
    quantity: Quantity = "time"


def of_network(
    name: str,
    title: str,
    problem: Callable[[], Problem],
    rivals: Sequence[str],
    *limits: Limit,
    training: bool = False,
    input_gradient: bool = False,
    quantity: Quantity = "time",
) -> Case:
    """A case of a network and the competitors that compute it."""

    def build() -> Workload:
        made = problem()
        batches = [batch.differentiable() for batch in made.batches] if input_gradient else made.batches

        def candidate(rival: str) -> Candidate:
            model = MAKERS[rival](made.network)
            return model.training_step(batches) if training else model.inference(batches)

        return Workload({r: partial(candidate, r) for r in rivals if available(r)}, made.rates, made.neurons)

    return Case(name, title, build, tuple(rivals), limits, quantity=quantity)
