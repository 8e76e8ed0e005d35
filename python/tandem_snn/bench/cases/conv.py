"""Single convolutional layers, inference."""

from __future__ import annotations

from functools import partial

import torch

from ..case import Case, at_most, of_network
from ..network import Problem, Shape, make_problem, spiking_input

RIVALS = ("tandem", "ANN", "naive", "naive, loop compiled")


def problem(inputs: int, outputs: int, stride: int, kind: str, rate: float) -> Problem:
    g = torch.Generator().manual_seed(0)
    data = spiking_input(8, (16, inputs, 32, 32), rate, kind, 3, g)
    return make_problem(8, data, [Shape(outputs, kernel=3, stride=stride, padding=1)], 0.15, 0, g)


def _case(inputs: int, outputs: int, stride: int, kind: str, percent: int, *ratio: float) -> Case:
    title = f"Conv {inputs}→{outputs} 3×3 s{stride} on 32×32, T=8, B=16, {percent}% {kind}"
    build = partial(problem, inputs, outputs, stride, kind, percent / 100)
    name = f"conv-{inputs}-{outputs}-{kind}-{percent}"
    return of_network(name, title, build, RIVALS, *(at_most(r) for r in ratio))


CASES = [
    _case(128, 256, 2, "rate", 10, 1.1),
    _case(128, 256, 2, "iid", 10),
    _case(128, 256, 2, "rate", 25, 1.45),
    _case(128, 256, 2, "iid", 25),
    _case(64, 64, 1, "rate", 10, 1.2),
    _case(64, 64, 1, "iid", 10),
    _case(64, 64, 1, "rate", 25, 1.9),
    _case(64, 64, 1, "iid", 25),
]
